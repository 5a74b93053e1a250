"""Packing a model of the hub while it is downloaded: each file goes again once it is packed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from moe_local.checkpoint.offer import HubFile, Offer, fetch, remove
from moe_local.checkpoint.promise import promised
from moe_local.checkpoint.schemes import Packed, packed_on_first_use
from moe_local.store.job import Job, Packing, plan_packing
from moe_local.store.open import open_checkpoint
from moe_local.store.shards import Progress


def plan_arriving(offer: Offer, packing: Packing, *, on_first_use: bool) -> Job | None:
    """What packing a model of the hub will make, from its headers.

    None where the whole checkpoint is needed: `on_first_use` of one that is run as it is, or packed only if nothing
    is lost. Raises what `open_model` does, and what the hub's client raises.
    """
    checkpoint = promised(offer)
    if on_first_use and packed_on_first_use(checkpoint) is not Packed.ALWAYS:
        return None
    return plan_packing(open_checkpoint(checkpoint), packing)


class Arriving:
    """`Shards` that are downloaded when they are needed, and deleted when they are not."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._files = {offer.place(file): file for file in offer.weights}
        self._sound: set[Path] = set()

    @property
    def sizes(self) -> Mapping[Path, int]:
        """The bytes of disk that each is yet to take: none for those that are here."""
        return {place: 0 if place.exists() else file.size for place, file in self._files.items()}

    def need(self, files: Collection[Path], progress: Progress) -> None:
        """Downloads those that are not here, and compares all with what the hub says of them."""
        for place in sorted(set(files) - self._sound):
            self._fetch(place, self._files[place], progress)
            self._sound.add(place)

    def _fetch(self, place: Path, file: HubFile, progress: Progress) -> None:
        number = list(self._files).index(place) + 1
        progress.stage = f"downloading file {number} of {len(self._files)}"
        expected, told = self.sizes[place], 0

        def arrived(count: int) -> None:
            nonlocal told
            told += count
            progress.add(count)

        fetch(self._offer, file, arrived)
        progress.add(expected - told)  # where some of it was here already

    def keep_only(self, files: Collection[Path]) -> None:
        """Deletes all others."""
        for place in self._files.keys() - set(files):
            if place.exists():
                remove(place)
