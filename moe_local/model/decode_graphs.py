"""A token's pass on a device as a few recordings, between which the experts are called: CUDA graphs.

A decoder layer asks a device for some sixty small things. For one token they take the host longer to ask for than the
device to do, and they are the same for every token. So they are recorded once, from one call of the experts to the
next, and played for the tokens that follow. For that keys and values stay where they are, and attention looks at a
room of fixed size, in which what is not there yet is masked: there is a recording for each such room.

A recording is used after it has given what the modules gave for the same token. Where anything is not as it was
recorded (a batch, a mask, hooks, other arguments), the modules compute as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from moe_local.errors import first_line
from moe_local.experts.layer import ExpertLayer
from moe_local.memory.accelerator import Accelerator
from moe_local.memory.device_graphs import Graph, GraphRecorder
from moe_local.model.experts_calls import experts_called_by
from moe_local.model.fixed_kv import FixedKV
from moe_local.model.hooks import is_watched, register_forward_hook
from moe_local.model.probing import subclass
from moe_local.model.transformers_api import CACHE

_GRAPHS = "_moe_local_graphs"  # on the model
_LEAST_ROOM = 512  # tokens
_TENSORS = {"input_ids", "position_ids", "attention_mask", CACHE}  # that a token's pass is given, beside settings
_NEAR = {torch.float32: 1e-3, torch.float16: 0.02}  # how far apart two ways to compute may be; bf16: see below
_NEAR_BF16 = 0.05


def use_graphs(model: PreTrainedModel, context: int, notice: Callable[[str], None]) -> DecodeGraphs | None:
    """Has a model on a CUDA device computed by recordings for single tokens, of conversations of up to `context`
    tokens; `notice` is told where that cannot be done. None where there is nothing to be gained.
    """
    if not Accelerator(model.device).has_own_memory or model.config.is_encoder_decoder:
        return None
    graphs = vars(model)[_GRAPHS] = DecodeGraphs(model, context, notice)
    register_forward_hook(model, graphs.lend)
    model.__class__ = subclass(type(model), _forward_for)
    return graphs


def _forward_for(original: type[nn.Module]) -> Callable[..., Any]:
    @wraps(original.forward)  # transformers looks at its arguments
    def forward(self: nn.Module, *args: Any, **inputs: Any) -> Any:
        graphs: DecodeGraphs = vars(self)[_GRAPHS]
        if not args and graphs.suits(self, inputs):
            return graphs(self, original.forward, inputs)
        return original.forward(self, *args, **inputs)

    return forward


@dataclass(frozen=True, slots=True)
class _Experts:
    """A call of the experts between two recordings."""

    forward: Callable[..., Tensor]
    given: tuple[Any, ...]
    result: Tensor

    def replay(self) -> None:
        self.result.copy_(self.forward(*self.given))


@dataclass(frozen=True, slots=True)
class _Called:
    """What a layer's experts were given, and gave."""

    hidden: Tensor
    result: Tensor


@dataclass(frozen=True)
class _Recording:
    """A token's pass in a room of fixed size."""

    steps: Sequence[Graph | _Experts]
    output: Any  # transformers', whose logits are where the last step puts them

    def play(self, cache: Any) -> Any:
        """The pass of the token that is in the recorded arguments -> the output, of `cache`."""
        for step in self.steps:
            step.replay()
        return type(self.output)(logits=self.output.logits.clone(), **{CACHE: cache})


