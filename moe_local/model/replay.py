"""Decoder layers that transformers' modules compute for one token, and the kernels alone for those after it.

Beside its matrices a token's layer is some sixty small operations, with more time between them, in the interpreter,
than in them. They are the same for every token: here they are written down once, and done again with the next token's
numbers in the same memory; only the experts' part is called anew each time. What is written down is used after it has
given every bit of what the modules gave for another token. Where anything is not as it was (other arguments, a mask,
hooks, a batch, another kind of cache), the modules compute as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from moe_local.experts.layer import ExpertLayer
from moe_local.kernels import native
from moe_local.kernels.native._native import Program, add, record
from moe_local.model.hooks import register_forward_hook
from moe_local.model.kv_cache import GrowingLayer, Written
from moe_local.model.probing import subclass
from moe_local.model.transformers_api import CACHE

_REPLAY = "_moe_local_replay"  # on modules whose forward pass is ours
_LEAST_USE = 16  # tokens that a recording must serve, or it is not worth another
_CHANCES = 3  # recordings that may serve none

_aten = torch.ops.aten

# Of torch's operations those that may be done again: results depend on nothing but the arguments. With what
# computes one in place of its former result, if anything does.
_PURE: dict[Any, Callable[..., Any] | None] = {
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.mul.Tensor: torch.mul,
    _aten.div.Tensor: torch.div,
    **dict.fromkeys(
        (
            _aten.add.Scalar, _aten.mul.Scalar, _aten.div.Scalar, _aten.neg.default, _aten.exp.default,
            _aten.pow.Tensor_Scalar, _aten.rsqrt.default, _aten.mean.dim, _aten.sum.dim_IntList,
            _aten.silu.default, _aten.sigmoid.default, _aten.gelu.default, _aten.relu.default, _aten.tanh.default,
            _aten.softplus.default, _aten.softmax.int, _aten.clamp.default, _aten.topk.default, _aten.gather.default,
            _aten.contiguous.default, _aten.clone.default, _aten.reshape.default, _aten.to.dtype, _aten.cat.default,
            _aten._to_copy.default, _aten._softmax.default, _aten.type_as.default, _aten.linear.default,
            _aten.matmul.default, _aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.rms_norm.default,
        ),
        None,
    ),
}  # fmt: skip
# And those that change what an operation before them has made.
_IN_PLACE = (
    _aten.copy_.default, _aten.add_.Tensor, _aten.mul_.Tensor, _aten.div_.Tensor, _aten.mul_.Scalar,
    _aten.div_.Scalar,
)  # fmt: skip
_ALLOCATE = (
    _aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default, _aten.empty_strided.default,
)  # fmt: skip

Step = Callable[..., Any]  # of: tokens later; where keys lie, and values; for how many tokens there is room


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


class _Arguments:
    """Copies of ours of what the decoder layers are given beside the hidden state, for one recording or several."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.copies = {name: _copied(value) for name, value in given.items()}
        self._names = given.keys()
        self._pass = -1
        self._taken: list[Any] = []  # in that pass

    def take(self, given: dict[str, Any], number: int) -> bool:
        """Puts what is given in forward pass `number` into the copies. False if it is not of the recorded kind."""
        if self._pass == number and len(given) == len(self._taken) and all(map(is_, given.values(), self._taken)):
            return True
        if given.keys() != self._names or not all(_alike(given[name], held) for name, held in self.copies.items()):
            return False
        for name, held in self.copies.items():
            for copy, new in zip(_tensors(held), _tensors(given[name]), strict=True):
                copy.copy_(new)
        self._pass, self._taken = number, list(given.values())
        return True

    def are_of(self, given: dict[str, Any], number: int) -> bool:
        """Whether these were made, in forward pass `number`, of the same arguments."""
        same = self._pass == number and given.keys() == self._names
        return same and all(map(is_, given.values(), self._taken))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and all(isinstance(each, Tensor) for each in value):
        return tuple(each.clone() for each in value)
    return _AnyCache(type(value)) if isinstance(value, Cache) else value


class _Shared:
    """What the layers of a model have in common while a token passes through them."""

    def __init__(self) -> None:
        self.number = 0  # of the forward pass
        self.outputs: dict[int, Tensor] = {}  # of recordings, by id: they stay where they are
        self._arguments: _Arguments | None = None  # of the last recording

    def begin(self, *_: Any) -> None:
        """Another forward pass: what is given now may have other numbers, be it the same tensor."""
        self.number += 1

    def arguments(self, given: dict[str, Any]) -> _Arguments:
        """For a recording in this pass, the same for all layers that are given the same."""
        made = self._arguments
        if made is None or not made.are_of(given, self.number):
            made = self._arguments = _Arguments(given)
            made.take(given, self.number)
        return made


