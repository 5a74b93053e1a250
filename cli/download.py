"""What a user is told before a model is downloaded, and asked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_local.errors import MoeLocalError, StorageError
from moe_local.units import format_size

from .output import stderr

if TYPE_CHECKING:
    from moe_local.checkpoint.hub import Take
    from moe_local.checkpoint.offer import Offer
    from moe_local.store.job import Job, Packing

_SPARE = 64 << 20  # bytes of disk to leave


def asking(*, yes: bool = False, refuse: Callable[[Path], None] | None = None) -> Take:
    """A download of the whole model, after saying what it takes. See `PackedAsItComes` for `refuse`."""

    def take(offer: Offer) -> None:
        if refuse is not None:
            refuse(offer.folder)
        _tell(offer, None, None, yes)

    return take


@dataclass
class PackedAsItComes:
    """A download of which each file is deleted once it is packed, after saying what it takes.

    Into what `choose` says, in `target` or a store in the cache folder; `made` is the store then. What `chat` would
    not pack `on_first_use` is downloaded whole. `refuse` is shown the folder of its small files before anything
    large is fetched.
    """

    choose: Callable[[], Packing]
    target: Path | None = None
    on_first_use: bool = True
    yes: bool = False
    made: Path | None = None
    job: Job | None = None
    refuse: Callable[[Path], None] | None = None

    def __call__(self, offer: Offer) -> Path | None:
        from moe_local.store import cached_store, is_store, pack
        from moe_local.store.arriving import Arriving, plan_arriving

        from .load import progress

        if self.refuse is not None:
            self.refuse(offer.folder)
        self.job = None if offer.is_gguf else plan_arriving(offer, self.choose(), on_first_use=self.on_first_use)
        if self.job is None:
            _tell(offer, None, None, self.yes)
            return None
        store = self.target or cached_store(self.job)
        if not is_store(store):
            _tell(offer, self.job, store, self.yes)
        with progress() as report:
            self.made = pack(self.job, store, report, Arriving(offer))
        return self.made


def as_packed(
    format: str | None = None, *, yes: bool = False, refuse: Callable[[Path], None] | None = None
) -> PackedAsItComes:
    """How a command that packs on first use downloads, into a `format` where one is asked for."""

    def choose() -> Packing:
        from moe_local.store import first_use

        return first_use.choose(format or first_use.AUTO)

    return PackedAsItComes(choose, on_first_use=format is None, yes=yes, refuse=refuse)


def waiting() -> None:
    """Says that another process downloads the same model."""
    stderr.print("another process downloads this model: waiting for it", markup=False)


def _tell(offer: Offer, job: Job | None, store: Path | None, yes: bool) -> None:
    """Says what a download takes and asks whether to go on, where somebody is there. Raises MoeLocalError if not,
    StorageError where the disk has no room.
    """
    stderr.print(f"{offer.name} is not here yet, or not all of it", markup=False, soft_wrap=True)
    sizes, most = _needs(offer, job, store)
    where = _existing(offer.snapshot if store is None else store)
    free = shutil.disk_usage(where).free
    for line in _lines(sizes, job, store, most, free):
        stderr.print(f"  {line}", markup=False, soft_wrap=True)
    if free < most + _SPARE:
        raise StorageError(
            f"that needs {format_size(most + _SPARE)} of disk and {where} has {format_size(free)} free",
            remedy="free some space, or set HF_HOME and MOE_LOCAL_HOME to folders on a larger disk",
        )
    if yes or not (sys.stdin.isatty() and stderr.is_terminal):
        return
    if smaller := _smaller(offer):
        stderr.print(f"  smaller   ready-made on the hub: {', '.join(smaller)}", markup=False, soft_wrap=True)
    stderr.print("Go on? [Y/n] ", end="", markup=False)
    said = sys.stdin.readline()  # "" at the end of input, where nobody said yes
    if not said or said.strip().lower() not in ("", "y", "yes"):
        raise MoeLocalError("nothing was downloaded")


def _lines(sizes: Sequence[int], job: Job | None, store: Path | None, most: int, free: int) -> Iterator[str]:
    count = len(sizes)
    files = f"{count} file{'s' if count != 1 else ''}"
    goes = "" if job is None else f", {'it goes' if count == 1 else 'each goes'} again once packed (--keep-original)"
    yield f"download  {format_size(sum(sizes))} in {files}{goes}"
    if job is not None:
        yield f"packed    {format_size(job.total)} in {store}"
    yield f"disk      {format_size(most)} at most from here on, {format_size(free)} free"


def _needs(offer: Offer, job: Job | None, store: Path | None) -> tuple[list[int], int]:
    """The bytes of each file that is yet to come, and of disk that all takes at most beside what is here."""
    from moe_local.store.arriving import Arriving
    from moe_local.store.packer import left_to_pack
    from moe_local.store.parts import most_bytes, needed

    sizes = Arriving(offer).sizes
    if job is None or store is None:
        return [size for size in sizes.values() if size], sum(sizes.values())
    left = left_to_pack(job, store)
    return [sizes[file] for file in needed(left) if sizes[file]], most_bytes(left, sizes)


def _smaller(offer: Offer) -> list[str]:
    from moe_local.checkpoint.offer import ready_made

    return [] if offer.is_gguf else ready_made(offer.name.repo)


def _existing(folder: Path) -> Path:
    """A folder, or the nearest above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())
