"""Trace files: what is written comes back, whatever ends the recording; what is not a trace is refused by name."""

from __future__ import annotations

import io
import json
import lzma
import os
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_local.bench.record import Recorder, write_trace
from moe_local.bench.trace import Trace, part_of, read_trace
from moe_local.errors import MoeLocalError, StorageError
from moe_local.testing.traces import small_traces
from tests.processes import small_disk, start, wait_until

SAME_FOLDER = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _assert_same(one: Trace, other: Trace) -> None:
    assert (one.ids == other.ids).all()
    assert one.lens.tolist() == other.lens.tolist()
    assert one.steps.tolist() == other.steps.tolist()
    assert (one.names, one.experts, one.meta["model"]) == (other.names, other.experts, other.meta["model"])
    assert (one.weights is None) == (other.weights is None)
    assert one.weights is None or other.weights is None or (one.weights == other.weights).all()


@SAME_FOLDER
@given(trace=small_traces())
def test_written_and_read(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "trace.npz")
    _assert_same(read_trace(tmp_path / "trace.npz"), trace)
    packed = tmp_path / "trace.npz.xz"
    packed.write_bytes(lzma.compress((tmp_path / "trace.npz").read_bytes()))
    _assert_same(read_trace(packed), trace)


def _record(trace: Trace, recorder: Recorder, passes: int | None = None) -> None:
    starts = np.concatenate([[0], np.cumsum(trace.lens)])
    start = 0
    for tokens in trace.steps[:passes]:
        if start in starts:
            recorder.prompt(trace.names[starts.tolist().index(start)])
        for layer in range(trace.layers):
            ids = torch.from_numpy(trace.ids[start : start + tokens, layer].astype(np.int64))
            weights = torch.from_numpy(trace.weights[start : start + tokens, layer])
            assert recorder(layer, ids, weights) == (ids, weights)
        start += tokens


def _recorder(trace: Trace, path: Path) -> Recorder:
    return Recorder(path, layers=trace.layers, experts=trace.experts, top_k=trace.top_k, meta={"model": "random"})


@SAME_FOLDER
@given(trace=small_traces())
def test_recorded_and_read(trace: Trace, tmp_path: Path) -> None:
    with _recorder(trace, tmp_path / "trace.npz") as recorder:
        _record(trace, recorder)
    _assert_same(read_trace(tmp_path / "trace.npz"), trace)
    assert not part_of(tmp_path / "trace.npz").exists()


@SAME_FOLDER
@given(trace=small_traces(), torn=st.integers(0, 20))
def test_what_a_killed_recording_leaves_is_read(trace: Trace, torn: int, tmp_path: Path) -> None:
    """The last pass, of which a part may have been written, is left out; all before it are there."""
    recorder = _recorder(trace, tmp_path / "trace.npz")
    _record(trace, recorder)
    ids = part_of(tmp_path / "trace.npz") / "ids"
    content = ids.read_bytes()
    ids.write_bytes(content[: len(content) - min(torn, trace.layers * trace.top_k)])
    if torn and len(trace.steps) == 1:
        with pytest.raises(MoeLocalError, match="no tokens"):
            read_trace(part_of(tmp_path / "trace.npz"))
    else:
        found = read_trace(part_of(tmp_path / "trace.npz"))
        tokens = int(trace.steps[: -1 if torn else None].sum())
        assert (found.ids == trace.ids[:tokens]).all()
        assert found.lens.sum() == tokens
    ids.write_bytes(content)
    recorder.close()