@dataclass(frozen=True, slots=True)
class _Experts:
    """The call of the experts in a recording."""

    forward: Callable[..., Tensor]
    given: tuple[Any, ...]
    result: Tensor

    def __call__(self, *_: int) -> None:
        self.result.copy_(self.forward(*self.given))


class _Tape:
    """A layer's pass for one token, to be done again."""

    def __init__(
        self, recorder: _Recorder, hidden: Tensor, arguments: _Arguments, output: Any, place: int, written: Written
    ) -> None:
        """`hidden`, ours, and `arguments` gave `output`; the layer's cache, number `place`, was `written` before."""
        self.steps = recorder.steps
        self._kept = recorder.kept
        self.output = output
        self.place = place
        self._hidden = hidden
        self._arguments = arguments
        self._tokens = written.tokens
        self._mode = _mode()

    def take(self, hidden: Tensor, more: dict[str, Any], number: int) -> bool:
        """Puts these in the place of the recorded arguments. False where they, or what else matters, differ."""
        if self._mode != _mode() or hidden.shape != self._hidden.shape or not self._arguments.take(more, number):
            return False
        if hidden is not self._hidden:
            self._hidden.copy_(hidden)
        return True

    def play(self, written: Written) -> None:
        """All of it."""
        where = self._where(written)
        for step in self.steps:
            step(*where)

    def play_dense(self, first: int, written: Written) -> int:
        """From step `first` up to the next call of the experts; its number, or how many steps there are."""
        where = self._where(written)
        for number in range(first, len(self.steps)):
            if isinstance(self.steps[number], _Experts):
                return number
            self.steps[number](*where)
        return len(self.steps)

    def _where(self, written: Written) -> tuple[int, int, int, int]:
        return written.tokens - self._tokens, written.keys, written.values, written.room


def _mode() -> tuple[bool, int]:
    return torch.is_inference_mode_enabled(), torch.get_num_threads()


def _alike(given: Any, held: Any) -> bool:
    """Whether an argument is of the kind of the recorded one, or else the same."""
    if isinstance(held, Tensor):
        return isinstance(given, Tensor) and given.shape == held.shape and given.dtype is held.dtype
    if isinstance(held, _AnyCache):
        return type(given) is held.kind
    if isinstance(held, tuple):
        return isinstance(given, tuple) and len(given) == len(held) and all(map(_alike, given, held))
    if held is None or isinstance(held, (bool, int, float, str)):
        return type(given) is type(held) and bool(given == held)
    return given is held


class _AnyCache(NamedTuple):
    """Stands for the KV cache among the recorded arguments: which one it is shows elsewhere."""

    kind: type[Any]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as all of torch's modes
    """Writes down what is computed while it is entered, but for what is computed `aside`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.unfit: str | None = None
        self.programs: list[Program] = []
        self.read: set[int] = set()  # memory that torch's own operations have read
        self.kept: list[Any] = []  # what steps are about: or its memory would be another's
        self._made: set[int] = set()
        self._aside = False

    def __enter__(self) -> _Recorder:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._begin()
        return self

    def __exit__(self, *given: Any) -> None:
        record(None)
        super().__exit__(*given)  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._aside = True
        record(None)
        yield
        self._aside = False

    def went_aside(self, step: _Experts) -> None:
        self.kept.append(step)
        self._then(step)

    def _begin(self) -> None:
        """From now on the kernels' operations go into a program of their own."""
        program = Program()
        self.programs.append(program)
        self.steps.append(program.run)
        record(program)

    def _then(self, step: Step) -> None:
        if not len(self.programs[-1]):
            self.steps.pop()
            self.programs.pop()
        self.steps.append(step)
        self._begin()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._aside:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        self.kept.append((args, result))
        places = {_place(each) for each in _tensors((args, kwargs))}
        results = list(_tensors(result))
        if func in _IN_PLACE and _place(args[0]) in self._made:
            self.read |= places
            self._then(lambda *_: func(*args, **kwargs))
        elif results and not func._schema.is_mutable and all(_place(each) in places for each in results):
            pass  # a view
        elif func in _ALLOCATE:
            self._made.update(map(_place, results))
        elif func in _PURE:
            self.read |= places
            self._made.update(map(_place, results))
            if func is not _aten.add.Tensor or not _added(args, kwargs, result):
                self._then(_again(func, args, kwargs, result))
        else:
            self.unfit = self.unfit or str(func)
        return result


