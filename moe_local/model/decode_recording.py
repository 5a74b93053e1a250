"""Recording a token's pass, in pieces from one call of the experts to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_local.experts.layer import ExpertLayer
from moe_local.memory.device_graphs import GraphRecorder, waiting
from moe_local.model.experts_calls import Experts, experts_called_by
from moe_local.model.transformers_api import CACHE

Compute = Callable[..., Any]  # a model's forward pass, of named arguments

# How far two ways to compute the same may be apart, as a share of a vector's length.
_NEAR = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}


class OtherError(Exception):
    """A recording does not do what the modules do."""


@dataclass(frozen=True)
class Recording:
    """A token's pass, from the memory of its arguments to that of its output."""

    steps: Sequence[Callable[[], None]]  # pieces, and the `Experts` between them
    output: Any  # transformers'

    def play(self, cache: Any) -> Any:
        """The pass of what is in the arguments' memory now -> its result."""
        for step in self.steps:
            step()
        return self.result(cache)

    def result(self, cache: Any) -> Any:
        """The output of the last pass, with this KV cache."""
        return type(self.output)(logits=self.output.logits.clone(), **{CACHE: cache})


def warm_up(compute: Compute, given: dict[str, Any], layers: Iterable[ExpertLayer]) -> list[Tensor]:
    """Computes what is about to be recorded: what a device's libraries load and allocate at first use cannot be.

    -> what the experts of `layers` gave, in their order. Raises RuntimeError where anything but the experts has the
    host wait for the device.
    """
    results: list[Tensor] = []

    def call(forward: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
        with waiting(allowed=True):
            result = forward(*arguments)
        results.append(result.clone())  # the model may add to its own
        return result

    with experts_called_by(call, layers), waiting(allowed=False):
        compute(**given)
    return results


def record(
    recorder: GraphRecorder,
    compute: Compute,
    given: dict[str, Any],
    layers: Iterable[ExpertLayer],
    results: Iterable[Tensor],
) -> Recording:
    """A recording of a pass over the memory of `given`, each piece of which is played once it is recorded.

    Experts are not asked: they gave `results`. Raises RuntimeError for what cannot be recorded.
    """
    steps: list[Callable[[], None]] = []
    remaining = iter(results)

    def end_piece() -> None:
        steps.append(recorder.end().replay)
        steps[-1]()

    def call(forward: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
        end_piece()
        result = _held(next(remaining))
        steps.append(Experts(forward, arguments, result))
        recorder.begin()
        return result

    with recorder.aside(), experts_called_by(call, layers):
        recorder.begin()
        output = compute(**given)
        end_piece()
    return Recording(steps, output)


def _held(result: Tensor) -> Tensor:
    """A copy that can be written to wherever the recording is played."""
    with torch.inference_mode(False):
        held = torch.empty_like(result)
    return held.copy_(result)


def check(
    recording: Recording,
    compute: Compute,
    inputs: dict[str, Any],
    layers: Iterable[ExpertLayer],
    results: Iterable[Tensor],
) -> None:
    """Raises OtherError where the modules make something else of the recorded pass, of `inputs`, in which the experts
    gave `results`.
    """
    recorded = [step.given[0] for step in recording.steps if isinstance(step, Experts)]
    remaining = iter(results)
    own: list[Tensor] = []

    def call(forward: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
        own.append(arguments[0])
        return next(remaining).clone()

    with experts_called_by(call, layers):
        output = compute(**inputs)
    if not _are_near([*recorded, recording.output.logits], [*own, output.logits]):
        raise OtherError("a recording gave something else than the model's modules")


def _are_near(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether the vectors of two lists differ by a small share of their length only; False for what is no number."""
    if len(ones) != len(others):
        return False
    pairs = list(zip(ones, others, strict=True))
    far = [(one.float() - other.float()).norm() / other.float().norm() > _NEAR[other.dtype] for one, other in pairs]
    strange = [~each.isfinite().all() for each in (*ones, *others)]
    return not bool(torch.stack([*far, *strange]).any())
