"""A token's pass on a device as a few recordings, between which the experts are called: CUDA graphs.

A decoder layer asks a device for some sixty small things. For one token they take the host longer to ask for than the
device to do, and they are the same for every token. So they are recorded once, from one call of the experts to the
next, and played for the tokens that follow. For that keys and values stay where they are, and attention looks at a
room of fixed size, in which what is not there yet is masked: there is a recording for each such room.

A recording is used after it has given what the modules give for the same token. Where anything is not as it was
recorded (a batch, a mask, hooks, other arguments), the modules compute as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_local.errors import MoeLocalError, first_line
from moe_local.experts.layer import ExpertLayer
from moe_local.memory.accelerator import Accelerator
from moe_local.memory.device_graphs import GraphRecorder
from moe_local.model.decode_recording import Compute, OtherError, Recording, check, record, warm_up
from moe_local.model.fixed_kv import FixedKV
from moe_local.model.hooks import HookWatch, register_forward_hook
from moe_local.model.probing import subclass
from moe_local.model.transformers_api import CACHE

_GRAPHS = "_moe_local_graphs"  # on the model
_LEAST_ROOM = 512  # tokens
_COPIED = {"input_ids", "position_ids"}  # what a token's pass is given that changes from one to the next
_TENSORS = {*_COPIED, "attention_mask", CACHE}


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
            return graphs(partial(original.forward, self), inputs)
        graphs.give_back(inputs.get(CACHE))
        return original.forward(self, *args, **inputs)

    return forward


class DecodeGraphs:
    """The recordings of one model."""

    def __init__(self, model: PreTrainedModel, context: int, notice: Callable[[str], None]) -> None:
        self._context = context
        self._notice = notice
        self._device = model.device
        self._experts = [each for each in model.modules() if isinstance(each, ExpertLayer)]
        self._kv = FixedKV(context)
        self._recordings: dict[int, Recording] = {}  # by their rooms
        self._recorder: GraphRecorder | None = None
        self._copies: dict[str, Tensor] = {}  # of what a token's pass is given: the recorded arguments
        with torch.inference_mode(False):
            self._position = torch.zeros(1, dtype=torch.int64, device=model.device)  # of the token under way
        self._settings: dict[str, Any] = {}  # that all recordings were made with
        self._alone = self._refused = False
        self._hooks = HookWatch()
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
            self._kv.settle()

    def release(self) -> None:
        """Frees the recordings, and the memory for keys and values once nobody has any there."""
        self._recordings.clear()
        self._kv.close()
        self._recorder, self._kv = None, FixedKV(self._context)

    def lend(self, model: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Before a pass: has the KV cache of one sequence lie where recordings can find it."""
        if self._alone and not self._refused:
            self._kv.lend(inputs.get(CACHE))

    def suits(self, model: nn.Module, inputs: dict[str, Any]) -> bool:
        """Whether a pass is of one token, with nothing of what recordings leave out."""
        ids = inputs.get("input_ids")
        if not self._alone or self._refused or torch.is_grad_enabled() or ids is None or ids.numel() != 1:
            return False
        settings = _settings(inputs)
        if any(isinstance(value, Tensor) for value in settings.values()):
            return False
        if self._recordings and (settings, _COPIED & inputs.keys()) != (self._settings, set(self._copies)):
            return False
        return self._hooks.sees_none(each for each in model.modules() if each is not model)

    def __call__(self, compute: Compute, inputs: dict[str, Any]) -> Any:
        """As the model's own forward pass, which is `compute`."""
        cache = inputs.get(CACHE)
        tokens = self._kv.take(cache)
        if tokens is None:  # another conversation's state is there
            self._kv.give_back(cache)
            return compute(**inputs)
        self._place(inputs, tokens)
        recording = self._recordings.get(room := self._room(tokens + 1))
        if recording is None:
            return self._record(compute, inputs, room)
        output = recording.play(cache)
        self._kv.took_one(cache)
        self.played += 1
        return output

    def give_back(self, cache: Any) -> None:
        """The modules are about to compute with this KV cache."""
        self._kv.give_back(cache)

    def _room(self, tokens: int) -> int:
        """Of the rooms that have recordings of their own, the smallest for so many tokens."""
        room = _LEAST_ROOM
        while room < tokens:
            room *= 2
        return min(room, self._context)

    def _place(self, inputs: dict[str, Any], position: int) -> None:
        """Puts a token and its position into the recorded arguments."""
        given = {name: inputs[name] for name in _COPIED & inputs.keys()}
        if {name: tensor.shape for name, tensor in given.items()} != {n: t.shape for n, t in self._copies.items()}:
            self._recordings.clear()
            with torch.inference_mode(False):
                self._copies = {name: torch.zeros_like(tensor) for name, tensor in given.items()}
        for name, tensor in given.items():
            self._copies[name].copy_(tensor)
        self._position.fill_(position)

    def _record(self, compute: Compute, inputs: dict[str, Any], room: int) -> Any:
        """The pass, recorded while it is computed, and compared with what the modules make of it."""
        kv, cache = self._kv, inputs[CACHE]
        kv.give_back(cache)  # the modules will need it
        kv.take(cache)
        before = kv.snapshot(cache)
        try:
            recording, results = self._recorded(compute, inputs, room, before)
            kv.took_one(cache)
            after = kv.snapshot(cache)
            kv.restore(cache, before)
            check(recording, compute, inputs, self._experts, results)
            kv.restore(cache, after)
        except BaseException as error:
            kv.restore(cache, before)
            if isinstance(error, MoeLocalError) or not isinstance(error, Exception):
                raise
            self._refuse(first_line(error))
            return compute(**inputs)
        self._recordings[room] = recording
        self.played += 1
        return recording.result(cache)

    def _recorded(
        self, compute: Compute, inputs: dict[str, Any], room: int, before: Any
    ) -> tuple[Recording, list[Tensor]]:
        """The recording for a room of so many tokens, played once from the state `before`, and what the experts gave.

        Raises OtherError where what it leaves behind cannot be followed.
        """
        kv, cache = self._kv, inputs[CACHE]
        if self._recorder is None or not self._recordings:
            self._recorder = GraphRecorder(self._device)  # the last one's memory went with the last recording
        self._settings = _settings(inputs)
        view = kv.view(cache, room, self._position)
        given = {CACHE: view, **self._settings, **self._copies}
        results = warm_up(compute, given, self._experts)
        kv.restore(cache, before)
        made = record(self._recorder, compute, given, self._experts, results)
        if not kv.is_followed(view):
            raise OtherError("the model keeps its state elsewhere")
        return made, results

    def _refuse(self, why: str) -> None:
        """From now on the modules compute."""
        self._refused = True
        self.release()
        self._notice(f"this model's layers are not recorded for the device, which makes tokens slower: {why}")


def _settings(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in _TENSORS}
