"""Attention on a CPU by plain matrix products, in blocks of queries, in place of torch's kernel.

`scaled_dot_product_attention` in bf16 with 32 heads that share 4, on one core: 45 ms for 512 causal queries, 2.9 ms
for one query of 512 keys. The products take 11 ms and 0.09 ms. What they do not cover is left to torch, and
float32, where there is little to gain.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_local.memory.accelerator import on_cpu
from moe_local.model.attention_native import attend_native, takes
from moe_local.model.buffers import SCORES, columns
from moe_local.model.kv_cache import with_room
from moe_local.model.transformers_api import torch_attention, use_attention

_OURS = "_moe_local_attention"  # on modules that are to use it
_SEEN = 512  # keys: more that a block sees are rounded up to it: each number of them takes a program (see `columns`)
_FILL = 16  # queries: those of a block are rounded up to it


def is_ours(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention is computed here."""
    return dtype == torch.bfloat16 and on_cpu(device)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """query [B, H, Q, D], key [B, KV, L, D], value [B, KV, L, V] -> [B, Q, H, V], in transformers' interface."""
    queries, keys = query.shape[2], key.shape[2]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = queries > 1 and attention_mask is None and is_causal
    odd = any(more.get(name) is not None for name in ("position_bias", "softcap", "s_aux", "cache"))
    plain = _OURS in vars(module) and not dropout and not odd
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plain and attention_mask is not None and _is_token_on_device(query):
        grouped = (query * scale).view(1, key.shape[1], -1, 1, query.shape[-1])  # or float16 may overflow
        return _one(grouped, key, value, attention_mask, 1.0, keys).transpose(1, 2), None
    if not plain or not is_ours(query.device, query.dtype) or (causal and queries != keys):
        more |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        left: tuple[Tensor, None] = torch_attention(module, query, key, value, attention_mask, **more)
        return left
    if takes(query, key, value, attention_mask):
        return attend_native(query, key, value, attention_mask, scale), None
    return _in_blocks(query, key, value, attention_mask, scale, causal=causal), None


def _is_token_on_device(query: Tensor) -> bool:
    """Whether it is one token's, elsewhere than on a CPU: with a mask, torch would copy its keys for each head."""
    return query.shape[0] == query.shape[2] == 1 and not on_cpu(query.device)


def _in_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, *, causal: bool
) -> Tensor:
    """-> [B, Q, H, V]. Softmax in float32, like transformers' eager attention."""
    batch, heads, queries, size = query.shape
    groups, length = key.shape[1], key.shape[2]
    key, value = with_room(key), with_room(value)
    grouped = query.reshape(batch, groups, heads // groups, queries, size)
    if queries == 1:
        return _one(grouped, key, value, mask, scale, length).transpose(1, 2)
    step = _rows(batch * heads, key.shape[2])
    attended = query.new_empty(batch, queries, heads, value.shape[-1])
    for start in range(0, queries, step):
        rows = min(step, queries - start)
        used = min(length, start + rows) if causal else length
        seen = min(key.shape[2], columns(used + -used % _SEEN if used > _SEEN else used)) if causal else key.shape[2]
        block = F.pad(grouped[:, :, :, start : start + rows], (0, 0, 0, -rows % _FILL))
        scores = block.flatten(2, 3) @ key[:, :, :seen].transpose(2, 3)  # [B, KV, H / KV * rows, seen]
        scores = scores.view(batch, heads, -1, seen)[:, :, :rows, :used].float().mul_(scale)
        if causal:
            scores[..., start:used].add_(_triangle(rows, scores.device))
        elif mask is not None:
            scores = _masked(scores, mask[:, :, start : start + rows, :length])
        weights = F.pad(scores.softmax(dim=-1).to(value.dtype), (0, seen - used, 0, -rows % _FILL))
        out = weights.view(batch, groups, -1, seen) @ value[:, :, :seen]
        attended[:, start : start + rows] = out.view(batch, heads, -1, value.shape[-1])[:, :, :rows].transpose(1, 2)
    return attended


def _rows(heads: int, length: int) -> int:
    """Queries in a block: few enough that its scores stay small, whatever the context."""
    return max(16, min(128, SCORES // (heads * length) // 16 * 16))


def _one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, length: int) -> Tensor:
    """A single query [B, KV, H / KV, 1, D] of `length` keys, of which there are more -> [B, H, 1, V]."""
    batch, groups, shared, _, _ = query.shape
    scores = (query.flatten(2, 3) @ key.transpose(2, 3)).float().mul_(scale)  # [B, KV, H / KV, columns]
    scores[..., length:] = -torch.inf
    if mask is not None:
        scores = scores.view(batch, groups * shared, 1, -1)
        scores[..., :length] = _masked(scores[..., :length], mask[..., :length])
    weights = scores.view(batch, groups, shared, -1).softmax(dim=-1).to(value.dtype)
    return (weights @ value).view(batch, groups * shared, 1, -1)


@lru_cache(maxsize=8)
def _triangle(rows: int, device: torch.device) -> Tensor:
    """[rows, rows] float32 to add: no query sees the keys after its own."""
    return torch.full((rows, rows), -torch.inf, device=device).triu(1)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """scores [B, H, Q, L]; mask [B or 1, H or 1, Q, L], of booleans (what may be seen) or to be added."""
    # Not minus infinity: a query that may see nothing is padding, and must not become NaN.
    least = torch.finfo(scores.dtype).min
    return scores.masked_fill_(~mask, least) if mask.dtype == torch.bool else scores.add_(mask)


def use_products(model: PreTrainedModel) -> None:
    """Lets this model's modules, and no other model's, attend so where they would call torch's kernel."""
    for module in model.modules():
        vars(module)[_OURS] = True
    use_attention(attend)
