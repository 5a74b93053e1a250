"""How fast int4 and int8 are multiplied: the native kernels beside torch's own, on weights that no cache holds.

    python benchmarks/kernels.py [--json] [--threads 2] [--gib 1] [--seconds 2]

Experts of Qwen3-30B-A3B's dimensions (hidden 2048, inner 768, int4 in groups of 64) lie in a slab of huge pages, as
they do in a slot; torch's lie in a second one, packed as its kernels want them. A call multiplies by gate and up of
one expert and then by its down, the next call goes on to the next expert, and both kinds take turns. Figures are
medians, in GB/s (10^9 bytes) of weights and GOP/s (10^9 multiplications and additions). `read` is what a sum over the
same memory reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from moe_local.formats.base import HasAffine
from moe_local.formats.int8 import Int8Rows
from moe_local.formats.registry import packable, packed_encoding
from moe_local.kernels import native
from moe_local.kernels.base import Multiply
from moe_local.kernels.matrix import bind
from moe_local.memory.slab import Slab

HIDDEN, INNER, GROUP = 2048, 768, 64
SHAPES = ((2 * INNER, HIDDEN), (HIDDEN, INNER))  # gate and up, down: [out, in]
NUMBERS = sum(out * width for out, width in SHAPES)
ROWS = (1, 4, 8, 32, 128)
CALLS = 16  # in a sample

Expert = tuple[Multiply, ...]  # by each of SHAPES
Bind = Callable[[Mapping[str, Tensor], tuple[int, int]], Multiply]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gib", type=float, default=1.0, help="of weights that each kind walks over")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a kind and a number of rows")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if why_not := native.missing():
        parser.error(f"there are no native kernels: {why_not}; {native.REMEDY}")
    found = measure(int(given.gib * (1 << 30)), given.seconds)
    print(json.dumps(found, indent=2) if given.json else table(found))


def measure(size: int, seconds: float) -> dict[str, Any]:
    """Every figure, walking over `size` bytes of experts of each kind."""
    found: dict[str, Any] = {"processor": native.machine().processor, "threads": native.machine().threads}
    for name in ("int4", "int8"):
        ours, theirs = Ring(size, *native_expert(name)), Ring(size, *torch_expert(name))
        found.setdefault("read", ours.read_speed())
        found[name] = [compare(rows, ours, theirs, seconds) for rows in ROWS]
    return found


class Ring:
    """Copies of one expert in the slots of a slab, multiplied by one after the other."""

    def __init__(self, size: int, matrices: list[dict[str, Tensor]], how: Bind) -> None:
        arrays = [array for matrix in matrices for array in matrix.values()]
        self.expert_bytes = sum(array.nbytes for array in arrays)
        slot = sum(array.nbytes + -array.nbytes % 64 for array in arrays)
        self._slab = Slab(-(-size // slot), slot + -slot % 4096, torch.device("cpu"))
        self._experts = [self._put(at, matrices, how) for at in range(len(self._slab))]
        self._next = 0

    def _put(self, at: int, matrices: list[dict[str, Tensor]], how: Bind) -> Expert:
        position, made = 0, []
        for matrix, shape in zip(matrices, SHAPES, strict=True):
            lies = {}
            for name, array in matrix.items():
                raw = self._slab[at][position : position + array.nbytes]
                lies[name] = raw.view(array.dtype).view(array.shape).copy_(array)
                position += array.nbytes + -array.nbytes % 64
            made.append(how(lies, shape))
        return tuple(made)

    def sample(self, inputs: tuple[Tensor, ...]) -> float:
        """Seconds of a call, of so many that walk on."""
        began = perf_counter()
        for _ in range(CALLS):
            expert = self._experts[self._next]
            self._next = (self._next + 1) % len(self._experts)
            for multiply, x in zip(expert, inputs, strict=True):
                multiply(x)
        return (perf_counter() - began) / CALLS

    def read_speed(self) -> float:
        """GB/s of a sum over all of the memory."""
        numbers = self._slab[0].as_strided((self._slab.nbytes,), (1,)).view(torch.int64)
        times = []
        for _ in range(7):
            began = perf_counter()
            numbers.sum()
            times.append(perf_counter() - began)
        return round(self._slab.nbytes / median(times) / 1e9, 1)


def compare(rows: int, ours: Ring, theirs: Ring, seconds: float) -> dict[str, float]:
    """GB/s of weights and GOP/s of both, by turns."""
    inputs = tuple(torch.randn(rows, width, dtype=torch.bfloat16) for _, width in SHAPES)
    times: dict[str, list[float]] = {"native": [], "torch": []}
    for ring in (ours, theirs):
        ring.sample(inputs)
    until = perf_counter() + 2 * seconds
    while perf_counter() < until or not times["torch"]:
        times["native"].append(ours.sample(inputs))
        times["torch"].append(theirs.sample(inputs))
    mine, other = median(times["native"]), median(times["torch"])
    return {
        "rows": rows,
        "native": round(ours.expert_bytes / mine / 1e9, 2),
        "torch": round(theirs.expert_bytes / other / 1e9, 2),
        "native_gops": round(2 * NUMBERS * rows / mine / 1e9),
        "torch_gops": round(2 * NUMBERS * rows / other / 1e9),
    }


def native_expert(name: str) -> tuple[list[dict[str, Tensor]], Bind]:
    """An expert as it lies in a slot, and the product's own way to multiply by it."""
    encoding = packed_encoding(name, GROUP)
    matrices = [packable(encoding).encode(torch.randn(shape) / 50) for shape in SHAPES]
    return matrices, lambda arrays, shape: bind(encoding, arrays, shape)


def torch_expert(name: str) -> tuple[list[dict[str, Tensor]], Bind]:
    """The same for torch's kernels, in their layouts."""
    if name == "int8":
        kernel = torch.ops.aten._weight_int8pack_mm.default
        matrices = [Int8Rows().encode(torch.randn(shape) / 50) for shape in SHAPES]
        return matrices, lambda arrays, shape: lambda x: kernel(x, arrays["weight"], arrays["scales"])
    packed = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return [
        _torch_int4(shape) for shape in SHAPES
    ], lambda arrays, shape: lambda x: packed(x, arrays["weight"], GROUP, arrays["scales"])


def _torch_int4(shape: tuple[int, int]) -> dict[str, Tensor]:
    """`weight` in blocks of as many rows as two registers of the processor hold, `scales` [groups, out, 2]."""
    form = packable(packed_encoding("int4", GROUP))
    assert isinstance(form, HasAffine)
    affine = form.affine(form.encode(torch.randn(shape) / 50), shape)
    assert affine is not None
    offsets = (8 - affine.zeros) * affine.scales
    scales = torch.stack([affine.scales, offsets], dim=2).transpose(0, 1).to(torch.bfloat16)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(affine.codes.int(), 1)
    return {"weight": weight, "scales": scales.contiguous()}


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{found['processor']}, {found['threads']} threads; memory is read at {found['read']} GB/s"]
    for name in ("int4", "int8"):
        lines += ["", f"{name:6}{'native GB/s':>14}{'torch GB/s':>14}{'native GOP/s':>14}{'torch GOP/s':>14}"]
        for each in found[name]:
            figures = (each["native"], each["torch"], each["native_gops"], each["torch_gops"])
            lines.append(f"{each['rows']:6}" + "".join(f"{figure:14}" for figure in figures))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
