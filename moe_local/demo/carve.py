"""Makes `carving.safetensors`: which neurons form which expert, and the routers in front of them.

    python -m moe_local.demo.carve --text PROSE.txt --prompts PROMPTS.jsonl -o carving.safetensors
    python -m moe_local.demo.carve -o carving.safetensors --evaluate HELD_OUT.txt

The recipe, after MoEfication (arXiv:2110.01786) and CMoE (arXiv:2502.04416):

1. The dense model answers the prompts; its states on these answers and on prose are the calibration.
2. A neuron's energy on a token is (activation x norm of its down column)^2 / ||residual||^2. The neurons with the
   greatest energy become the shared expert.
3. The others are dealt into equal experts: balanced k-means on their energy profiles, then rounds of (fit the router;
   deal the neurons anew to the experts that are chosen when they matter).
4. The router is a ridge regression from the normed state to the square root of each expert's energy.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from moe_local.demo.convert import (
    Carving,
    CarvingShape,
    SwiGLU,
    build_dense,
    convert,
    even_out,
    fingerprint,
    route,
    watch_mlps,
)
from moe_local.demo.source import DenseModel, fetch_dense, write_tokenizer

KMEANS_ROUNDS = 12
DEALING_ROUNDS = 4
ROUTER_RIDGE = 1e-3
LOGIT_SPREAD = 0.25
SIGMOID_SLOPE = 0.25  # at 0, where the logits are

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

    `gain` is `[items, bins]`, with `items == bins * capacity`; returns each item's bin. Exact: every item starts in the
    bin it likes best, which is optimal for the counts it gives; then one item at a time moves along the cheapest chain
    of bins from one that is too full to one that is not (successive shortest paths on the graph of the bins).
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
    """Groups the columns of `[T, neurons]` into equal clusters by the cosine of their profiles; each column's cluster.

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
    """One layer's `order` `[intermediate]`, `router` `[experts, hidden]` and `bias` `[experts]`; `caught` is the share
    of the dealt neurons' energy that the chosen experts hold."""

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
        """The router `[experts, hidden]` and the bias of its choice `[experts]`, for wanted scores `[T, experts]`.

        What all experts have in common is taken out: it chooses nothing, and it would push the sigmoid to where it is
        flat. The spread is small so that the weights of the chosen are nearly equal, as the neurons were.
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


def neuron_energies(block: SwiGLU, x: torch.Tensor, token_weights: torch.Tensor) -> torch.Tensor:
    """`[T, intermediate]`: (activation x norm of the down column)^2 x token weight."""
    return block.activations(x).mul_(block.down.norm(dim=0)).square_().mul_(token_weights[:, None])


def expert_energies(energies: torch.Tensor, expert_of: Int, experts: int) -> torch.Tensor:
    """`[T, neurons]` summed to `[T, experts]`."""
    return energies @ F.one_hot(torch.from_numpy(expert_of), experts).float()


# Calibration


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSON-lines file: `instruction` with its first instance's input, `turns`, `prompt` or `question`."""
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


@dataclass(frozen=True)
class States:
    """Per layer, the normed inputs of the feed-forward block `[T, hidden]` and the tokens' weights `[T]`."""

    inputs: list[torch.Tensor]
    weights: list[torch.Tensor]


def collect_states(model: Any, sequences: Iterable[Tokens]) -> States:
    """The dense model's states on every token of the sequences. They are read one by one: no padding among them."""
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


def fitting_tokens(sequences: Sequence[Tokens], count: int) -> torch.Tensor:
    """The sequences strung together and cut into windows, `[count / window, window]`: what the carving carries along."""
    strung = [token for sequence in sequences for token in sequence]
    windows = min(count, len(strung)) // PROSE_WINDOW
    return torch.tensor(strung[: windows * PROSE_WINDOW]).reshape(windows, PROSE_WINDOW)