def test_killed_for_real(tmp_path: Path) -> None:
    """-9 while it writes: the folder that is left is a trace."""
    script = f"""
import torch
from pathlib import Path
from moe_local.bench.record import Recorder
recorder = Recorder(Path({str(tmp_path / "trace.npz")!r}), layers=3, experts=9, top_k=2, meta={{"model": "x"}})
recorder.prompt("endless")
while True:
    for layer in range(3):
        recorder(layer, torch.tensor([[layer, 8]]), torch.tensor([[0.5, 0.5]]))
"""
    child = start([sys.executable, "-c", script])
    written = part_of(tmp_path / "trace.npz") / "forwards"
    wait_until(lambda: written.exists() and written.stat().st_size > 200, child)
    child.kill()
    child.wait()
    found = read_trace(part_of(tmp_path / "trace.npz"))
    assert found.tokens > 10
    assert (found.ids == np.array([[0, 8], [1, 8], [2, 8]])).all()
    with pytest.raises(MoeLocalError, match=r"trace\.npz\.part"):
        read_trace(tmp_path / "trace.npz")


def test_an_interrupted_pass_is_left_out(tmp_path: Path) -> None:
    with Recorder(tmp_path / "t.npz", layers=2, experts=4, top_k=1, meta={"model": "x"}) as recorder:
        recorder.prompt("one")
        one = torch.ones(1, 1)
        for layer, expert in ((0, 1), (0, 2), (1, 3)):  # the first pass ends after its first layer
            recorder(layer, torch.tensor([[expert]]), one)
    assert read_trace(tmp_path / "t.npz").ids.tolist() == [[[2], [3]]]


def _npz(**arrays: object) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def _parts(**changed: object) -> bytes:
    sound: dict[str, object] = {
        "ids": np.zeros((4, 2, 1), np.uint8),
        "lens": np.array([4], np.int32),
        "names": np.array(["a"]),
        "meta": json.dumps({"experts": 3, "model": "m"}),
    }
    return _npz(**{name: value for name, value in {**sound, **changed}.items() if value is not None})


def _header_of_a_terabyte() -> bytes:
    content = io.BytesIO(_parts())
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 2, 1)})
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(out := io.BytesIO(), "w") as target:
        for name in source.namelist():
            target.writestr(name, huge.getvalue() if name == "ids.npy" else source.read(name))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"PK\x03\x04 and so on", "damaged"),
        (_parts()[:-30], "damaged"),
        (_parts(lens=None), "lacks lens"),
        (_parts(ids=np.zeros((4, 2), np.uint8)), "not \\[tokens, layers, k\\]"),
        (_parts(ids=np.zeros((4, 2, 1), np.float32)), "ids are float32"),
        (_parts(ids=np.zeros((0, 2, 1), np.uint8), lens=np.zeros(0, np.int32)), "no tokens"),
        (_parts(ids=np.full((4, 2, 1), 9, np.uint8)), "expert 9 of 3"),
        (_parts(lens=np.array([3], np.int32)), "do not add up"),
        (_parts(lens=np.array([5, -1], np.int32)), "do not add up"),
        (_parts(names=np.array(["a", "b"])), "2 names for 1"),
        (_parts(meta="[1]"), "number of experts"),
        (_parts(meta="{"), "damaged"),
        (_parts(weights=np.zeros((1, 2, 1), np.float16)), "weights are"),
        (_parts(forwards=np.array([1], np.int32)), "forwards do not add up"),
        (_parts(ids=np.array([[object()]], dtype=object)), "damaged"),
        (_header_of_a_terabyte(), "damaged"),
    ],
)
def test_what_is_not_a_trace_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(MoeLocalError, match=rf"bad\.npz.*{said}"):
        read_trace(path)


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(MoeLocalError, match="no trace"):
        read_trace(tmp_path / "none.npz")
    with pytest.raises(MoeLocalError, match="no trace"):
        read_trace(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        Recorder(tmp_path / "file" / "t.npz", layers=1, experts=1, top_k=1, meta={})


def test_the_first_prompts() -> None:
    trace = Trace(np.arange(6, dtype=np.uint8).reshape(6, 1, 1), np.array([2, 3, 1], np.int32), ("a", "b", "c"), 6)
    assert trace.first(2).ids.ravel().tolist() == [0, 1, 2, 3, 4]
    assert trace.first(9).tokens == 6


@pytest.mark.parametrize("room", [4, 12, 40])
def test_a_full_disk_is_said_once(tmp_path: Path, room: int) -> None:
    """Wherever it fills up: while the routing is written, or only when the trace is made of it."""
    with small_disk(tmp_path / "small", room << 10) as disk:
        path = disk / "t.npz"
        with pytest.raises(StorageError, match=r"cannot write the trace .*: No space left") as caught:  # noqa: SIM117
            with Recorder(path, layers=2, experts=900, top_k=4, meta={"model": "x"}) as recorder:
                recorder.prompt("one")
                for _ in range(1000):
                    for layer in range(2):
                        recorder(layer, torch.randint(0, 900, (8, 4)), torch.rand(8, 4))
        assert not path.exists()
        assert part_of(path).exists() == (f"recorded is in {part_of(path)}" in str(caught.value))
        if room == 40:
            assert read_trace(part_of(path)).tokens > 0


def test_a_disk_that_is_full_at_the_end_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64 << 10) as disk:
        recorder = Recorder(disk / "t.npz", layers=1, experts=900, top_k=4, meta={"model": "x"})
        recorder.prompt("one")
        for _ in range(100):
            recorder(0, torch.randint(0, 900, (8, 4)), torch.rand(8, 4))
        with suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
            while other.write(bytes(4096)):
                pass
        with pytest.raises(StorageError, match=r"what was recorded is in .*t\.npz\.part"):
            recorder.close()
        (disk / "other").unlink()
        assert read_trace(disk / "t.npz.part").tokens == 800


