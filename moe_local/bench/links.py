"""How fast the links between the tiers are here, to hold what a run achieved against."""

from __future__ import annotations

import random
from time import perf_counter

import torch

from moe_local.engine import Engine
from moe_local.memory.pinned import host_slab
from moe_local.memory.records import PARALLEL_READS, RecordReader
from moe_local.memory.slab import Slab
from moe_local.units import MIB

_TRIAL = 512 * MIB
_LONGEST = 2.0  # seconds
_GIGA = 1e9


def measure_disk(engine: Engine) -> float:
    """GB/s (10^9 bytes) of reading whole records in random order, from the disk itself where the system lets us.

    Reads at most 512 MiB, for two seconds at most.
    """
    catalog = engine.load_plan.catalog
    records = [extents for layer in catalog.layers for extents in layer.records]
    random.Random(0).shuffle(records)
    slab = Slab(PARALLEL_READS, catalog.record_size, torch.device("cpu"))
    reader = RecordReader(engine.files)
    for extents in records[: _TRIAL // catalog.record_size]:
        engine.files.forget(extents)
    done, began, free = 0, perf_counter(), list(range(PARALLEL_READS))
    slot_of: dict[tuple[int, int], int] = {}
    try:
        for number, extents in enumerate(records):
            if done >= _TRIAL or perf_counter() - began > _LONGEST:
                break
            key = (0, number)
            slot_of[key] = free.pop()
            reader.start(key, extents, slab.memory(slot_of[key]))
            done += sum(extent.length for extent in extents)
            if not free:
                free.append(slot_of.pop(reader.next_arrival()))
        while reader.in_flight:
            reader.next_arrival()
    finally:
        reader.close()
    return done / (perf_counter() - began) / _GIGA


def measure_upload(engine: Engine) -> float | None:
    """GB/s of copying records from RAM to the device; None where there is no host tier."""
    if engine.plan.host_slots is None:
        return None
    accelerator = engine.load_plan.accelerator
    size = engine.plan.needs.slot
    source = host_slab(8, size, accelerator, lambda text: None)
    target = Slab(1, size, accelerator.device)
    rounds = max(8, min(_TRIAL // 2, 64 * size) // size)
    began = 0.0
    for number in range(rounds + 8):
        if number == 8:  # after the first pages were touched
            accelerator.synchronize()
            began = perf_counter()
        target[0].copy_(source[number % 8], non_blocking=True)
    accelerator.synchronize()
    source.close()
    return rounds * size / (perf_counter() - began) / _GIGA
