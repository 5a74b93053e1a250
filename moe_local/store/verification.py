"""Reading every byte of a store and comparing it with its manifest."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_local.checkpoint.header import TensorEntry, read_header
from moe_local.errors import CheckpointError
from moe_local.store.manifest import Manifest
from moe_local.store.read import header_checksum, small_digest

_PIECE = 16 << 20  # bytes read at once


def verify(directory: Path, report: Callable[[str, float], None] | None = None) -> list[str]:
    """What is damaged, in words that name the record or tensor and its file; empty if all is well.

    Raises CheckpointError when the manifest itself cannot be read.
    """
    report = report or (lambda stage, fraction: None)
    manifest = Manifest.read(directory)
    changed = (name for name, digest in manifest.files.items() if small_digest(directory / name) != digest)
    found = [f"{directory / name} is not as it was" for name in changed]
    total = sum((directory / name).stat().st_size for name in manifest.headers if (directory / name).exists())
    done = 0
    for name, expected in _files(manifest):
        file = directory / name
        problems, entries = _header(file, manifest.headers[name])
        found.extend(problems)
        for tensor, checksum in expected.items():
            entry = entries.get(tensor)
            if entry is None or _checksum(entry) != checksum:
                found.append(f"{_called(manifest, name, tensor)} in {file} is damaged")
            done += 0 if entry is None else entry.length
            report(f"verifying {name}", min(1.0, done / max(1, total)))
    return found


def _files(manifest: Manifest) -> Iterator[tuple[str, dict[str, int]]]:
    """Every large file with the checksum of each of its tensors."""
    for layer in manifest.layers:
        yield layer.file, {str(expert): checksum for expert, checksum in enumerate(layer.checksums)}
    for name, checksums in manifest.dense.items():
        yield name, dict(checksums)


def _header(file: Path, checksum: int) -> tuple[list[str], dict[str, TensorEntry]]:
    try:
        entries = read_header(file)
    except CheckpointError as error:
        return [error.message], {}
    return ([] if header_checksum(file) == checksum else [f"the header of {file} is damaged"]), entries


def _checksum(entry: TensorEntry) -> int:
    value = 0
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        left = entry.length
        while left and (piece := stream.read(min(left, _PIECE))):
            value = zlib.crc32(piece, value)
            left -= len(piece)
    return value


def _called(manifest: Manifest, file: str, tensor: str) -> str:
    layer = next((number for number, layer in enumerate(manifest.layers) if layer.file == file), None)
    return f"tensor {tensor!r}" if layer is None else f"the record of layer {layer}, expert {tensor},"
