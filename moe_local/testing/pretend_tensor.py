"""Tensors of a pretend device: they say `cuda:0` or `mps:0`, and the CPU computes them by the tensors that they wrap.

A wrapper subclass on `__torch_dispatch__`: torch itself, transformers and C++ below them see a device, and each
operation that it would be given arrives here, whichever thread asks. What a real device refuses is refused: CPU
tensors among the operands (but for single numbers), `numpy()`, types that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_local.memory.accelerator import on_cpu
from moe_local.testing.pretend_memory import Allocation, Gpu
from moe_local.testing.pretend_ops import (
    INDEXING,
    NO_WORK,
    ONLY_ON_DEVICES,
    WAITED_FOR,
    is_composite,
    span,
    tensors,
    writes,
)

active: list[Gpu] = []  # the last one is there: tensors of an earlier one, kept by whom it may be, are its own


class PretendTensor(Tensor):
    """A tensor of the pretend device; `numbers` has what it holds."""

    numbers: Tensor
    gpu: Gpu
    allocation: Allocation

    @staticmethod
    def __new__(cls, numbers: Tensor, gpu: Gpu, allocation: Allocation | None = None) -> PretendTensor:
        """A tensor of the memory of `allocation`; None: of memory of its own. Raises torch.OutOfMemoryError."""
        with torch.inference_mode(numbers.is_inference()):  # a view of a tensor from outside is none of inference's
            made: PretendTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                numbers.size(),
                strides=numbers.stride(),
                storage_offset=numbers.storage_offset(),
                dtype=numbers.dtype,
                device=gpu.device,
            )
        made.numbers, made.gpu = numbers, gpu
        made.allocation = allocation or Allocation(gpu.memory, numbers.untyped_storage().nbytes())
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({self.numbers})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = _METHODS.get(func)
        if own is not None:
            return own(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return execute(func, args, kwargs or {})


def execute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Runs an operation of torch's on the device that is active, or else on the one that its operands came from."""
    if is_composite(func):
        return func.decompose(*args, **kwargs)
    operands = list(tensors((args, kwargs)))
    gpu = _device_of(operands)
    name = func.overloadpacket.__name__
    if name in ("copy_", "_to_copy"):
        return _copied(func, gpu, args, kwargs)
    _refuse_other_devices(name, gpu, operands, args)
    _count(name, gpu, operands, args, kwargs)
    plain = {key: _inner(value) for key, value in kwargs.items() if key != "pin_memory"}
    if "device" in plain:
        plain["device"] = torch.device("cpu")
    out = _compute(
        gpu, ONLY_ON_DEVICES.get(func, func), list(map(_inner, args)), plain, written_by(func, args, kwargs)
    )
    return _wrapped(func, gpu, args, kwargs, out, operands)


def _compute(
    gpu: Gpu, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], written: Sequence[Tensor] = ()
) -> Any:
    """The result of an operation on the CPU's tensors, by which those of the device that are `written` change."""
    if gpu.recording is None:
        return func(*args, **kwargs)
    return gpu.recording.run(func, args, kwargs, [_inner(each) for each in written])


