"""Traced tensors against torch: the same operations on tensors of element numbers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.core_model_loading import Chunk, Concatenate, Interleave, MergeModulelist, Transpose

from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import place_record
from moe_local.checkpoint.tracing import Traced, UntraceableError
from moe_local.formats.records import decode_projection

NAMES = "abc"


def _real(shape: tuple[int, ...]) -> dict[str, Tensor]:
    size = torch.Size(shape).numel()
    return {name: torch.arange(size).reshape(shape) + 1000 * i for i, name in enumerate(NAMES)}


def _resolve(traced: Traced, real: dict[str, Tensor]) -> Tensor:
    """The values that a traced tensor says it has; -1 where it says nothing."""
    out = torch.full(tuple(traced.shape), -1)
    for block in traced.blocks:
        for index in product(*(range(axis.count) for axis in block.axes)):
            place = tuple(axis.start + i * axis.step for axis, i in zip(block.axes, index, strict=True))
            source = block.offset + sum(i * axis.stride for axis, i in zip(block.axes, index, strict=True))
            assert out[place] == -1
            out[place] = real[block.source].flatten()[source]
    return out


@st.composite
def _programs(draw: st.DrawFn) -> list[tuple[str, tuple[int, ...]]]:
    steps = st.tuples(
        st.sampled_from(["cat", "stack", "transpose", "chunk", "merge", "interleave", "narrow"]),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
    )
    return draw(st.lists(steps, max_size=4))


def _apply(step: str, arguments: tuple[int, ...], x: object, others: list[object]) -> object:
    """One operation, on a tensor or a traced tensor alike."""
    a, b = (n % x.ndim for n in arguments)
    match step:
        case "cat":
            return torch.cat([x, *others], dim=a) if len(others) else x
        case "stack":
            return torch.stack([x, x], dim=a)
        case "transpose":
            return torch.transpose(x, a, b)
        case "chunk":
            return torch.chunk(x, 2, dim=a)[0]
        case "narrow":
            return x.split(1, a)[-1]
        case "merge" if x.ndim > 1:
            dim = min(a, x.ndim - 2)
            shape = list(x.shape)
            shape[dim : dim + 2] = [shape[dim] * shape[dim + 1]]
            return x.reshape(shape)
        case "interleave" if x.shape[a] % 2 == 0:
            return Interleave(dim=a).convert({"p": x}, ["p"], ["q"])["q"]
    return x


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), _programs())
def test_any_program_of_moves(shape: list[int], program: list[tuple[str, tuple[int, ...]]]) -> None:
    real = _real(tuple(shape))
    theirs: object = torch.cat([real["a"], real["b"]])
    ours: object = torch.cat([Traced.source(name, shape) for name in "ab"])
    for step, arguments in program:
        theirs = _apply(step, arguments, theirs, [])
        try:
            ours = _apply(step, arguments, ours, [])
        except UntraceableError:
            return
    assert torch.equal(_resolve(ours, real), theirs)


@pytest.mark.parametrize("shape", [(6, 2), (2, 6, 2)])
def test_transformers_own_operations(shape: tuple[int, ...]) -> None:
    real = _real(shape)
    traced = {name: Traced.source(name, shape) for name in NAMES}
    for inputs in ("experts", "fused"):
        results = []
        for tensors in (real, traced):
            many = {"x": [tensors["a"], tensors["b"]], "y": [tensors["b"], tensors["c"]]}
            if inputs == "experts":
                merged = MergeModulelist(dim=0).convert(many, ["x", "y"], ["z"])
                merged = Concatenate(dim=1).convert(merged, ["x", "y"], ["z"])
                results.append(Transpose(1, 2).convert(merged, ["z"], ["z"])["z"])
            else:
                results.append(Chunk(dim=0).convert({"x": tensors["a"]}, ["x"], ["u", "v"])["v"])
        assert torch.equal(_resolve(results[1], real), results[0])


def test_what_computes_is_refused() -> None:
    with pytest.raises(UntraceableError):
        torch.add(Traced.source("a", (2,)), 1)
    with pytest.raises(UntraceableError):
        torch.cat([Traced.source("a", (2, 3)), Traced.source("b", (2, 2))])


def _entries(tmp: object, shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorEntry]:
    entries, offset = {}, 0
    for name, shape in shapes.items():
        length = 4 * torch.Size(shape).numel()
        entries[name] = TensorEntry(name, tmp, torch.float32, shape, offset, length)
        offset += length
    return entries


@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.booleans())
def test_a_record_reads_as_the_parameter(half: int, width: int, interleaved: bool, transposed: bool) -> None:
    """Copy the extents into a record, view it by its layout, and the model's matrix is there."""
    shapes = {"gate": (half, width), "up": (half, width), "down": (2 * half, width)}
    entries = _entries("file", shapes)
    disk = torch.randn(sum(e.length for e in entries.values()) // 4)
    real = {n: disk[e.offset // 4 : (e.offset + e.length) // 4].reshape(e.shape) for n, e in entries.items()}

    def convert(t: dict[str, object]) -> dict[str, object]:
        joined = torch.cat([t["gate"], t["up"]])
        if interleaved:
            joined = Interleave(dim=0).convert({"x": t["down"]}, ["x"], ["y"])["y"]
        second = t["down"].transpose(0, 1) if transposed else t["down"]
        return {"first": joined, "second": second}

    layout, extents = place_record(convert({n: Traced.source(n, s) for n, s in shapes.items()}), entries)
    record = torch.zeros(layout.size, dtype=torch.uint8)
    for extent in extents:
        content = disk.view(torch.uint8)[extent.offset : extent.offset + extent.length]
        record[extent.position : extent.position + extent.length] = content
    for name, wanted in convert(real).items():
        assert torch.equal(decode_projection(layout.projections[name], record, torch.float32), wanted)


def test_scattered_bytes_are_refused() -> None:
    entries = _entries("file", {"a": (4, 6)})
    with pytest.raises(UntraceableError, match="not contiguous"):
        place_record({"p": Traced.source("a", (4, 6)).narrow(1, 0, 3)}, entries)
