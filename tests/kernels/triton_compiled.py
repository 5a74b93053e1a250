"""Compiles every Triton kernel, as layers of real shapes launch it, for the GPUs that people have; needs none.

As a program it takes names of formats and prints a line of JSON for each kernel and GPU: registers and bytes of stack
of a thread (spilled registers are in it), shared memory of a program, and loads of 128 bits in the loops.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from moe_local.kernels import triton_dense, triton_experts
from moe_local.kernels.gating import Gating
from moe_local.kernels.triton_layout import place
from tests.kernels.triton_layers import ENCODINGS, Layer, clamped

TARGETS = (75, 80, 86, 89, 90, 120)
_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
SHAPES = {"qwen3-30b": (2048, 768), "gpt-oss": (2880, 2880)}  # hidden, inner
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]  # kernel, arguments, what is compiled in


def launches(run: Callable[[], object]) -> list[Launch]:
    """What `run` launches, without launching it."""
    seen: list[Launch] = []
    whole = JITFunction.run

    def record(kernel: Any, *arguments: Any, grid: object, warmup: bool, **compiled: Any) -> None:
        seen.append((kernel, arguments, compiled))

    JITFunction.run = record
    try:
        run()
    finally:
        JITFunction.run = whole
    return seen


def compile_for(launch: Launch, capability: int) -> dict[str, object]:
    """The figures of a launch's kernel, compiled as it would be for a GPU of that capability."""
    kernel, arguments, compiled = launch
    options = {name: value for name, value in compiled.items() if name not in kernel.arg_names}
    constants = {name: value for name, value in compiled.items() if name in kernel.arg_names}
    signature, attributes = dict.fromkeys(constants, "constexpr"), {}
    for place_, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if name in constants:
            continue
        if value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = (
            _TYPES[value.dtype] if isinstance(value, Tensor) else "fp32" if type(value) is float else "i32"
        )
        if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
            attributes[(place_,)] = [["tt.divisibility", 16]]
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    return {
        "kernel": kernel.fn.__name__,
        "target": capability,
        **_resources(made.asm["cubin"]),
        "shared": made.metadata.shared,
        "wide_loads": len(re.findall(r"ld\.global\S*(?:v4\.b32|v2\.b64)|cp\.async.*, 0x10,", ptx)),
        "flushes": ptx.count(".ftz"),
    }


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return {"registers": found["REG"], "stack": found["STACK"] + found["LOCAL"]}


def experts(
    name: str, shape: tuple[int, int], dtype: torch.dtype, gating: Gating, tokens: int, *, in_ram: bool = False
) -> Iterator[Launch]:
    """The launches of a pass of `tokens` by experts of a format, some of them `in_ram`."""
    layer = Layer(ENCODINGS[name], gating, *shape, count=1, bias=torch.bfloat16 if gating.limit else None)
    placed = place(layer.layout, gating)
    assert placed is not None
    meta = torch.device("meta")
    slab: Any = SimpleNamespace(
        slot_size=layer.layout.size, memory_of_all=torch.empty(1, dtype=torch.uint8, device=meta)
    )
    hidden, index = torch.empty(tokens, shape[0], dtype=dtype, device=meta), torch.empty(tokens, 8, device=meta)
    work = triton_experts._Work(hidden, index, 128, placed.inner, placed.down.rows, {})

    def run() -> None:
        order, tiles = torch.empty(tokens * 8, dtype=torch.int64, device=meta), index.int()
        if work.few:
            work.vector(placed, slab, tiles, slab if in_ram else None)
        else:
            work.tiled(placed, slab, order, tiles)
        work.sum(torch.empty(tokens, 8, dtype=dtype, device=meta), None)

    yield from launches(run)


def dense(name: str, shape: tuple[int, int], dtype: torch.dtype, rows: int) -> Iterator[Launch]:
    """The launch of `rows` by a matrix of a format."""
    from moe_local.formats.registry import format_of, packable

    arrays = {key: array.to("meta") for key, array in packable(ENCODINGS[name]).encode(torch.zeros(shape)).items()}
    multiply = triton_dense._bind(format_of(ENCODINGS[name]), arrays, shape, False)
    assert multiply is not None
    yield from launches(lambda: multiply(torch.empty(rows, shape[1], dtype=dtype, device="meta")))


def figures(names: list[str], targets: tuple[int, ...] = TARGETS) -> Iterator[dict[str, object]]:
    """Of every kernel that layers and matrices of these formats launch, by each target in the type it is good at."""
    for target in targets:
        cores = target >= 80
        triton_experts.has_triton_cores = triton_dense.has_triton_cores = lambda device, cores=cores: cores
        for dtype in (torch.bfloat16,) if cores else (torch.bfloat16, torch.float16):
            for name in names:
                for model, launch in _all(name, dtype):
                    tile = launch[2]["tile"]
                    said = {"format": name, "model": model, "dtype": str(dtype).removeprefix("torch."), "tile": tile}
                    yield {**said, **compile_for(launch, target)}


def _all(name: str, dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """What a format is launched for: of a model, or of a matrix."""
    for model, shape in SHAPES.items():
        if model == "gpt-oss" and name not in ("mxfp4", "bf16"):
            continue
        gating = clamped(interleaved=True) if model == "gpt-oss" else Gating("silu")
        for tokens in (1, 64, 2048):
            yield from ((model, launch) for launch in experts(name, shape, dtype, gating, tokens))
        read = experts(name, shape, dtype, gating, 1, in_ram=True)
        yield from ((f"{model}, in RAM", launch) for launch in read)
    if name not in ("bf16", "fp16", "fp32"):
        for rows in (1, 16, 512):
            yield from (("matrix", launch) for launch in dense(name, (512, 2048), dtype, rows))


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:] if word.isdigit()]
    formats = [word for word in sys.argv[1:] if not word.isdigit()]
    for figure in figures(formats, tuple(chosen) or TARGETS):
        print(json.dumps(figure), flush=True)