class DecodeGraphs:
    """The recordings of one model."""

    def __init__(self, model: PreTrainedModel, context: int, notice: Callable[[str], None]) -> None:
        self._context = context
        self._notice = notice
        self._device = model.device
        self._near = _NEAR.get(model.dtype, _NEAR_BF16)
        self._experts = [each for each in model.modules() if isinstance(each, ExpertLayer)]
        self._kv = FixedKV(context)
        self._recordings: dict[int, _Recording] = {}  # by their rooms
        self._recorder: GraphRecorder | None = None
        self._ids = self._position = torch.empty(0)  # int64 [1, 1], of the token under way
        self._settings: dict[str, Any] = {}  # that all recordings were made with
        self._alone = self._refused = False
        self._hooks = (-1, False)  # how many have ever been registered, and whether there are any here
        self.played = 0  # tokens that were computed by a recording

    @property
    def rooms(self) -> list[int]:
        """Tokens of the rooms that have recordings."""
        return sorted(self._recordings)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, the model is given one sequence, without padding."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    def release(self) -> None:
        """Frees the recordings, and the memory for keys and values once nobody has any there."""
        self._recordings.clear()
        self._recorder, self._kv = None, FixedKV(self._context)

    def lend(self, model: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Before a pass: has the KV cache of one sequence lie where recordings can find it."""
        if self._alone and not self._refused:
            self._kv.lend(inputs.get(CACHE))

    def suits(self, model: nn.Module, inputs: dict[str, Any]) -> bool:
        """Whether a pass is one token's, of the conversation that has the fixed memory, and unwatched."""
        ids, positions = inputs.get("input_ids"), inputs.get("position_ids")
        if not self._alone or self._refused or torch.is_grad_enabled() or ids is None or ids.numel() != 1:
            return False
        if positions is not None and positions.numel() != 1:
            return False
        settings = _settings(inputs)
        if any(isinstance(value, Tensor) for value in settings.values()):
            return False
        if self._recordings and settings != self._settings:
            return False
        if self._hooks[0] != RemovableHandle.next_id:
            inner = (each for each in model.modules() if each is not model and each is not model.base_model)
            self._hooks = RemovableHandle.next_id, any(map(is_watched, inner))
        return not self._hooks[1]

    def __call__(self, model: nn.Module, original: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """As the model's forward pass."""
        cache = inputs[CACHE]
        tokens = self._kv.length(cache)
        if tokens is None:  # as after a prompt that was read elsewhere
            return original(model, **inputs)
        self._place(inputs["input_ids"], tokens)
        recording = self._recordings.get(room := self._room(tokens + 1))
        if recording is None:
            return self._record(model, original, inputs, room)
        output = recording.play(cache)
        for layer in cache.layers:
            layer.took_one()
        self.played += 1
        return output

    def _room(self, tokens: int) -> int:
        """Of the rooms that have recordings of their own, the smallest for so many tokens."""
        room = _LEAST_ROOM
        while room < tokens:
            room *= 2
        return min(room, self._context)

    def _place(self, ids: Tensor, position: int) -> None:
        """Puts a token and its position into the recorded arguments."""
        if not self._ids.numel():
            with torch.inference_mode(False):
                self._ids, self._position = (
                    torch.zeros(1, 1, dtype=torch.int64, device=self._device) for _ in range(2)
                )
        self._ids.copy_(ids)
        self._position.fill_(position)

    def _record(self, model: nn.Module, original: Callable[..., Any], inputs: dict[str, Any], room: int) -> Any:
        """The pass by the modules; beside it, what it asks for is recorded, and compared with it."""
        called: list[_Called] = []

        def observe(forward: Callable[..., Tensor], given: tuple[Any, ...]) -> Tensor:
            result = forward(*given)
            called.append(_Called(given[0], result))
            return result

        with experts_called_by(observe, self._experts):
            output = original(model, **inputs)
        try:
            made, far = self._written_down(model, original, inputs, room, called, output.logits)
        except Exception as error:
            self._refuse(first_line(error))
            return output
        if far:
            self._refuse("a recording gave something else than the model's modules")
        else:
            self._recordings[room] = made
        return output

    def _written_down(
        self,
        model: nn.Module,
        original: Callable[..., Any],
        inputs: dict[str, Any],
        room: int,
        called: Sequence[_Called],
        logits: Tensor,
    ) -> tuple[_Recording, bool]:
        """A recording for `room` tokens of what gave `called` and `logits`; whether it gives anything else."""
        recorder = self._recorder = self._recorder or GraphRecorder(self._device)
        steps: list[Graph | _Experts] = []
        both: list[tuple[Tensor, Tensor]] = []
        remaining = iter(called)

        def end() -> None:
            graph = recorder.end()
            graph.replay()
            steps.append(graph)

        def call(forward: Callable[..., Tensor], given: tuple[Any, ...]) -> Tensor:
            end()
            expected = next(remaining)
            both.append((given[0], expected.hidden))
            result = expected.result.clone()
            steps.append(_Experts(forward, given, result))
            recorder.begin()
            return result

        self._settings = _settings(inputs)
        more = {"position_ids": self._position} if "position_ids" in inputs else {}
        more |= {CACHE: self._kv.view(room, self._position[0]), **self._settings}
        with recorder.aside(), experts_called_by(call, self._experts):
            recorder.begin()
            output = original(model, input_ids=self._ids, **more)
            end()
            both.append((output.logits, logits))
            return _Recording(steps, output), _are_far(both, self._near)

    def _refuse(self, why: str) -> None:
        """From now on the modules compute."""
        self._refused = True
        self.release()
        self._notice(f"this model's layers are not recorded for the device, which makes tokens slower: {why}")


def _settings(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in _TENSORS}


def _are_far(pairs: Sequence[tuple[Tensor, Tensor]], most: float) -> bool:
    """Whether any two differ by more than a share of their length."""
    shares = [(one.float() - other.float()).norm() / other.float().norm() for one, other in pairs]
    return not bool((torch.stack(shares) <= most).all())  # which is what no number is, too
