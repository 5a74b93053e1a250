"""Experts for the native kernels, run by them and by a plain loop of torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.registry import packable
from moe_local.kernels import native
from moe_local.kernels.cpu import native_kind

ALPHA, LIMIT = 1.702, 7.0  # gpt-oss's
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
}


def activations() -> list[str]:
    return [*ACTIVATIONS, "clamped_swiglu"]


@dataclass
class Experts:
    """`count` random experts, each a record of up (or gate and up) and down, with biases of a type or none."""

    activation: str
    format: str
    gated: bool = True
    interleaved: bool = False
    bias: torch.dtype | None = None
    hidden: int = 128
    inner: int = 192
    count: int = 6
    group: int = 64
    records: list[Tensor] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        encoding = Encoding(self.format, (("group", self.group),) if self.format == "int4" else ())
        self.form = packable(encoding)
        outputs = 2 * self.inner if self.gated else self.inner
        self.shapes = {"up": (outputs, self.hidden), "down": (self.hidden, self.inner)}
        for _ in range(self.count):
            self._add()

    def _add(self) -> None:
        parts, weights, self.offsets, size = [], {}, {}, 0
        for name, shape in self.shapes.items():
            arrays = self.form.encode(torch.randn(shape) / shape[1] ** 0.5)
            weights[name] = self.form.decode(arrays, shape, torch.float32)
            found = [arrays["blocks"].flatten()]
            if self.bias is not None:
                bias = torch.randn(shape[0]).to(self.bias)
                weights[f"{name}_bias"] = bias.float()
                found.append(bias.view(torch.uint8))
            for each, part in zip((name, f"{name}_bias"), found, strict=False):
                self.offsets[each] = size
                parts.append(F.pad(part, (0, -len(part) % 64)))
                size += len(parts[-1])
        self.records.append(torch.cat(parts))
        self.weights.append(weights)

    def layout(self, **changed: object) -> object:
        """The kernels' layout of a record, or one with something changed."""
        from moe_local.kernels.native._native import ExpertLayout

        size = self.records[0].nbytes
        given = {
            "up": self._projection("up"), "down": self._projection("down"), "activation": self.activation,
            "gated": self.gated, "interleaved": self.interleaved, "alpha": ALPHA, "limit": LIMIT, "size": size,
        }  # fmt: skip
        return ExpertLayout(**{**given, **changed})  # type: ignore[arg-type]

    def _projection(self, name: str) -> object:
        from moe_local.kernels.native._native import Projection

        found = native_kind(self.form, self.shapes[name])
        assert found is not None
        bias_offset = self.offsets.get(f"{name}_bias", -1)
        bias_type = native.TYPES[self.bias or torch.float32]
        return Projection(
            found.kind,
            *self.shapes[name],
            found.group,
            1,
            1,
            [[self.offsets[name], -1, -1]],
            bias_offset,
            bias_type,
            self.records[0].nbytes,
        )

    def inputs(self, tokens: int, choices: int) -> tuple[Tensor, Tensor, Tensor]:
        """x [tokens, hidden], index [tokens, choices] of experts, some of them none, and weights like it."""
        places = torch.rand(tokens, self.count + 2).argsort(dim=1)[:, :choices].contiguous()
        return torch.randn(tokens, self.hidden), places, torch.rand(tokens, choices)

    def run(self, x: Tensor, index: Tensor, weights: Tensor, *, exact: bool = False) -> Tensor:
        """The layer by the native kernels [tokens, hidden], in x's type; in two calls, the last experts first."""
        from moe_local.kernels.native._native import Routing, run_experts, sum_choices

        machine, kind = native.machine(), native.TYPES[x.dtype]
        routing = Routing(index.data_ptr(), index.nbytes, *index.shape, self.count)
        outputs = x.new_full((index.numel(), self.hidden), torch.nan)
        half = len(routing.chosen) // 2
        for chosen in (routing.chosen[half:], routing.chosen[:half]):
            records = [self.records[expert].data_ptr() for expert in chosen]
            run_experts(
                machine, self.layout(), routing, exact, chosen, records,
                self.records[0].nbytes, x.data_ptr(), x.nbytes, kind, outputs.data_ptr(), outputs.nbytes, kind,
            )  # fmt: skip
        out = torch.empty_like(x)
        sum_choices(
            machine, routing, self.hidden, outputs.data_ptr(), outputs.nbytes, weights.data_ptr(), weights.nbytes,
            native.TYPES[weights.dtype], out.data_ptr(), out.nbytes, kind,
        )  # fmt: skip
        return out

    def loop(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """The same in float32, a token and a choice at a time."""
        out = torch.zeros(len(x), self.hidden)
        for token, choice in (index < self.count).nonzero().tolist():
            expert = self.weights[int(index[token, choice])]
            z = F.linear(x[token].float(), expert["up"], expert.get("up_bias"))
            y = F.linear(self._activate(z), expert["down"], expert.get("down_bias"))
            out[token] += weights[token, choice].float() * y
        return out

    def _activate(self, z: Tensor) -> Tensor:
        if not self.gated:
            return ACTIVATIONS[self.activation](z)
        gate, up = (z[::2], z[1::2]) if self.interleaved else z.chunk(2)
        if self.activation != "clamped_swiglu":
            return ACTIVATIONS[self.activation](gate) * up
        gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
        return (up + 1) * gate * torch.sigmoid(ALPHA * gate)
