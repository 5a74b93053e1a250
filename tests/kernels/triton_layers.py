"""Layers of random experts in the slots of a slab, for the Triton kernels, and what they should give."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import Array, Layout, Matrix, Projection, aligned
from moe_local.experts.device_table import NOWHERE, in_ram
from moe_local.formats.records import decode_bias, decode_projection
from moe_local.formats.registry import packable
from moe_local.kernels.gating import Gating
from moe_local.kernels.triton_experts import TritonExperts
from moe_local.kernels.triton_layout import place
from moe_local.memory.accelerator import Accelerator
from moe_local.memory.slab import Slab
from tests.kernels.experts import ACTIVATIONS

ENCODINGS = {
    "int4-32": Encoding("int4", (("group", 32),)),
    "int4-64": Encoding("int4", (("group", 64),)),
    "int4-128": Encoding("int4", (("group", 128),)),
    "int8": Encoding("int8"),
    "nf4": Encoding("nf4"),
    "fp4": Encoding("nf4", (("table", "fp4"),)),
    "mxfp4": Encoding("mxfp4"),
    "nvfp4": Encoding("nvfp4"),
    "nvfp4-divides": Encoding("nvfp4", (("divides", 1),)),
    "fp8": Encoding("fp8", (("block", 128),)),
    "fp8-rows": Encoding("fp8"),
    "bf16": Encoding("bf16"),
    "fp16": Encoding("fp16"),
    "fp32": Encoding("fp32"),
}
ALPHA, LIMIT = 1.702, 0.8  # such that clamping is seen


def clamped(*, interleaved: bool) -> Gating:
    return Gating("clamped_swiglu", interleaved=interleaved, alpha=ALPHA, limit=LIMIT)


@dataclass
class Layer:
    """`count` random experts of a format in a slab with more slots than that, in no order."""

    encoding: Encoding
    gating: Gating = field(default_factory=lambda: Gating("silu"))
    hidden: int = 128
    inner: int = 256
    count: int = 6
    bias: torch.dtype | None = None
    halves: bool = False  # gate and up are two matrices
    transposed: bool = False  # plain matrices lie as [in, out]
    device: str = "cpu"

    def __post_init__(self) -> None:
        outputs = self.inner * (2 if self.gating.gated else 1)
        parts = [(self.inner, self.hidden)] * 2 if self.halves else [(outputs, self.hidden)]
        self._position = 64  # not at the beginning
        self._filled: list[tuple[Array, Tensor]] = []
        up, down = self._projection(parts), self._projection([(self.hidden, self.inner)])
        name = "gate_up_proj" if self.gating.gated else "up_proj"
        self.layout = Layout({name: up, "down_proj": down}, self._position)
        self.slab = Slab(self.count + 3, self._position, torch.device(self.device))
        self.slots = torch.randperm(len(self.slab))[: self.count].tolist()
        self.fill()

    def fill(self) -> None:
        """Other numbers in every slot."""
        self._numbers = []
        for slot in self.slots:
            record = torch.full((self.layout.size,), 0xFF, dtype=torch.uint8)
            self._position, self._filled = 64, []
            for projection in self.layout.projections.values():
                self._projection([matrix.shape for matrix in projection.matrices])
            for array, numbers in self._filled:
                raw = numbers.contiguous().flatten().view(torch.uint8)
                record[array.position : array.position + raw.numel()] = raw
            self.slab[slot].copy_(record)
            up, down = self.layout.projections.values()
            self._numbers.append(
                (
                    decode_projection(up, record, torch.float32),
                    decode_bias(up, record),
                    decode_projection(down, record, torch.float32),
                    decode_bias(down, record),
                )
            )

    def _projection(self, shapes: list[tuple[int, int]]) -> Projection:
        matrices = tuple(self._matrix(shape) for shape in shapes)
        bias = None
        if self.bias is not None:
            outputs = sum(shape[0] for shape in shapes)
            bias = self._array(torch.randn(outputs).to(self.bias), (1,))
        return Projection(matrices, bias=bias)

    def _matrix(self, shape: tuple[int, int]) -> Matrix:
        weight = torch.randn(shape) / shape[1] ** 0.5
        arrays = packable(self.encoding).encode(weight)
        if self.transposed:
            placed = self._array(arrays["weight"].T.contiguous(), (1, shape[0]))
            return Matrix(
                self.encoding, shape, {"weight": Array(placed.dtype, shape, placed.strides, placed.position)}
            )
        return Matrix(self.encoding, shape, {name: self._array(array) for name, array in arrays.items()})

    def _array(self, numbers: Tensor, strides: tuple[int, ...] | None = None) -> Array:
        array = Array(numbers.dtype, tuple(numbers.shape), strides or numbers.stride(), self._position)
        self._filled.append((array, numbers))
        self._position = aligned(self._position + numbers.nbytes)
        return array

    def inputs(self, tokens: int, choices: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """hidden, index with some choices of no expert, weights."""
        index = torch.rand(tokens, self.count + 2).argsort(dim=1)[:, :choices].contiguous().clamp(max=self.count)
        found = torch.randn(tokens, self.hidden, dtype=dtype), index, torch.rand(tokens, choices, dtype=dtype)
        return tuple(each.to(self.device) for each in found)  # type: ignore[return-value]

    def table(self) -> Tensor:
        """In which slot each expert lies, int32 [count]."""
        return torch.tensor(self.slots, dtype=torch.int32, device=self.device)

    def wanted(self, hidden: Tensor, index: Tensor, weights: Tensor, without: tuple[int, ...] = ()) -> Tensor:
        """The layer in float32 on a CPU, a token and a choice at a time."""
        hidden, index, weights = (each.cpu() for each in (hidden, index, weights))
        out = torch.zeros(len(hidden), self.hidden)
        for token, choice in (index < self.count).nonzero().tolist():
            expert = int(index[token, choice])
            if expert not in without:
                up, up_bias, down, down_bias = self._numbers[expert]
                z = self._activated(_linear(hidden[token].float(), up, up_bias))
                out[token] += weights[token, choice].float() * _linear(z, down, down_bias)
        return out

    def _activated(self, z: Tensor) -> Tensor:
        gating = self.gating
        if not gating.gated:
            return ACTIVATIONS[gating.activation](z)
        gate, up = (z[::2], z[1::2]) if gating.interleaved else z.chunk(2)
        if gating.activation != "clamped_swiglu":
            return ACTIVATIONS[gating.activation](gate) * up
        gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
        return (up + 1) * gate * torch.sigmoid(ALPHA * gate)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, None if bias is None else bias.float())


def experts_of(layer: Layer) -> TritonExperts:
    """The layer's experts for the kernels, wherever its slab lies."""
    placed = place(layer.layout, layer.gating)
    assert placed is not None
    return TritonExperts(layer.slab, {id(layer.layout): placed})