def written_by(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    given = [args[at] if at < len(args) else kwargs.get(key) for at, key in writes(func)]
    return [each for each in given if each is not None]


def _device_of(operands: Iterable[Tensor]) -> Gpu:
    return active[-1] if active else next(each.gpu for each in operands if isinstance(each, PretendTensor))


def _inner(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.numbers
    if isinstance(value, list | tuple):
        return type(value)(map(_inner, value))
    return value


def _refuse_other_devices(name: str, gpu: Gpu, operands: Iterable[Tensor], args: Sequence[Any]) -> None:
    """Raises RuntimeError in torch's words for operands that lie elsewhere; numbers, and indices, may be on a CPU."""
    operands = list(operands)
    if name in INDEXING:
        if not isinstance(args[0], PretendTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
                if name.endswith("index")
                else f"expected the tensor and its values on one device, and found cpu and {gpu.device}"
            )
        indices = {id(index) for index in args[1] if index is not None}
        operands = [each for each in operands if id(each) not in indices]
    if any(not isinstance(each, PretendTensor) and each.ndim for each in operands):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {gpu.device} and cpu!"
            f" (in {name})"
        )


def _count(name: str, gpu: Gpu, operands: Sequence[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Syncs that the operation makes, and what it reads and writes; launches are counted once its result is known."""
    if name in WAITED_FOR or (
        name == "repeat_interleave" and isinstance(args[0], Tensor) and kwargs.get("output_size") is None
    ):
        gpu.wait(name)
    elif name in INDEXING:
        for index in (each for each in args[1] if each is not None):
            if index.dtype in (torch.bool, torch.uint8):
                gpu.wait(f"{name} by a mask")
            elif not isinstance(index, PretendTensor):
                gpu.wait(f"{name} by indices of the host's")
    gpu.streams.step()


def _refuse_types(name: str, gpu: Gpu, operands: Iterable[Tensor]) -> None:
    if strange := next((each.dtype for each in operands if each.dtype in gpu.unknown), None):
        raise TypeError(f"{name}: the device has no numbers of {strange}")


def launch(gpu: Gpu, name: str, operands: Iterable[Tensor]) -> None:
    """Counts a launch, which uses its operands' memory. Raises TypeError for types that the device does not know."""
    operands = list(operands)
    _refuse_types(name, gpu, operands)
    gpu.meter.launch(name)
    gpu.streams.current.launched, gpu.streams.current.computes = gpu.meter.launched, True
    if gpu.streams.used:
        for each in operands:
            if isinstance(each, PretendTensor):
                each.allocation.touched[span(each.numbers)] = gpu.meter.launched


def _wrapped(
    func: Any, gpu: Gpu, args: Sequence[Any], kwargs: dict[str, Any], out: Any, operands: Sequence[Tensor]
) -> Any:
    """The result as the device's; counts a launch, unless it is nothing but another view of an operand's memory."""
    name = func.overloadpacket.__name__
    written = written_by(func, args, kwargs)
    if written:
        launch(gpu, name, operands)
        for each in written:
            own = _inner(each)
            if each.shape != own.shape or each.stride() != own.stride():
                raise NotImplementedError(f"{name} changes the shape of a tensor of the pretend device in place")
        return written[0] if len(written) == 1 else type(out)(written) if isinstance(out, tuple) else written[0]
    known = {
        each.numbers.untyped_storage()._cdata: each.allocation for each in operands if isinstance(each, PretendTensor)
    }
    made = any(each.numel() and each.untyped_storage()._cdata not in known for each in tensors(out))
    if made and name not in NO_WORK:
        launch(gpu, name, [*operands, *tensors(out)])
    return _wrap(out, gpu, known)


def _wrap(value: Any, gpu: Gpu, known: dict[int, Allocation]) -> Any:
    """Tensors as the device's, in memory that is `known` by its storage, or new."""
    if isinstance(value, Tensor):
        return PretendTensor(value, gpu, known.get(value.untyped_storage()._cdata))
    return type(value)(_wrap(each, gpu, known) for each in value) if isinstance(value, list | tuple) else value


def _copied(func: Any, gpu: Gpu, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A copy between memories, or from one type to another on the device."""
    blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    if func.overloadpacket.__name__ == "copy_":
        return _copied_into(gpu, args[0], args[1], blocking=blocking)
    source, device = args[0], kwargs.pop("device", None)
    out = _compute(gpu, func, [source.numbers], {key: value for key, value in kwargs.items() if key != "pin_memory"})
    if device is not None and on_cpu(device):
        gpu.streams.finish()
        gpu.wait("copy to the host")
        return out
    if out.numel():
        launch(gpu, "_to_copy", [source, out])
    return PretendTensor(out, gpu)


def _copied_into(gpu: Gpu, target: Tensor, source: Tensor, *, blocking: bool) -> Tensor:
    if not target.numel():
        return target
    if not isinstance(target, PretendTensor):
        gpu.wait("copy to the host")
        target.copy_(_inner(source))
        return target
    _refuse_types("copy_", gpu, [target])
    if isinstance(source, PretendTensor):
        launch(gpu, "copy_", [target, source])
        _compute(gpu, Tensor.copy_, [target.numbers, source.numbers], {}, [target])
        return target
    if blocking or not gpu.streams.is_pinned(span(source)):
        gpu.wait("copy to the device")
        target.numbers.copy_(source)
        return target
    gpu.streams.copy(target.numbers, source, target.allocation.touched)
    return target


def _tolist(tensor: PretendTensor) -> Any:
    tensor.gpu.wait("tolist")
    return tensor.numbers.tolist()


def _numpy(tensor: PretendTensor, *args: Any, **kwargs: Any) -> Any:
    raise TypeError(
        f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() to copy it to RAM first."
    )


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """One launch, as a device's own kernel takes."""
    operands = list(tensors((query, key, value, args, kwargs)))
    gpu = _device_of(operands)
    _refuse_other_devices("scaled_dot_product_attention", gpu, operands, ())
    launch(gpu, "scaled_dot_product_attention", operands)
    plain = {name: _inner(each) for name, each in kwargs.items()}
    with torch.no_grad():
        out = _compute(
            gpu, F.scaled_dot_product_attention, [_inner(each) for each in (query, key, value, *args)], plain
        )
    return PretendTensor(out, gpu)


def _no_exchange(tensor: Any, other: Any) -> None:
    raise NotImplementedError("a tensor of the pretend device does not take another's memory: there is no .data =")


_METHODS: dict[Any, Callable[..., Any]] = {
    Tensor.tolist: _tolist,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.data_ptr: lambda tensor: tensor.numbers.data_ptr(),
    Tensor.untyped_storage: lambda tensor: tensor.numbers.untyped_storage(),
    Tensor.is_pinned: lambda tensor, *args: False,
    Tensor.data.__set__: _no_exchange,  # type: ignore[attr-defined]
    F.scaled_dot_product_attention: _attention,
}
