"""Energy that the processor took, where Linux counts it (RAPL; most systems let only root read it)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_ZONES = Path("/sys/class/powercap")
_MICRO = 1e-6


class EnergyMeter:
    """Joules of all processor packages since it was made."""

    def __init__(self, zones: Path = _ZONES) -> None:
        self._packages = [zone for zone in sorted(zones.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._begun = self._read()

    def joules(self) -> float | None:
        """None where the platform does not tell."""
        now = self._read()
        if now.keys() != self._begun.keys() or not now:
            return None
        return sum(_since(self._begun[zone], count, zone) for zone, count in now.items()) * _MICRO

    def _read(self) -> Mapping[Path, int]:
        try:
            return {zone: int((zone / "energy_uj").read_text()) for zone in self._packages}
        except (OSError, ValueError):
            return {}


def _since(before: int, now: int, zone: Path) -> int:
    """The counter begins again at its range."""
    return now - before if now >= before else now - before + int((zone / "max_energy_range_uj").read_text())
