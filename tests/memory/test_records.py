"""Reads from real files: in parallel, in any order, whole or failed once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from moe_local.checkpoint.record import Extent
from moe_local.errors import StorageError
from moe_local.memory.files import FileReader
from moe_local.memory.records import RecordReader
from moe_local.testing import FailingDisk, SlowDisk

SIZE = 5 << 20  # more than one part


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def reader(file: Path) -> FileReader:
    files = FileReader()
    files.open([file])
    yield files
    files.close()


def test_records_arrive_whole_in_any_order(file: Path, reader: FileReader) -> None:
    content = file.read_bytes()
    records = RecordReader(SlowDisk(reader))
    targets = {}
    for number in range(12):
        key, half = (0, number), SIZE // 2 - number
        extents = [Extent(file, number, half, 0), Extent(file, SIZE - 1000 - number, 1000, half)]
        targets[key] = bytearray(half + 1000)
        records.start(key, extents, memoryview(targets[key]))
    arrived = [records.next_arrival() for _ in targets]
    assert set(arrived) == targets.keys()
    assert records.in_flight == 0
    for (_, number), target in targets.items():
        half = SIZE // 2 - number
        assert target == content[number : number + half] + content[SIZE - 1000 - number : SIZE - number]
    records.close()


def test_after_a_failure_a_drained_reader_writes_nowhere(file: Path, reader: FileReader) -> None:
    records = RecordReader(FailingDisk(SlowDisk(reader), lambda number: number == 5))
    targets = [bytearray(SIZE) for _ in range(6)]
    for number, target in enumerate(targets):
        records.start((0, number), [Extent(file, 0, SIZE, 0)], memoryview(target))
    with pytest.raises(StorageError, match="weights"):
        for _ in targets:
            records.next_arrival()
    records.drain()
    assert records.in_flight == 0
    for target in targets:
        target[:] = bytes(SIZE)
    records.start((0, 9), [Extent(file, 0, SIZE, 0)], memoryview(targets[0]))
    assert records.next_arrival() == (0, 9)
    assert targets[0] == file.read_bytes()
    assert not any(any(target) for target in targets[1:])
    records.close()
    records.close()


def test_a_file_that_shrank_is_named(file: Path, reader: FileReader) -> None:
    os.truncate(file, 100)
    with pytest.raises(StorageError, match=r"weights\.bin ended at byte 100"):
        reader(file, 0, memoryview(bytearray(200)))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        FileReader().open([tmp_path / "absent"])


def test_a_record_taken_back_by_halves_arrives_whole(tmp_path: Path) -> None:
    """One part is being read when it is taken back; then it is needed after all."""
    file = tmp_path / "two.bin"
    begun, go_on = threading.Event(), threading.Event()

    def read_at(file: Path, offset: int, buffer: memoryview) -> None:
        if offset == 0:
            begun.set()
            assert go_on.wait(10)
        buffer[:] = bytes([offset // 8 + 1]) * len(buffer)

    reader, target = RecordReader(read_at, parallel=1), bytearray(16)
    try:
        extents = [Extent(file, 0, 8, 0), Extent(file, 8, 8, 8)]
        reader.start((0, 0), extents, memoryview(target), urgent=False)
        assert begun.wait(10)
        assert not reader.cancel((0, 0))
        reader.promote((0, 0))
        go_on.set()
        assert reader.next_arrival() == (0, 0)
        assert bytes(target) == b"\x01" * 8 + b"\x02" * 8
    finally:
        go_on.set()
        reader.close()
