"""The tiers' books, mirrored on the device: layers that kernels run by themselves, and what is counted there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moe_local.experts.device_table import DeviceHits, DeviceTable
from moe_local.experts.tier import Tier
from moe_local.telemetry import Counters

# Tokens of which one goes by the host where kernels read the host tier: the device tier learns from it what to keep.
# On traces of gpt-oss-20b and DeepSeek-V2-Lite its hit rate falls by a tenth with a quarter of the experts, with half
# of them by 3 or 4 in a hundred (benchmarks/rare_learning.py).
LEARNS_EACH = 8


class Mirror:
    """In which slot of the device tier each expert lies, or of the host tier where kernels read that too."""

    def __init__(self, device: Tier, host: Tier | None, experts: Sequence[int]) -> None:
        """Of layers of so many `experts`; `host` is the tier that kernels read, None: they do not."""
        self._device = device
        self._host = host
        self._table = DeviceTable(device.slab.device, experts)
        self._hits = DeviceHits(device.slab.device, experts, self._table.all_rows)
        self._until_seen = [layer % LEARNS_EACH for layer in range(len(experts))]  # tokens: not one for all layers
        self.write(range(len(experts)))

    def write(self, layers: Sequence[int]) -> None:
        """Has the table say of some layers what the books say. Nothing may be on its way to what they keep."""
        self._hits.add_up()
        for layer in layers:
            host = self._host
            below = {} if host is None or not host.layers[layer].keeps_all else _slots(host, layer)
            self._table.write(layer, _slots(self._device, layer), below)

    def found_all(self, layer: int, index: Tensor) -> Tensor | None:
        """The table's row of a layer for a pass that needs the experts that index [T, k] names, and counts them; None
        where the host has to bring some, or is to see them.
        """
        whole = self._table.is_whole(layer) and self._device.layers[layer].keeps_all
        if not whole and not self._is_read_in_ram(layer, len(index)):
            return None
        self._hits.add(layer, index)
        return self._table.row(layer)

    def _is_read_in_ram(self, layer: int, tokens: int) -> bool:
        """Whether kernels read what the device tier lacks of a layer: of one token, but for one in so many."""
        if self._host is None or tokens > 1 or not self._table.knows_all(layer):
            return False
        left = self._until_seen[layer]
        self._until_seen[layer] = left - 1 if left else LEARNS_EACH - 1
        return left > 0

    def count(self, counters: Counters) -> None:
        """Adds what was counted on the device since the last time, and waits for it."""
        for layer, (needed, found) in enumerate(zip(*self._hits.take(), strict=True)):
            read = needed - found
            counters.layer_hits[layer] += found
            counters.layer_misses[layer] += read
            counters.layer_host_hits[layer] += read
            counters.zero_copied += read

    def close(self) -> None:
        """Frees the memory that rows are copied from."""
        self._table.close()


def _slots(tier: Tier, layer: int) -> dict[int, int]:
    return {expert: tier.slots[layer, expert] for expert in tier.layers[layer]}
