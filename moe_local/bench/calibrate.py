"""Measuring what a miss costs, uploaded and multiplied by on the CPU, with an expert of a common size."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import Array, Layout, Matrix, Projection
from moe_local.errors import MoeLocalError, UnsupportedError
from moe_local.formats.registry import packed_encoding
from moe_local.kernels import native
from moe_local.kernels.gating import Gating
from moe_local.kernels.native_experts import NativeExperts, native_experts
from moe_local.memory.accelerator import Accelerator
from moe_local.memory.pinned import host_slab
from moe_local.memory.slab import Slab
from moe_local.planning.calibration import Calibration
from moe_local.store.encode import packed_layout
from moe_local.units import MIB

HIDDEN, INNER = 2048, 768  # of Qwen3-30B-A3B's experts
ROWS = (1, 2, 4, 8, 16, 32, 64)
_WALKED = 256 * MIB  # of experts, more than a processor's cache holds
_TOGETHER = 4  # misses of a layer
_TIMES = 15

Report = Callable[[str, float], None]  # (stage, fraction done)


def calibrate(accelerator: Accelerator, report: Report = lambda stage, fraction: None) -> Calibration:
    """Takes some seconds, and 256 MiB of RAM. Raises UnsupportedError where there is nothing to choose between."""
    if not accelerator.has_own_memory:
        raise UnsupportedError("there is no GPU to upload to", remedy="nothing is to be calibrated for --device cpu")
    if why_not := native.missing():
        raise MoeLocalError(f"this CPU has no kernels to multiply with: {why_not}", remedy=native.REMEDY)
    layout = _int4()
    source = host_slab(max(_TOGETHER, _WALKED // layout.size), layout.size, accelerator, lambda note: None)
    try:
        source.memory_of_all.random_(0, 256)
        report("uploads", 0.0)
        upload = _uploads(accelerator, source)
        report("round trips", 0.1)
        round_trip = _round_trip(accelerator)
        kernels = native_experts(source, [layout], Gating("silu"), exact=False)
        assert kernels is not None
        multiply = {}
        for number, rows in enumerate(ROWS):
            report(f"multiplying {rows} rows", 0.2 + 0.8 * number / len(ROWS))
            multiply[rows] = _multiply(kernels, layout, len(source), rows) / layout.size
    finally:
        source.close()
    return Calibration(accelerator.name, torch.get_num_threads(), upload / layout.size, round_trip, multiply)


def _int4() -> Layout:
    """The layout of an expert's record, as packing makes it."""

    def plain(shape: tuple[int, int]) -> Projection:
        array = Array(torch.bfloat16, shape, (shape[1], 1), 0)
        return Projection((Matrix(Encoding("bf16"), shape, {"weight": array}),))

    source = Layout({"gate_up_proj": plain((2 * INNER, HIDDEN)), "down_proj": plain((HIDDEN, INNER))}, 0)
    return packed_layout(source, lambda encoding: packed_encoding("int4"))


def _uploads(accelerator: Accelerator, source: Slab) -> float:
    """Seconds of an upload, of several in a queue."""
    stream = accelerator.copy_stream()
    assert stream is not None
    target = Slab(_TOGETHER, source.slot_size, accelerator.device)
    times = []
    for _ in range(_TIMES):
        accelerator.synchronize()
        began = perf_counter()
        for slot in range(_TOGETHER):
            stream.copy(target[slot], source[slot])
        stream.synchronize()
        times.append((perf_counter() - began) / _TOGETHER)
    return median(times)


def _round_trip(accelerator: Accelerator) -> float:
    """Seconds until a token's hidden states are in RAM, and what came of `_TOGETHER` experts is back."""
    hidden = torch.zeros(1, HIDDEN, dtype=torch.float16).to(accelerator.device)
    times = []
    for _ in range(_TIMES):
        accelerator.synchronize()
        began = perf_counter()
        there = hidden.to("cpu")
        there.expand(_TOGETHER, HIDDEN).contiguous().to(accelerator.device)
        accelerator.synchronize()
        times.append(perf_counter() - began)
    return median(times)


def _multiply(kernels: NativeExperts, layout: Layout, slots: int, rows: int) -> float:
    """Seconds of one expert, of several together, that no cache holds."""
    hidden = torch.randn(rows, HIDDEN).to(torch.bfloat16)
    index = torch.arange(_TOGETHER).repeat(rows, 1)
    times = []
    for turn in range(_TIMES):
        first = turn * _TOGETHER % (slots - _TOGETHER + 1)
        step = kernels.start(hidden, index, _TOGETHER)
        began = perf_counter()
        step.put(layout, range(_TOGETHER), range(first, first + _TOGETHER))
        times.append((perf_counter() - began) / _TOGETHER)
    return median(times)
