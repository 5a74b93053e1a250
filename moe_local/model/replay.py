"""Decoder layers that transformers' modules compute for one token, and the kernels alone for those after it.

Beside its matrices a token's layer is some sixty small operations, with more time between them, in the interpreter,
than in them. They are the same for every token: here they are written down once, and done again with the next token's
numbers in the same memory; only the experts' part is called anew each time. What is written down is used after it has
given every bit of what the modules gave for another token. Where anything is not as it was (other arguments, a mask,
hooks, a batch, another kind of cache), the modules compute as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from moe_local.experts.layer import ExpertLayer
from moe_local.model.experts_calls import Experts, experts_called_by
from moe_local.model.hooks import HookWatch, register_forward_hook
from moe_local.model.kv_cache import GrowingLayer, Written
from moe_local.model.probing import subclass
from moe_local.model.recorder import Recorder, tensors
from moe_local.model.tape import Arguments, Tape
from moe_local.model.transformers_api import CACHE

_REPLAY = "_moe_local_replay"  # on modules whose forward pass is ours
_LEAST_USE = 16  # tokens that a recording must serve, or it is not worth another
_CHANCES = 3  # recordings that may serve none


def use_replay(model: Any, layers: Iterator[nn.Module]) -> None:
    """Has these decoder layers of a model on a CPU replay what they compute for single tokens, in bf16."""
    shared = _Shared()
    register_forward_hook(model, shared.begin)
    for module in list(layers):
        vars(module)[_REPLAY] = _Replay(module, type(module).forward, shared)
        module.__class__ = subclass(type(module), _forward_for)


def _forward_for(original: type[nn.Module]) -> Callable[..., Any]:
    def forward(self: nn.Module, hidden_states: Tensor, *args: Any, **more: Any) -> Any:
        replay: _Replay = vars(self)[_REPLAY]
        if not args and replay.suits(hidden_states):
            return replay(hidden_states, more)
        return original.forward(self, hidden_states, *args, **more)

    return forward


class _Shared:
    """What the layers of a model have in common while a token passes through them."""

    def __init__(self) -> None:
        self.number = 0  # of the forward pass
        self.outputs: dict[int, Tensor] = {}  # of recordings, by id: they stay where they are
        self._arguments: Arguments | None = None  # of the last recording

    def begin(self, *_: Any) -> None:
        """Another forward pass: what is given now may have other numbers, be it the same tensor."""
        self.number += 1

    def arguments(self, given: dict[str, Any]) -> Arguments:
        """For a recording in this pass, the same for all layers that are given the same."""
        made = self._arguments
        if made is None or not made.are_of(given, self.number):
            made = self._arguments = Arguments(given)
            made.take(given, self.number)
        return made


class _Replay:
    """One decoder layer's recording: made, checked against the modules with another token, then played."""

    def __init__(self, module: nn.Module, original: Callable[..., Any], shared: _Shared) -> None:
        self._module = module
        self._original = original
        self._shared = shared
        self._experts = [each for each in module.modules() if isinstance(each, ExpertLayer)]
        self._tape: Tape | None = None
        self._checked = False
        self._recordings = 0
        self._played = 0
        self._hooks = HookWatch()

    @property
    def played(self) -> int:
        """Tokens that were computed by a recording."""
        return self._played

    def suits(self, hidden: Tensor) -> bool:
        """Whether `hidden` is one token, to be computed without gradients and unwatched."""
        if hidden.dtype is not torch.bfloat16 or hidden.numel() != hidden.shape[-1] or torch.is_grad_enabled():
            return False
        if self._recordings > _CHANCES + self._played // _LEAST_USE:
            return False
        return self._hooks.sees_none(self._module.modules())

    def __call__(self, hidden: Tensor, more: dict[str, Any]) -> Any:
        """As the module's forward pass."""
        layers = getattr(more.get(CACHE), "layers", None)
        if layers is None or isinstance(more.get("attention_mask"), Tensor):
            return self._original(self._module, hidden, **more)
        tape = self._tape
        if tape is None or len(layers) <= tape.place:
            return self._record(hidden, more, layers)
        layer = layers[tape.place]
        written = layer.written() if type(layer) is GrowingLayer else None
        if written is None:  # it needs a larger buffer, or is about to have its first
            return self._original(self._module, hidden, **more)
        if not tape.take(hidden, more, self._shared.number):
            return self._record(hidden, more, layers)
        if not self._checked:
            return self._check(tape, hidden, more, written)
        tape.play(written)
        layer.took(1)
        self._played += 1
        return tape.output

    def _record(self, hidden: Tensor, more: dict[str, Any], layers: list[Any]) -> Any:
        """The forward pass by the modules, written down."""
        grown = [layer.written() if type(layer) is GrowingLayer else None for layer in layers]
        held = [getattr(layer, "keys", None) for layer in layers]
        self._recordings += 1
        self._let_go()
        copied = hidden if id(hidden) in self._shared.outputs else hidden.clone()
        arguments = self._shared.arguments(more)
        recorder = Recorder()

        def experts_forward(forward: Callable[..., Tensor], given: tuple[Any, ...]) -> Tensor:
            with recorder.aside():
                result = forward(*given)
            recorder.went_aside(Experts(forward, given, result))
            return result

        with experts_called_by(experts_forward, self._experts), recorder:
            output = self._original(self._module, copied, **{**arguments.copies, CACHE: more[CACHE]})
        changed = [place for place, keys in enumerate(held) if getattr(layers[place], "keys", None) is not keys]
        if len(changed) == 1:
            (place,) = changed
            tape, before = Tape(recorder, copied, arguments, output), grown[place]
            if before is None:
                self._recordings -= 1  # its buffers were not there yet
            elif tape.bind(place, before, layers[place].places()):
                self._keep(tape)
        return output

    def _keep(self, tape: Tape) -> None:
        self._tape, self._checked = tape, False
        for tensor in tensors(tape.output):
            self._shared.outputs[id(tensor)] = tensor

    def _let_go(self) -> None:
        if self._tape is not None:
            for tensor in tensors(self._tape.output):
                self._shared.outputs.pop(id(tensor), None)
            self._tape = None

    def _check(self, tape: Tape, hidden: Tensor, more: dict[str, Any], written: Written) -> Any:
        """The forward pass by the modules, and beside it by the tape but for the experts: both must agree."""
        at = tape.play_dense(0, written)
        same = True

        def experts_forward(forward: Callable[..., Tensor], given: tuple[Any, ...]) -> Tensor:
            nonlocal at, same
            step = tape.steps[at] if at < len(tape.steps) else None
            result = forward(*given)
            if not isinstance(step, Experts):
                same = False
                return result
            same = same and _equal(given, step.given)
            step.result.copy_(result)
            at = tape.play_dense(at + 1, written)
            return result

        with experts_called_by(experts_forward, self._experts):
            output = self._original(self._module, hidden, **more)
        self._checked = same and at == len(tape.steps) and _equal(output, tape.output)
        if not self._checked:
            self._let_go()
        return output


def _equal(one: Any, other: Any) -> bool:
    ours, theirs = list(tensors(one)), list(tensors(other))
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
