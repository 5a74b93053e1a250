"""A model of the hub that is not here yet, and its files one by one. Imports nothing heavy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from moe_local.checkpoint.names import GGUF_SUFFIX, HubName
from moe_local.errors import DownloadError, StorageError, first_line

_SHOWN = 3
_STALE = 600.0  # seconds that nobody wrote a half file for


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `version` names what is in it: for large files its SHA-256, which `hashed` tells."""

    path: str  # in the repository
    size: int  # bytes
    version: str
    hashed: bool


@dataclass(frozen=True)
class Offer:
    """A model of the hub. `snapshot` is its commit's folder in the hub's cache, where the `small` files are."""

    name: HubName
    snapshot: Path
    small: tuple[HubFile, ...]
    weights: tuple[HubFile, ...]

    @property
    def folder(self) -> Path:
        """Where the model is, once it is here."""
        return self.snapshot / self.name.path

    @property
    def is_gguf(self) -> bool:
        return self.weights[0].path.endswith(GGUF_SUFFIX)

    def place(self, file: HubFile) -> Path:
        """Where a file is, once it is here."""
        return self.snapshot / file.path

    def is_here(self) -> bool:
        """Whether all weights are."""
        return all(self.place(file).exists() for file in self.weights)


def fetch(offer: Offer, file: HubFile, arrived: Callable[[int], None]) -> None:
    """Downloads a file into the hub's cache, or finishes that, and compares it with its SHA-256.

    `arrived` is told of its bytes as they come. Raises DownloadError when it does not come or is damaged twice,
    StorageError when it cannot be written.
    """
    for again in (False, True):
        _sweep(offer, file)
        _download(offer, file, arrived, again=again)
        if is_sound(offer.place(file), file):
            return
    remove(offer.place(file))
    raise DownloadError(
        f"{file.path} of {offer.name} came damaged, twice",
        remedy="check the disk and the network, and run the same command again",
    )


def _download(offer: Offer, file: HubFile, arrived: Callable[[int], None], *, again: bool) -> None:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(
            offer.name.repo,
            file.path,
            revision=offer.snapshot.name,
            force_download=again,
            tqdm_class=_counting(arrived),
        )
    except Exception as error:  # whatever the hub's client and its network library have
        if isinstance(error, OSError) and error.errno is not None:  # the hub's own errors have no number
            raise StorageError(
                f"cannot write {file.path} of {offer.name} ({error})",
                remedy="free some space or set HF_HOME to another folder, and run the same command again: it goes on",
            ) from error
        raise DownloadError(
            f"the hub did not give {file.path} of {offer.name} ({first_line(error)})",
            remedy="check the network and run the same command again: it goes on",
        ) from error


def _sweep(offer: Offer, file: HubFile) -> None:
    """Deletes what killed downloads left of a file: the hub's client begins anew, under another name."""
    for half in offer.snapshot.parent.parent.glob(f"blobs/{file.version}.????????.incomplete"):
        with suppress(OSError):
            if time() - half.stat().st_mtime > _STALE:
                half.unlink()


def ready_made(repo: str) -> list[str]:
    """Up to three quantised copies of a model that the hub has, the most downloaded first; none if it is silent."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().list_models(filter=f"base_model:quantized:{repo}", sort="downloads", limit=_SHOWN)
        return [model.id for model in found]
    except Exception:  # whatever its client has: it was only a suggestion
        return []


def is_sound(place: Path, file: HubFile) -> bool:
    """Whether a file is what the hub says that it has."""
    if place.stat().st_size != file.size:
        return False
    if not file.hashed:
        return True
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.version


def remove(place: Path) -> None:
    """Deletes a file of a snapshot, and what it links to unless another snapshot has it too."""
    blob = place.resolve()
    place.unlink(missing_ok=True)
    if blob.parent.name == "blobs" and not any(_links(place.parents, blob)):
        blob.unlink(missing_ok=True)


def _links(folders: Iterable[Path], blob: Path) -> Iterator[Path]:
    """The links of all snapshots of a repository that lead to a blob."""
    snapshots = next(folder for folder in folders if folder.name == "snapshots")
    return (file for file in snapshots.rglob("*") if file.is_symlink() and file.resolve() == blob)


def _counting(arrived: Callable[[int], None]) -> type[Any]:
    """A bar that shows nothing and tells of what came."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # public in all but its stubs

    class Counting(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            arrived(int(n or 0))
            return None

    return Counting
