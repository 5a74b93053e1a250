"""Headers: the right answer or a CheckpointError, whatever the bytes."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from moe_local.checkpoint.header import assert_known, read_header
from moe_local.errors import CheckpointError, UnsupportedError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.zeros(0, 5, dtype=torch.int8),
}
IN_PLACE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def _write(file: Path, header: object, body: bytes, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return file


def _f32(*offsets: int, shape: object = (1,)) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": list(offsets)}


def test_entries_are_where_safetensors_puts_them(file: Path) -> None:
    content = file.read_bytes()
    entries = read_header(file)
    assert entries.keys() == TENSORS.keys()
    for name, tensor in load_file(file).items():
        entry = entries[name]
        raw = torch.frombuffer(bytearray(content[entry.offset :]) or bytearray(1), dtype=torch.uint8)
        assert torch.equal(raw[: entry.length].view(entry.dtype).view(entry.shape), tensor)


@pytest.mark.parametrize(
    ("header", "body", "said"),
    [
        (b"", b"", "not JSON"),
        (b"{", b"", "damaged header"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        (b"\xff\xfe{}", b"", "not JSON"),
        (b'{"\xff": 1}', b"", "damaged header"),
        (b"{" * 100_000, b"", "damaged header"),
        ({"a": 1}, b"", "not described"),
        ({"a": {"dtype": "F 31", "shape": [], "data_offsets": [0, 4]}}, b"1234", "unknown type 'F 31'"),
        ({"a": {"dtype": [], "shape": [], "data_offsets": [0, 4]}}, b"1234", "unknown type"),
        ({"a": _f32(0, 4, shape=[-1])}, b"1234", "no valid shape"),
        ({"a": _f32(0, 4, shape=[True])}, b"1234", "no valid shape"),
        ({"a": _f32(4, 0)}, b"1234", "no valid shape"),
        ({"a": _f32(0)}, b"1234", "no valid shape"),
        ({"a": _f32(0, 8)}, b"12345678", "needs 4 bytes, not 8"),
        ({"a": _f32(0, 4), "b": _f32(2, 6)}, b"123456", "overlaps"),
        ({"a": _f32(0, 4), "b": _f32(8, 12)}, b"1" * 12, "gap"),
        ({"a": _f32(0, 4), "b": _f32(4, 8)}, b"1234", "truncated"),
        ({"a": _f32(0, 4)}, b"12345", "1 bytes follow"),
        ({"a": _f32(0, 4, shape=[2**62, 2**62])}, b"1234", "no valid shape"),
        ({"a": _f32(0, 4, shape=[2**59, 2**59])}, b"1234", "needs"),
        ({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 5]}}, b"12345", "needs 4 bytes, not 5"),
        ({"a": {"dtype": "F6_E2M3", "shape": [3], "data_offsets": [0, 2]}}, b"12", "needs 2.25 bytes"),
    ],
)
def test_damage_is_named(tmp_path: Path, header: object, body: bytes, said: str) -> None:
    file = _write(tmp_path / "bad.safetensors", header, body)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert caught.value.remedy


def test_wrong_lengths(tmp_path: Path) -> None:
    for length, said in [
        (10**12, "not a safetensors file"),
        (1000, "larger than the file"),
        (2**64 - 1, "not a"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            read_header(_write(tmp_path / "bad.safetensors", b"{}", b"", length=length))
    (tmp_path / "short.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(tmp_path / "short.safetensors")
    (tmp_path / "zip.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match="header"):
        read_header(tmp_path / "zip.safetensors")


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*absent"):
        read_header(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_header(tmp_path)


@IN_PLACE
@given(data=st.data())
def test_any_mutation_gives_the_right_answer_or_a_clear_error(file: Path, data: st.DataObject) -> None:
    """Bytes changed, cut, inserted anywhere: what is still accepted is what safetensors itself accepts, the same."""
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        match data.draw(st.sampled_from(["change", "cut", "insert", "end"])):
            case "change":
                content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "cut":
                del content[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=5))
            case "end":
                del content[at:]
    mutant = file.with_name("mutant.safetensors")
    mutant.write_bytes(content)
    try:
        entries = read_header(mutant)
    except CheckpointError as error:
        assert str(mutant) in str(error)
        return
    if any(entry.unknown for entry in entries.values()):
        return  # a type that safetensors refuses, and we where it is needed
    for name, tensor in load_file(mutant).items():
        entry = entries[name]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), tensor.dtype)
        raw = torch.frombuffer(bytearray(content[entry.offset :]) or bytearray(1), dtype=torch.uint8)
        assert raw[: entry.length].numpy().tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("kind", "shape", "length"), [("F4", [8], 4), ("F6_E3M2", [4], 3), ("I4", [3], 2)])
def test_types_that_nobody_needs_do_no_harm(tmp_path: Path, kind: str, shape: list[int], length: int) -> None:
    header = {"a": {"dtype": kind, "shape": shape, "data_offsets": [0, length]}, "b": _f32(length, length + 4)}
    entries = read_header(_write(tmp_path / "newer.safetensors", header, bytes(length + 4)))
    assert entries["a"].unknown == kind
    assert_known(entries["b"])
    with pytest.raises(UnsupportedError, match=kind):
        assert_known(entries["a"])


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "b", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
        )
    ),
)


@IN_PLACE
@given(HEADERS, st.binary(max_size=20))
def test_any_json_for_a_header(tmp_path: Path, header: object, body: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        read_header(_write(tmp_path / "any.safetensors", header, body))
