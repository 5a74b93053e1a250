"""Reading the records that are to be packed: one, or all in order, some ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import torch
from torch import Tensor

from moe_local.checkpoint.catalog import LayerCatalog
from moe_local.memory.files import FileReader
from moe_local.memory.records import RecordReader
from moe_local.store.writer import BEHIND

AHEAD = 4  # records read while one is encoded


def records(layer: LayerCatalog, files: FileReader) -> Iterator[Tensor]:
    """Every record of a layer in order, uint8 [bytes], some read ahead. One is valid until `BEHIND` more came."""
    count = AHEAD + BEHIND
    buffers = [torch.empty(layer.size, dtype=torch.uint8) for _ in range(count)]
    arrived: set[int] = set()
    started = 0
    with closing(RecordReader(files)) as reader:
        for expert in range(layer.experts):
            while started < min(layer.experts, expert + AHEAD):
                reader.start((0, started), layer.records[started], buffers[started % count].numpy().data)
                started += 1
            while expert not in arrived:
                arrived.add(reader.next_arrival()[1])
            files.forget(layer.records[expert])
            yield buffers[expert % count]


def read_record(layer: LayerCatalog, expert: int, files: FileReader) -> Tensor:
    """One record, uint8 [bytes]."""
    record = torch.empty(layer.layouts[expert].size, dtype=torch.uint8)
    for extent in layer.records[expert]:
        files(extent.file, extent.offset, record[extent.position : extent.position + extent.length].numpy().data)
    return record