def given(layer: Layer, inputs: tuple[Tensor, Tensor, Tensor], waves: int = 1) -> Tensor:
    """What a pass over the layer gives, its experts put in so many waves, the last ones first."""
    hidden, index, weights = inputs
    step = experts_of(layer).start(hidden, index, layer.count)
    size = max(1, -(-len(step.experts) // waves))
    for start in reversed(range(0, len(step.experts), size)):
        wave = step.experts[start : start + size]
        step.put(layer.layout, wave, [layer.slots[expert] for expert in wave])
    return step.sum(weights)


def check(layer: Layer, tokens: int, choices: int, dtype: torch.dtype = torch.float32, waves: int = 1) -> None:
    """A pass gives what the numbers as their format decodes them give; so does one from a table on the device."""
    inputs = layer.inputs(tokens, choices, dtype)
    wanted, found = layer.wanted(*inputs), given(layer, inputs, waves)
    assert found.dtype == dtype
    near = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
    torch.testing.assert_close(found.cpu().float(), wanted, **near)
    assert torch.equal(experts_of(layer).run(*inputs, layer.table()), found)


def check_in_ram(layer: Layer, choices: int, dtype: torch.dtype = torch.float32) -> None:
    """A token's pass gives the same with every second expert in RAM only, and one in neither left out."""
    (hidden, index, weights), gone, size = layer.inputs(1, choices, dtype), 1, layer.layout.size
    wanted = layer.wanted(hidden, index, weights, without=(gone,))
    below = Slab(layer.count, layer.slab.slot_size, torch.device("cpu"))
    if layer.device != "cpu":
        below.pin(Accelerator(torch.device(layer.device)))
    table = layer.table().tolist()
    for expert in range(0, layer.count, 2):
        held = layer.slab[layer.slots[expert]][:size]
        below[layer.count - 1 - expert][:size].copy_(held)
        held.fill_(0xFF)
        table[expert] = in_ram(layer.count - 1 - expert)
    table[gone] = NOWHERE
    kernels = TritonExperts(layer.slab, experts_of(layer)._layouts, below)
    found = kernels.run(hidden, index, weights, torch.tensor(table, dtype=torch.int32, device=layer.device))
    near = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
    torch.testing.assert_close(found.cpu().float(), wanted, **near)
    below.close()
