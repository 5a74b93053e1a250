"""What a tier holds in a forward pass: planned before loading, kept while running."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TierCapacity:
    """What a tier keeps of each layer, and the slots that it has beside, for what passes through."""

    kept: tuple[int, ...]
    spare: int

    @property
    def slots(self) -> int:
        return sum(self.kept) + self.spare
