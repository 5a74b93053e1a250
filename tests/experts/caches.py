"""Expert caches over a file of small experts, each of which can be told by its numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from moe_local.checkpoint.catalog import Catalog, LayerCatalog
from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import Array, Extent, Layout, Matrix, Projection
from moe_local.experts.cache import ExpertCache
from moe_local.experts.capacity import TierCapacity
from moe_local.experts.mover import mover_to
from moe_local.experts.tier import Tier
from moe_local.memory.accelerator import Accelerator
from moe_local.memory.files import ReadAt
from moe_local.memory.records import RecordReader
from moe_local.memory.slab import Slab
from moe_local.policies.base import Policy
from moe_local.policies.lru import LRU
from moe_local.testing import LateMover

LAYERS, EXPERTS, WIDTH = 3, 10, 64
RECORD = 2 * WIDTH * WIDTH * 4
SPARE = 2
BLOCKING, LATE, STREAMS = "blocking", "late", "streams"


def catalog_of(file: Path) -> Catalog:
    half = RECORD // 2

    def projection(position: int) -> Projection:
        array = Array(torch.float32, (WIDTH, WIDTH), (WIDTH, 1), position)
        return Projection((Matrix(Encoding("fp32"), (WIDTH, WIDTH), {"weight": array}),))

    layout = Layout({"up_proj": projection(0), "down_proj": projection(half)}, RECORD)

    def record(index: int) -> tuple[Extent, ...]:
        start = index * RECORD
        return (Extent(file, start, half, 0), Extent(file, start + half, half, half))

    layers = tuple(
        LayerCatalog(
            f"layers.{layer}", (layout,) * EXPERTS, tuple(record(layer * EXPERTS + e) for e in range(EXPERTS))
        )
        for layer in range(LAYERS)
    )
    return Catalog(layers, {layer.path: i for i, layer in enumerate(layers)}, {})


def cache_over(
    file: Path, read_at: ReadAt, device: int, host: int | None, policy: Policy = LRU, *, mover: str = BLOCKING
) -> ExpertCache:
    """With this mover where there is a host tier; in streams, the device tier is on a device."""
    cpu, gpu = Accelerator(torch.device("cpu")), Accelerator(torch.device("cuda", 0))

    def tier(slots: int, where: Accelerator = cpu) -> Tier:
        spare = 0 if slots == EXPERTS else SPARE
        slab = Slab(slots * LAYERS + spare, RECORD, where.device)
        return Tier.make(slab, [EXPERTS] * LAYERS, [slots] * LAYERS, policy)

    def room(tokens: int) -> TierCapacity:
        """More than one token leave half of the slots."""
        kept = device if tokens == 1 else device // 2
        return TierCapacity((kept,) * LAYERS, 0 if kept == EXPERTS else SPARE)

    above, below = tier(device, gpu if mover == STREAMS else cpu), None if host is None else tier(host)
    moves = None
    if below is not None and mover == LATE:
        moves = LateMover(below.slab, above.slab)
    elif below is not None and mover == STREAMS:
        below.slab.pin(gpu)
        moves = mover_to(gpu, below.slab, above.slab)
    made = ExpertCache(
        catalog_of(file),
        RecordReader(read_at),
        above,
        below,
        mover=moves,
        capacity_for=room if host is None else None,
    )
    made.keep_mirror(zero_copy=host is not None)
    return made


def assert_right(cache: ExpertCache, layer: int, expert: int, slot: int) -> None:
    assert (cache.slab[slot].view(torch.float32) == 100.0 * layer + expert).all()
