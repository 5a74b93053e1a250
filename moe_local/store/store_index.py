"""The stores in the cache folder. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_local.checkpoint.names import named_by
from moe_local.errors import CheckpointError
from moe_local.paths import cache_dir
from moe_local.store.body import FIELDS, MANIFEST, is_store, read_body
from moe_local.store.progress import is_unfinished


@dataclass(frozen=True)
class Stored:
    """One store of the cache folder; `source` and `formats` are empty while it is not whole."""

    name: str
    directory: Path
    size: int  # bytes
    source: str
    formats: str

    @property
    def whole(self) -> bool:
        return bool(self.formats) and not self.formats.startswith(_WRONG)

    @property
    def model(self) -> str:
        """What it was packed from, as its users call it; "" where it does not say."""
        return named_by(Path(self.source)) if self.source else ""


_WRONG = ("damaged: ", "cannot be read ")


def folder() -> Path:
    return cache_dir() / "stores"


def stores() -> list[Stored]:
    """Those in the cache folder, by name; unfinished ones too."""
    return sorted(_found(), key=lambda stored: stored.name)


def _found() -> Iterator[Stored]:
    if not folder().is_dir():
        return
    for directory in folder().iterdir():
        try:
            if directory.name.startswith(".") or not directory.is_dir():  # the former are being removed
                continue
            if not (is_store(directory) or is_unfinished(directory)):
                continue
        except OSError as error:  # of somebody else, perhaps
            yield Stored(directory.name, directory, 0, "", f"cannot be read ({error.strerror})")
            continue
        source, formats = _described(directory) if is_store(directory) else ("", "")
        yield Stored(directory.name, directory, _size(directory), source, formats)


def _size(directory: Path) -> int:
    """Bytes of its files, as far as they can be seen."""
    try:
        return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
    except OSError:
        return 0


def _described(directory: Path) -> tuple[str, str]:
    """Source and formats of a store; what is wrong with it in their place."""
    try:
        body = read_body(directory)
        {field: body[field] for field in FIELDS}
        told = (body["source"]["name"], body["formats"]["experts"], body["formats"]["dense"])
        if not all(isinstance(text, str) for text in told):
            raise TypeError("something else where a text belongs")
    except CheckpointError as error:
        return "", f"damaged: remove it ({error.message})"
    except (KeyError, TypeError) as error:
        return "", f"damaged: remove it ({directory / MANIFEST} makes no sense: {error})"
    return told[0], f"{told[1]}, dense {told[2]}"
