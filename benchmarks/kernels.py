"""From how many rows on a matrix is better decoded first: the kernels of int8 and int4 against decode and matmul.

    python benchmarks/kernels.py [--threads 2] [--out 1536] [--in 2048]

Each measurement walks over copies that do not fit the caches. `INT4_ROWS` and `INT8_ROWS` in
`moe_local/kernels/cpu.py` are from this.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from moe_local.formats.registry import format_of, packed_encoding
from moe_local.kernels.decode import matmul

ROWS = (1, 4, 16, 32, 64, 96, 128, 192, 256, 512)
COLD = 200 << 20  # bytes walked over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=int, default=1536)
    parser.add_argument("--in", type=int, default=2048, dest="width")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in ("int8", "int4"):
        compare(name, (given.out, given.width))


def compare(name: str, shape: tuple[int, int]) -> None:
    """Prints microseconds of both ways for every count of rows."""
    scheme = format_of(packed_encoding(name, 64))
    arrays = scheme.encode(torch.randn(shape))  # type: ignore[attr-defined]
    size = sum(array.numel() * array.element_size() for array in arrays.values())
    copies = [{key: array.clone() for key, array in arrays.items()} for _ in range(max(1, COLD // size))]
    kernels = [kernel(name, copy) for copy in copies]
    print(f"{name}, {shape[0]} x {shape[1]}\n{'rows':>6}{'kernel us':>12}{'decode us':>12}")
    for rows in ROWS:
        x = torch.randn(rows, shape[1], dtype=torch.bfloat16)
        packed = time([lambda k=k, x=x: k(x) for k in kernels])
        decoded = time([lambda c=c, x=x: matmul(x, scheme.decode(c, shape, x.dtype)) for c in copies])
        print(f"{rows:6}{packed * 1e6:12.0f}{decoded * 1e6:12.0f}")


def kernel(name: str, arrays: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    weight, scales = arrays["weight"], arrays["scales"]
    if name == "int8":
        return lambda x: torch.ops.aten._weight_int8pack_mm(x, weight, scales)
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, 64, scales)


def time(calls: list[Callable[[], object]], limit: float = 0.5) -> float:
    """Median seconds of one call."""
    for call in calls[:3]:
        call()
    found: list[float] = []
    until = perf_counter() + limit
    while perf_counter() < until:
        for call in calls:
            began = perf_counter()
            call()
            found.append(perf_counter() - began)
            if began > until:
                break
    return median(found)


if __name__ == "__main__":
    main()
