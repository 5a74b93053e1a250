"""Kernels by themselves: ours beside decoding with cuBLAS and bitsandbytes, on weights that no cache holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.links import DEVICE, seconds_of
from benchmarks.gpu.measuring import Say
from benchmarks.gpu.scale import Scale
from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import Array, Layout, Matrix, Projection, aligned
from moe_local.formats.registry import format_of, packable, packed_encoding
from moe_local.kernels import triton_dense, triton_experts
from moe_local.kernels.base import Multiply
from moe_local.kernels.decode import DECODE
from moe_local.kernels.gating import Gating
from moe_local.kernels.matrix import bind, kernel_for
from moe_local.kernels.triton_experts import TritonExperts
from moe_local.memory.slab import Slab
from moe_local.store.encode import encode_record, packed_layout

GROUP = 64
_EVER = 1 << 30
_FEW, _MANY_ROWS = 4, 256
_STD = 0.02
PLAIN = Encoding("bf16")


def matrices(say: Say, name: str, scale: Scale) -> None:
    """GB/s of weights and GFLOP/s by one matrix of a format, ours and decoded; `name` is the format's."""
    encoding, shape = packed_encoding(name, GROUP), scale.matrix
    say(kernel=kernel_for(encoding, DEVICE, shape).name)
    form = format_of(encoding)
    arrays = packable(encoding).encode(torch.empty(shape).normal_(0, _STD))
    size = sum(array.nbytes for array in arrays.values())
    copies = [{key: array.to(DEVICE) for key, array in arrays.items()} for _ in range(-(-scale.ring // size))]
    ours = [bind(encoding, each, shape) for each in copies]
    decoded = [made for each in copies if (made := DECODE.bind(form, each, shape, False)) is not None]
    for rows in scale.rows:
        x = torch.empty(rows, shape[1], device=DEVICE, dtype=torch.bfloat16).normal_()
        for kind, ring in (("ours", ours), ("decoded", decoded)):
            say(**_figures(f"{kind}_{rows}", size, shape, rows, time_ring(_enough(ring, rows), x, scale)))


def _figures(name: str, size: int, shape: tuple[int, int], rows: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_us": round(seconds * 1e6, 2),
        f"{name}_gb_per_second": round(size / seconds / 1e9, 2),
        f"{name}_gflops": round(2 * rows * shape[0] * shape[1] / seconds / 1e9, 1),
    }


def _enough(ring: Sequence[Multiply], rows: int) -> Sequence[Multiply]:
    """Of a ring: many rows are bound by arithmetic, wherever the weights are."""
    return ring[:_FEW] if rows >= _MANY_ROWS else ring


def time_ring(ring: Sequence[Multiply], x: Tensor, scale: Scale) -> float:
    """Seconds of one multiplication, walking over copies of a matrix."""

    def around() -> None:
        for multiply in ring:
            multiply(x)

    return seconds_of(_without_host(around) if scale.graphs else around, scale.repeats) / len(ring)


def _without_host(call: Callable[[], object]) -> Callable[[], object]:
    """The same kernels as one graph, which has no host between them."""
    call()
    torch.cuda.synchronize()
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], object] = graph.replay
    return replay


def bitsandbytes(say: Say, scale: Scale) -> None:
    """bitsandbytes' 4-bit kernels by the same matrix: gemv_4bit for one row, what it chooses for more."""
    import bitsandbytes as library
    from bitsandbytes import functional

    multiply: Any = vars(library)["matmul_4bit"]
    shape = scale.matrix
    weight = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16).normal_(0, _STD)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    size = packed.nbytes + state.absmax.nbytes
    copies = [packed.clone() for _ in range(-(-scale.ring // size))]
    for rows in scale.rows:
        x = torch.empty(rows, shape[1], device=DEVICE, dtype=torch.bfloat16).normal_()
        if rows == 1:
            ring = [lambda x, each=each: functional.gemv_4bit(x, each.t(), state=state) for each in copies]
        else:
            ring = [lambda x, each=each: multiply(x, each.t(), state) for each in copies]
        say(**_figures(f"bitsandbytes_{rows}", size, shape, rows, time_ring(_enough(ring, rows), x, scale)))


def crossing(say: Say, name: str, scale: Scale) -> None:
    """Where vectors give way to tiles: microseconds of both, by rows, for a matrix and for a layer of experts."""
    _assert_triton(name, scale)
    encoding, shape = packed_encoding(name, GROUP), scale.matrix
    arrays = packable(encoding).encode(torch.empty(shape).normal_(0, _STD))
    size = sum(array.nbytes for array in arrays.values())
    on_device = ({key: array.to(DEVICE) for key, array in arrays.items()} for _ in range(-(-scale.ring // size)))
    ring = [bind(encoding, each, shape) for each in on_device]
    for rows in scale.crossing:
        x = torch.empty(rows, shape[1], device=DEVICE, dtype=torch.bfloat16).normal_()
        for kind, most in (("vector", _EVER), ("tiles", 0)):
            with mock.patch.object(triton_dense, "_VECTOR_ROWS", most):
                say(**{f"matrix_{kind}_{rows}_us": round(time_ring(ring, x, scale) * 1e6, 2)})
    for tokens in scale.crossing:
        for kind in ("vector", "tiles"):
            with _experts_by(kind):
                found = _time_layer(encoding, tokens, scale)
            say(**{f"experts_{kind}_{tokens}_us": round(found[0] * 1e6, 2)})


@contextmanager
def _experts_by(kind: str) -> Iterator[None]:
    """Within it, choices are multiplied each by itself, or those of an expert together, however many there are."""
    original = triton_experts._Work.__init__

    def begin(self: Any, *args: Any) -> None:
        original(self, *args)
        self.few = kind == "vector"
        between = torch.float32 if self.few else self.hidden.dtype
        self._inner, self._outputs = self._inner.to(between), self._outputs.to(between)

    with mock.patch.object(triton_experts._Work, "__init__", begin):
        yield


def layers(say: Say, name: str, scale: Scale) -> None:
    """A layer of experts of a format, hits only and without host: GB/s of the experts' records and GFLOP/s."""
    _assert_triton(name, scale)
    encoding = packed_encoding(name, GROUP)
    _, top_k, hidden, inner = scale.expert
    for tokens in scale.rows:
        seconds, size = _time_layer(encoding, tokens, scale)
        operations = 2 * tokens * top_k * 3 * hidden * inner
        say(
            **{
                f"experts_{tokens}_us": round(seconds * 1e6, 2),
                f"experts_{tokens}_gb_per_second": round(size / seconds / 1e9, 2),
                f"experts_{tokens}_gflops": round(operations / seconds / 1e9, 1),
            }
        )


def _assert_triton(name: str, scale: Scale) -> None:
    """Raises RuntimeError where no Triton kernels multiply by a format here."""
    kernel = kernel_for(packed_encoding(name, GROUP), DEVICE, scale.matrix).name
    if kernel != "triton":
        raise RuntimeError(f"no Triton kernels here: {name} is multiplied by {kernel}")


def _time_layer(encoding: Encoding, tokens: int, scale: Scale) -> tuple[float, int]:
    """Seconds of a pass of so many tokens, and bytes of the different experts that they choose."""
    count, top_k, hidden, _ = scale.expert
    experts, size = layer_of(encoding, scale)
    x = torch.empty(tokens, hidden, device=DEVICE, dtype=torch.bfloat16).normal_()
    weights = torch.full((tokens, top_k), 1 / top_k, device=DEVICE, dtype=torch.bfloat16)
    # Other experts in each pass of a ring, or a cache would hold the few of a single token.
    passes = -(-count // (tokens * top_k))
    index = torch.stack([torch.randperm(count)[:top_k] for _ in range(tokens * passes)]).view(passes, tokens, top_k)
    distinct = sum(len(each.unique()) for each in index) / passes
    index, slots = index.to(DEVICE), torch.arange(count, dtype=torch.int32).to(DEVICE)
    ring = [lambda x, each=each: experts.run(x, each, weights, slots) for each in index]
    return time_ring(ring, x, scale), round(distinct * size)


def layer_of(encoding: Encoding, scale: Scale) -> tuple[TritonExperts, int]:
    """A layer of equal experts in slots of the device, in order, and the bytes of one.

    Raises RuntimeError where the Triton kernels do not take them.
    """
    count, _, hidden, inner = scale.expert
    source = _plain_layout(hidden, inner)
    layout = packed_layout(source, lambda _: encoding)
    numbers = torch.empty(source.size // 2).normal_(0, _STD).to(torch.bfloat16)
    record = torch.cat(encode_record(source, layout, numbers.view(torch.uint8)))
    slab = Slab(count, layout.size, DEVICE)
    for slot in range(count):
        slab[slot].copy_(record)
    made = triton_experts.triton_experts(slab, [layout], Gating("silu"))
    if made is None:
        raise RuntimeError(f"the Triton kernels do not take experts in {encoding}")
    return made, layout.size


def _plain_layout(hidden: int, inner: int) -> Layout:
    position, projections = 0, {}
    for name, shape in (("gate_up_proj", (2 * inner, hidden)), ("down_proj", (hidden, inner))):
        array = Array(torch.bfloat16, shape, (shape[1], 1), position)
        projections[name] = Projection((Matrix(PLAIN, shape, {"weight": array}),))
        position = aligned(position + 2 * shape[0] * shape[1])
    return Layout(projections, position)
