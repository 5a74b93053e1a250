"""Recording a token's pass, in pieces from one call of the experts to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_local.experts.layer import ExpertLayer
from moe_local.memory.device_graphs import Graph, GraphRecorder
from moe_local.model.experts_calls import experts_called_by
from moe_local.model.transformers_api import CACHE

Compute = Callable[..., Any]  # a model's forward pass, of named arguments

# How far two ways to compute the same may be apart, as a share of a vector's length.
_NEAR = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}


class OtherError(Exception):
    """A recording does not do what the modules do."""


@dataclass(frozen=True, slots=True)
class Called:
    """What a layer's experts were given, and gave."""

    hidden: Tensor
    result: Tensor


@dataclass(frozen=True, slots=True)
class _Experts:
    """A call of the experts between two pieces."""

    forward: Callable[..., Tensor]
    given: tuple[Any, ...]
    result: Tensor

    def replay(self) -> None:
        self.result.copy_(self.forward(*self.given))


@dataclass(frozen=True)
class Recording:
    """A token's pass, from the memory of its arguments to that of its output."""

    steps: Sequence[Graph | _Experts]
    output: Any  # transformers'

    def play(self, cache: Any) -> Any:
        """The pass of what is in the arguments' memory now -> its result."""
        for step in self.steps:
            step.replay()
        return self.result(cache)

    def result(self, cache: Any) -> Any:
        """The output of the last pass, with this KV cache."""
        return type(self.output)(logits=self.output.logits.clone(), **{CACHE: cache})


def record(
    recorder: GraphRecorder, compute: Compute, given: dict[str, Any], layers: Iterable[ExpertLayer]
) -> tuple[Recording, list[Called]]:
    """A recording of a pass over the memory of `given`, which is computed piece by piece, and what the experts of
    `layers` were given in it, in their order. Raises RuntimeError for what cannot be recorded.
    """
    steps: list[Graph | _Experts] = []
    called: list[Called] = []

    def end_piece() -> None:
        steps.append(recorder.end())
        steps[-1].replay()

    def call(forward: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
        end_piece()
        result = forward(*arguments).clone()
        called.append(Called(arguments[0].clone(), result.clone()))
        steps.append(_Experts(forward, arguments, result))
        recorder.begin()
        return result

    with recorder.aside(), experts_called_by(call, layers):
        recorder.begin()
        output = compute(**given)
        end_piece()
    return Recording(steps, output), called


def check(
    recording: Recording,
    compute: Compute,
    given: dict[str, Any],
    layers: Iterable[ExpertLayer],
    called: Sequence[Called],
) -> None:
    """Raises OtherError where the modules make something else of a pass in which experts gave what `called` says."""
    both: list[tuple[Tensor, Tensor]] = []
    remaining = iter(called)

    def call(forward: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
        recorded = next(remaining)
        both.append((recorded.hidden, arguments[0]))
        return recorded.result

    with experts_called_by(call, layers):
        output = compute(**given)
    if next(remaining, None) is not None or not _are_near([*both, (recording.output.logits, output.logits)]):
        raise OtherError("a recording gave something else than the model's modules")


def _are_near(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether the two of each pair differ by a small share of their length only; False for what is no number."""
    far = [(one.float() - other.float()).norm() / other.float().norm() > _NEAR[other.dtype] for one, other in pairs]
    strange = [~one.isfinite().all() for one, _ in pairs]
    return not bool(torch.stack([*far, *strange]).any())
