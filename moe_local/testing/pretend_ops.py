"""What torch's operations are to a device: which wait, which write and to what, which are others in disguise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# Operations whose result, or whose size, the host waits for.
WAITED_FOR = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim",
    "unique_consecutive", "unique_dim_consecutive", "is_nonzero",
}  # fmt: skip
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}
NO_WORK = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "record_stream", "detach"}


def _softmax(x: Tensor, dim: int, widened: bool) -> Tensor:
    return (x.float() if widened else x).softmax(dim)


# What torch has no kernels for on a CPU: products and sums in a wider type than their operands'.
ONLY_ON_DEVICES: dict[Any, Callable[..., Tensor]] = {
    aten.mm.dtype: lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype),
    aten._softmax.default: _softmax,
    aten.bmm.dtype: lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype),
}


@cache
def is_composite(func: Any) -> bool:
    """Whether torch makes it of other operations on every device."""
    named: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return named


@cache
def writes(func: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of each argument that it writes to."""
    written = enumerate(func._schema.arguments)
    return tuple((at, each.name) for at, each in written if each.alias_info is not None and each.alias_info.is_write)


def tensors(value: Any) -> Iterator[Tensor]:
    """Those in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def span(tensor: Tensor) -> tuple[int, int]:
    """The addresses between which a tensor of the CPU's lies."""
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
