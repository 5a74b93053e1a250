"""What native kernels do for a single query: its key and value written behind the others, and its attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from moe_local.kernels import native

_BOOLEANS = 2  # as the kernels number types of masks


@lru_cache(maxsize=1)
def native_append() -> Callable[[int, int, int, int, int, int, int, int], None] | None:
    """The kernel that copies rows into buffers; None where there is none."""
    if native.missing() is not None:
        return None
    from moe_local.kernels.native._native import append

    return append


@lru_cache(maxsize=1)
def _attend_one() -> Callable[..., None] | None:
    if native.missing() is not None:
        return None
    from moe_local.kernels.native._native import attend_one

    return attend_one


def takes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel can attend: one query, all in bf16, a mask of a row for it, and no gradients."""
    if _attend_one() is None or query.shape[2] != 1 or query.requires_grad or not query.numel():
        return False
    if torch.compiler.is_compiling():
        return False
    if not (query.dtype is key.dtype is value.dtype is torch.bfloat16) or key.stride(3) != 1 or value.stride(3) != 1:
        return False
    if mask is None:
        return True
    fits = mask.dim() == 4 and mask.shape[2] == 1 and mask.shape[3] >= key.shape[2] and mask.stride(3) == 1
    return fits and (mask.dtype is torch.bool or mask.dtype in native.TYPES)


def attend_native(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None = None
) -> Tensor:
    """query [B, H, 1, D], key [B, KV, L, D], value [B, KV, L, V] -> [B, 1, H, V]; sinks [H] float32."""
    attend = _attend_one()
    assert attend is not None
    query = query.contiguous()
    batch, heads, _, size = query.shape
    _, groups, length, width = value.shape
    out = torch.empty((batch, 1, heads, width), dtype=torch.bfloat16)
    attend(
        native.machine(), batch, heads, groups, length, size, width, scale, query.data_ptr(), query.nbytes,
        key.data_ptr(), _bytes_from(key), *key.stride()[:3],
        value.data_ptr(), _bytes_from(value), *value.stride()[:3],
        *_mask(mask), *((0, 0) if sinks is None else (sinks.data_ptr(), sinks.nbytes)),
        out.data_ptr(), out.nbytes,
    )  # fmt: skip
    return out


def _bytes_from(states: Tensor) -> int:
    """Bytes from where a tensor begins to the end of its memory."""
    size: int = states.untyped_storage().nbytes()
    return size - int(states.storage_offset()) * states.element_size()


def _mask(mask: Tensor | None) -> tuple[int, int, int, int, int]:
    """A mask's address, bytes, type, and how far apart its batches and heads are."""
    if mask is None:
        return 0, 0, 0, 0, 0
    kind = _BOOLEANS if mask.dtype is torch.bool else native.TYPES[mask.dtype]
    batch_step = mask.stride(0) if mask.shape[0] > 1 else 0
    head_step = mask.stride(1) if mask.shape[1] > 1 else 0
    return mask.data_ptr(), _bytes_from(mask), kind, batch_step, head_step
