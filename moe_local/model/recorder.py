"""What a forward pass does, written down to be done again: our kernels' operations, and torch's that may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_local.kernels import native
from moe_local.kernels.native._native import Program, add, record
from moe_local.model.experts_calls import Experts

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
            _aten.layer_norm.default, _aten.sqrt.default, _aten.log.default, _aten.log1p.default, _aten.floor.default,
            _aten.abs.default, _aten.maximum.default, _aten.minimum.default, _aten.where.self,
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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as all of torch's modes
    """Writes down what is computed while it is entered, but for what is computed `aside`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.unfit: str | None = None
        self._programs: list[Program] = []
        self._kept: list[Tensor] = []  # what steps are about: or its memory would be another's
        self._read: set[int] = set()  # memory that torch's own operations have read
        self._made: set[int] = set()  # and that they have allocated
        self._aside = False

    def __enter__(self) -> Recorder:
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

    def went_aside(self, step: Experts) -> None:
        self._then(step)

    def bind(self, keys: int, values: int, room: int, memory: set[int]) -> bool:
        """Says where keys and values were written, and lets go of their memory.

        False if that cannot be done again elsewhere: torch's operations read it, or kernels went about it otherwise.
        """
        self._kept = [tensor for tensor in self._kept if _place(tensor) not in memory]
        fit = all(not program.unfit and program.bind(keys, values, room) for program in self._programs)
        return fit and self.unfit is None and not self._read & memory

    def _begin(self) -> None:
        """From now on the kernels' operations go into a program of their own."""
        program = Program()
        self._programs.append(program)
        self.steps.append(program.run)
        record(program)

    def _then(self, step: Step) -> None:
        if not len(self._programs[-1]):
            self.steps.pop()
            self._programs.pop()
        self.steps.append(step)
        self._begin()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._aside:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        given, results = list(tensors((args, kwargs))), list(tensors(result))
        self._kept += [*given, *results]
        places = set(map(_place, given))
        if func in _IN_PLACE and _place(args[0]) in self._made:
            self._read |= places
            self._then(lambda *_: func(*args, **kwargs))
        elif results and not func._schema.is_mutable and all(_place(each) in places for each in results):
            pass  # a view
        elif func in _ALLOCATE:
            self._made.update(map(_place, results))
        elif func in _PURE:
            self._read |= places
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


def tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (tuple, list)):
        for each in given:
            yield from tensors(each)
    elif isinstance(given, dict):
        yield from tensors(tuple(given.values()))


def _again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Step:
    if (into := _PURE[func]) is not None:
        return lambda *_: into(*args, **kwargs, out=result)
    if isinstance(result, Tensor):
        return lambda *_: result.copy_(func(*args, **kwargs))

    def step(*_: int) -> None:
        for held, new in zip(result, func(*args, **kwargs), strict=True):
            held.copy_(new)

    return step
