"""What a carving is worth: likeness to the dense model, routing, answers."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.carving.calibrate import PROSE_WINDOW, Tokens, answer_batch, build_dense, chat_prompt, prose_windows
from moe_local.demo.convert import Carving, CarvingShape, convert
from moe_local.demo.dense import DenseModel

EVALUATED_WINDOWS = 24

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short story about a fox.",
    "What is 2 + 2?",
    "Give me three tips for learning a language.",
)


@dataclass(frozen=True)
class Likeness:
    """How a model fares on held-out text: perplexity, and against the dense model the mean KL divergence
    (nats) and how often both would choose the same token.
    """

    perplexity: float
    divergence: float
    agreement: float


def evaluate(dense: DenseModel, carving: Carving, tokenizer: Any, text: Path) -> None:
    """Prints how the carved model compares with the dense one on held-out text, how it routes, and what it
    answers.
    """
    original, carved = build_dense(dense, torch.bfloat16), load_carved(dense, carving)
    windows = prose_windows(tokenizer, text, EVALUATED_WINDOWS * PROSE_WINDOW)
    print(f"{text.name}, {len(windows)} windows of {PROSE_WINDOW} tokens")
    for name, model in (("dense", original), ("carved", carved)):
        found = likeness(model, original, windows)
        print(
            f"{name}: perplexity {found.perplexity:.2f}, KL to the dense model {found.divergence:.3f},"
            f" top-1 agreement {found.agreement:.3f}"
        )
    entropy, reuse = routing_figures(carved, windows, carving.shape)
    print(f"routing: usage entropy {entropy:.3f}, adjacent-token reuse {reuse:.3f}")
    for question in QUESTIONS:
        prompt = chat_prompt(tokenizer, question)
        answer = answer_batch(carved, tokenizer, [prompt])[0][len(prompt) :]
        print(f"\n> {question}\n{tokenizer.decode(answer, skip_special_tokens=True)}")


def load_carved(dense: DenseModel, carving: Carving) -> Any:
    """The carved model, by way of the checkpoint that a user would get."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        convert(dense, carving, Path(name), lambda stage, fraction: None)
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).eval()


def likeness(model: Any, original: Any, windows: Sequence[Tokens]) -> Likeness:
    """The figures of `Likeness`, averaged over all tokens."""
    losses, divergences, agreements = [], [], []
    for window in windows:
        predicted, reference = log_probabilities(model, window), log_probabilities(original, window)
        losses.append(F.nll_loss(predicted[:-1], torch.tensor(window[1:])))
        divergences.append((reference.exp() * (reference - predicted)).sum(dim=1).mean())
        agreements.append((reference.argmax(dim=1) == predicted.argmax(dim=1)).float().mean())
    loss, divergence, agreement = (float(torch.stack(found).mean()) for found in (losses, divergences, agreements))
    return Likeness(math.exp(loss), divergence, agreement)


def log_probabilities(model: Any, window: Tokens) -> torch.Tensor:
    """`[tokens, vocabulary]`."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([window]), use_cache=False).logits[0]
    return logits.float().log_softmax(dim=-1)


def routing_figures(carved: Any, windows: Sequence[Tokens], shape: CarvingShape) -> tuple[float, float]:
    """Means over the layers: the entropy of the experts' usage (1 is even), and the share of a token's
    experts that the token before it had chosen too.
    """
    entropies, reuses = [], []
    choices: dict[int, list[torch.Tensor]] = {layer: [] for layer in shape.moe_layers}
    hooks = [
        carved.model.layers[layer].mlp.gate.register_forward_hook(
            lambda _, __, output, seen=choices[layer]: seen.append(output[2])
        )
        for layer in shape.moe_layers
    ]
    for window in windows:
        log_probabilities(carved, window)
    for hook in hooks:
        hook.remove()
    for chosen in (torch.cat(seen) for seen in choices.values()):  # [T, top_k]
        used = F.one_hot(chosen, shape.experts).sum(dim=1).float()  # [T, experts]
        usage = used.mean(dim=0) / shape.top_k
        entropies.append(float(torch.special.entr(usage).sum()) / math.log(shape.experts))
        reuses.append(float((used[1:] * used[:-1]).sum(dim=1).mean()) / shape.top_k)
    return sum(entropies) / len(entropies), sum(reuses) / len(reuses)
