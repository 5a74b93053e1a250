"""Unquantised records: bf16, fp16 or fp32 matrices as the checkpoint holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_local.checkpoint.record import Field, Layout


@dataclass(frozen=True, slots=True)
class Projection:
    """`x @ weight.T + bias`, its outputs put in the model's `order` where the file has another."""

    weight: Tensor  # [out, in], any strides
    bias: Tensor | None  # [out]
    order: Tensor | None  # [out] int64

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in] -> [rows, out] in x's dtype."""
        y = F.linear(x, self.weight.to(x.dtype))
        if self.order is not None:
            y = y[:, self.order]
        return y if self.bias is None else y + self.bias.to(x.dtype)


@dataclass(frozen=True, slots=True)
class PlainExpert:
    """One expert in a slot, ready to multiply. Its tensors are views of the slot: no copy, no allocation."""

    up: Projection  # or gate and up together
    down: Projection

    @property
    def width(self) -> int:
        """Features of the output."""
        return self.down.weight.shape[0]

    def __call__(self, module: Any, x: Tensor) -> Tensor:
        """x [rows, hidden] -> [rows, hidden], unweighted.

        `module` is transformers' experts module: its activation, gate and norm are used as they are.
        """
        hidden = self.up(x)
        hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
        out: Tensor = self.down(hidden)
        if module.has_post_expert_norm:
            out = module.post_expert_norm(out)
        return out


def open_plain(layout: Layout, slot: Tensor) -> PlainExpert:
    """Views of a slot (uint8 [bytes], holding a record of `layout`) as an expert."""
    up = "gate_up_proj" if "gate_up_proj" in layout.fields else "up_proj"
    return PlainExpert(_projection(layout, up, slot), _projection(layout, "down_proj", slot))


def _projection(layout: Layout, name: str, slot: Tensor) -> Projection:
    field, bias = layout.fields[name], layout.fields.get(f"{name}_bias")
    order = None if field.order is None else torch.tensor(field.order, device=slot.device)
    return Projection(_view(field, slot), None if bias is None else _view(bias, slot), order)


def _view(field: Field, slot: Tensor) -> Tensor:
    typed = slot[: slot.numel() // field.dtype.itemsize * field.dtype.itemsize].view(field.dtype)
    start = typed.storage_offset() + field.position // field.dtype.itemsize
    return typed.as_strided(field.shape, field.strides, start)
