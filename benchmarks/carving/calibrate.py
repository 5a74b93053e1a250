"""What the demo model is carved by: the dense model's answers, and its states on them and on prose."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_local.demo.convert import SHARED_FIELDS
from moe_local.demo.dense import DenseModel

PROSE_WINDOW = 512  # tokens
PROSE_TOKENS = 20_000  # of each text
ANSWER_TOKENS = 160
ANSWER_BATCH = 32
LONGEST_PROMPT = 480  # tokens

Tokens = list[int]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSON-lines file: `instruction` with its first instance's input, `turns`, `prompt`
    or `question`.
    """
    return [prompt_of(json.loads(line)) for line in path.read_text("utf-8").splitlines() if line.strip()]


def prompt_of(record: dict[str, Any]) -> str:
    """One record's prompt."""
    if "instruction" in record:
        instances = record.get("instances") or [{}]
        return "\n\n".join(filter(None, (record["instruction"], instances[0].get("input"))))
    if "turns" in record:
        return str(record["turns"][0])
    return str(record.get("prompt") or record["question"])


def prose_windows(tokenizer: Any, path: Path, tokens: int = PROSE_TOKENS) -> list[Tokens]:
    """About `tokens` tokens of a text, in windows spaced evenly over it."""
    ids: Tokens = tokenizer(path.read_text("utf-8"), verbose=False).input_ids
    count = min(max(1, tokens // PROSE_WINDOW), max(1, len(ids) // PROSE_WINDOW))
    stride = max(0, len(ids) - PROSE_WINDOW) // count
    return [ids[i * stride : i * stride + PROSE_WINDOW] for i in range(count)]


def answer_all(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[Tokens]:
    """The model's greedy answers, each with its prompt before it, in no particular order."""
    asked = [chat_prompt(tokenizer, prompt) for prompt in prompts]
    asked = sorted((ids for ids in asked if len(ids) <= LONGEST_PROMPT), key=len)
    dialogues: list[Tokens] = []
    for start in range(0, len(asked), ANSWER_BATCH):
        dialogues += answer_batch(model, tokenizer, asked[start : start + ANSWER_BATCH])
        say(f"answered {len(dialogues)} of {len(asked)} prompts")
    return dialogues


def chat_prompt(tokenizer: Any, prompt: str) -> Tokens:
    """A question in the chat template, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def answer_batch(model: Any, tokenizer: Any, asked: Sequence[Tokens]) -> list[Tokens]:
    """Greedy answers to a few prompts at once, without the padding that this needs."""
    eos, longest = tokenizer.eos_token_id, max(map(len, asked))
    ids = torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in asked])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=eos,
            eos_token_id=eos,
        )
    answers = (row[longest:].tolist() for row in out)
    return [prompt + up_to(answer, eos) for prompt, answer in zip(asked, answers, strict=True)]


def up_to(answer: Tokens, end: int) -> Tokens:
    """The tokens up to and including the first `end`."""
    return answer[: answer.index(end) + 1] if end in answer else answer


def build_dense(dense: DenseModel, dtype: torch.dtype) -> Any:
    """The dense model as transformers' `LlamaForCausalLM`, in `dtype`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {name: dense.config[name] for name in SHARED_FIELDS if name in dense.config}
    rope = {"rope_type": "default", "rope_theta": dense.config["rope_theta"]}
    model = LlamaForCausalLM(LlamaConfig(**fields, rope_parameters=rope, dtype=dtype)).to(dtype)
    model.load_state_dict(dense.tensors | {"lm_head.weight": dense.tensors["model.embed_tokens.weight"]})
    return model.eval()


@dataclass(frozen=True)
class States:
    """Per layer, the normed inputs of the feed-forward block `[T, hidden]` and the tokens' weights `[T]`."""

    inputs: list[torch.Tensor]
    weights: list[torch.Tensor]


def watch_mlps(model: Any, see: Callable[[int, torch.Tensor, torch.Tensor], None]) -> list[Any]:
    """Calls `see(layer, x, token_weights)` whenever a layer's feed-forward block is about to run.

    `x` `[T, hidden]` is its normed input, `token_weights` `[T]` is 1 / ||residual||^2: a change of the
    block's output matters in proportion to the stream that it is added to, and one token's stream can be a
    thousand times another's. Returns the hooks' handles.
    """

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            residual = args[0].flatten(0, 1).float()
            see(layer, output.flatten(0, 1), residual.square().sum(dim=1).reciprocal())

        return hook

    return [
        layer.post_attention_layernorm.register_forward_hook(hook_for(number))
        for number, layer in enumerate(model.model.layers)
    ]


def collect_states(model: Any, sequences: Iterable[Tokens]) -> States:
    """The dense model's states on every token of the sequences. They are read one by one: no padding among
    them.
    """
    layers = len(model.model.layers)
    inputs: list[list[torch.Tensor]] = [[] for _ in range(layers)]
    weights: list[list[torch.Tensor]] = [[] for _ in range(layers)]

    def keep(layer: int, x: torch.Tensor, token_weights: torch.Tensor) -> None:
        inputs[layer].append(x.clone())
        weights[layer].append(token_weights)

    hooks = watch_mlps(model, keep)
    with torch.inference_mode():
        for sequence in sequences:
            model.model(input_ids=torch.tensor([sequence]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return States([torch.cat(x) for x in inputs], [torch.cat(weight) for weight in weights])


def say(message: str) -> None:
    """Progress, on standard error."""
    print(message, file=sys.stderr, flush=True)