@SAME_FOLDER
@given(trace=small_traces(), data=st.data())
def test_flipped_bytes_are_refused_or_a_trace(trace: Trace, data: st.DataObject, tmp_path: Path) -> None:
    """Plain, compressed by zip, and by xz as well."""
    plain = io.BytesIO()
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    meta = json.dumps({"experts": trace.experts})
    save(plain, ids=trace.ids, lens=trace.lens, names=np.array(trace.names), meta=np.array(meta))
    packed = data.draw(st.booleans())
    content = bytearray(lzma.compress(plain.getvalue()) if packed else plain.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[at] ^= data.draw(st.integers(1, 255))
    file = tmp_path / ("flipped.npz.xz" if packed else "flipped.npz")
    file.write_bytes(content)
    try:
        assert read_trace(file).tokens > 0
    except MoeLocalError as error:
        assert str(file) in str(error)


def _bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", bytes(500 << 20))
    return path


def test_what_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    bomb = _bomb(tmp_path / "a.npz")
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(MoeLocalError, match="at most are read"):
        read_trace(bomb)
    (tmp_path / "b.npz.xz").write_bytes(lzma.compress(bytes(300 << 20), preset=0))
    with pytest.raises(MoeLocalError, match="more than"):
        read_trace(tmp_path / "b.npz.xz")
    os.mkfifo(tmp_path / "c.npz")
    with pytest.raises(MoeLocalError, match="not a regular file"):
        read_trace(tmp_path / "c.npz")


@pytest.mark.parametrize("broken", ["lens of text", "weights of text", "a sum that wraps", "a lone array"])
def test_arrays_of_other_kinds_are_refused(broken: str, tmp_path: Path) -> None:
    ids = np.zeros((2, 1, 1), np.uint8)
    arrays = {"ids": ids, "lens": np.array([2]), "meta": np.array('{"experts": 4}')}
    if broken == "lens of text":
        arrays["lens"] = np.array(["a", "b"])
    elif broken == "weights of text":
        arrays["weights"] = np.array([[["a"]], [["b"]]])
    else:
        arrays["lens"] = np.array([2**63 - 1, 2**63 - 1, 4], np.int64)
    np.savez(tmp_path / "a.npz", **arrays)
    if broken == "a lone array":
        with (tmp_path / "a.npz").open("wb") as stream:
            np.save(stream, ids)
    with pytest.raises(MoeLocalError, match="not a trace"):
        read_trace(tmp_path / "a.npz")
