"""What a replay means in tokens/s on a machine of a profile: the replay's misses over the profile's links."""

from __future__ import annotations

from dataclasses import dataclass

from moe_local.bench.replay import Replay
from moe_local.planning.estimate import host_seconds, speed_range
from moe_local.planning.known_models import find_sizes
from moe_local.planning.machines import Machine, get_profile
from moe_local.planning.sizes import ModelSizes
from moe_local.planning.weights import Formats, computed_bytes, needs_of

_CONTEXT = 4096  # tokens whose keys and values are read
_GIGA = 1e9


@dataclass(frozen=True)
class Forecast:
    """A model in int4, its dense weights in int8, on a machine; as `moe-local plan` has them by default."""

    sizes: ModelSizes
    machine: Machine
    formats: Formats

    @classmethod
    def of(cls, profile: str, model: str) -> Forecast:
        """Raises MoeLocalError for a machine or a model that is not known."""
        machine = Machine.of(get_profile(profile))
        return cls(find_sizes(model), machine, Formats())

    @property
    def record_bytes(self) -> int:
        """Bytes of one expert."""
        return needs_of(self.sizes, self.formats, _CONTEXT).slot

    @property
    def format(self) -> str:
        return self.formats.experts

    def tokens_per_second(self, replay: Replay) -> tuple[float, float]:
        """From nothing overlapping to the slowest link alone, or on a GPU, with Triton's kernels, the waits for the
        routers. Without a host tier, a GPU's misses are in RAM.
        """
        needs = needs_of(self.sizes, self.formats, _CONTEXT)
        device = self.machine.device_memory
        seconds = {device: computed_bytes(self.sizes, self.formats, needs) / self.machine.bandwidth(device) / _GIGA}
        gpu = self.machine.vram is not None
        if gpu:
            seconds["pcie"] = replay.decode.misses * needs.slot / self.machine.bandwidth("pcie") / _GIGA
        if not gpu or replay.host_slots is not None:
            seconds["disk"] = replay.decode.host_misses * needs.slot / self.machine.bandwidth("disk") / _GIGA
        low, high = speed_range(seconds, device, host_seconds(self.sizes, self.machine, replay.decode.misses))
        return round(low, 3), round(high, 3)