def _added(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
    """Whether the kernel has added these once more, in the program that is written."""
    one, other = args
    like = isinstance(other, Tensor) and one.shape == other.shape and one.dtype is other.dtype is result.dtype
    if kwargs or not like or result.dtype not in native.TYPES or not result.numel():
        return False
    if not (one.is_contiguous() and other.is_contiguous() and result.is_contiguous()):
        return False
    places = [where for each in (one, other, result) for where in (each.data_ptr(), each.nbytes)]
    add(result.numel(), native.TYPES[result.dtype], *places)
    return True


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (tuple, list)):
        for each in given:
            yield from _tensors(each)
    elif isinstance(given, dict):
        yield from _tensors(tuple(given.values()))


def _again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Step:
    if (into := _PURE[func]) is not None:
        return lambda *_: into(*args, **kwargs, out=result)
    if isinstance(result, Tensor):
        return lambda *_: result.copy_(func(*args, **kwargs))

    def step(*_: int) -> None:
        for held, new in zip(result, func(*args, **kwargs), strict=True):
            held.copy_(new)

    return step


class _Replay:
    """One decoder layer's recording: made, checked against the modules with another token, then played."""

    def __init__(self, module: nn.Module, original: Callable[..., Any], shared: _Shared) -> None:
        self._module = module
        self._original = original
        self._shared = shared
        self._experts = [each for each in module.modules() if isinstance(each, ExpertLayer)]
        self._tape: _Tape | None = None
        self._checked = False
        self._recordings = 0
        self._played = 0
        self._hooks = (-1, False)  # how many have ever been registered, and whether there are any here

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
        if self._hooks[0] != RemovableHandle.next_id:
            self._hooks = RemovableHandle.next_id, any(map(_is_watched, self._module.modules()))
        return not self._hooks[1]

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
        layer.took_one()
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
        recorder = _Recorder()

        def experts_forward(forward: Callable[..., Tensor], given: tuple[Any, ...]) -> Tensor:
            with recorder.aside():
                result = forward(*given)
            recorder.went_aside(_Experts(forward, given, result))
            return result

        with self._experts_by(experts_forward), recorder:
            output = self._original(self._module, copied, **{**arguments.copies, CACHE: more[CACHE]})
        changed = [place for place, keys in enumerate(held) if getattr(layers[place], "keys", None) is not keys]
        if len(changed) == 1:
            before = grown[changed[0]]
            if before is None:
                self._recordings -= 1  # its buffers were not there yet
            elif recorder.unfit is None:
                self._keep(recorder, copied, arguments, output, changed[0], before, layers[changed[0]])
        return output

    def _keep(
        self,
        recorder: _Recorder,
        hidden: Tensor,
        arguments: _Arguments,
        output: Any,
        place: int,
        before: Written,
        layer: GrowingLayer,
    ) -> None:
        bound = all(
            not program.unfit and program.bind(before.keys, before.values, before.room)
            for program in recorder.programs
        )
        if not bound or recorder.read & layer.places():
            return
        self._tape = _Tape(recorder, hidden, arguments, output, place, before)
        self._checked = False
        for tensor in _tensors(output):
            self._shared.outputs[id(tensor)] = tensor

    def _let_go(self) -> None:
        if self._tape is not None:
            for tensor in _tensors(self._tape.output):
                self._shared.outputs.pop(id(tensor), None)
            self._tape = None

    def _check(self, tape: _Tape, hidden: Tensor, more: dict[str, Any], written: Written) -> Any:
        """The forward pass by the modules, and beside it by the tape but for the experts: both must agree."""
        at = tape.play_dense(0, written)
        same = True

        def experts_forward(forward: Callable[..., Tensor], given: tuple[Any, ...]) -> Tensor:
            nonlocal at, same
            step = tape.steps[at] if at < len(tape.steps) else None
            result = forward(*given)
            if not isinstance(step, _Experts):
                same = False
                return result
            same = same and _equal(given, step.given)
            step.result.copy_(result)
            at = tape.play_dense(at + 1, written)
            return result

        with self._experts_by(experts_forward):
            output = self._original(self._module, hidden, **more)
        self._checked = same and at == len(tape.steps) and _equal(output, tape.output)
        if not self._checked:
            self._let_go()
        return output

    @contextmanager
    def _experts_by(self, call: Callable[[Callable[..., Tensor], tuple[Any, ...]], Tensor]) -> Iterator[None]:
        """While inside, `call` is given the experts' forward pass and its arguments, and says what it returns."""
        for experts in self._experts:
            forward = experts.forward
            vars(experts)["forward"] = lambda *given, _forward=forward: call(_forward, given)
        try:
            yield
        finally:
            for experts in self._experts:
                vars(experts).pop("forward", None)


def _equal(one: Any, other: Any) -> bool:
    ours, theirs = list(_tensors(one)), list(_tensors(other))
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
