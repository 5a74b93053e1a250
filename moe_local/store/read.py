"""Opening a store: its manifest against its files, and the catalog of what is in them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from moe_local.checkpoint.architecture import experts_modules
from moe_local.checkpoint.catalog import Catalog, LayerCatalog
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import MAX_HEADER, TensorEntry, read_header
from moe_local.checkpoint.json_file import read_json
from moe_local.checkpoint.record import EncodedTensor, Extent
from moe_local.checkpoint.regular import open_regular, read_regular
from moe_local.errors import CheckpointError, first_line
from moe_local.store.body import MANIFEST
from moe_local.store.checks import assert_of_model, assert_sound, assert_stored
from moe_local.store.manifest import Manifest, StoredLayer, StoredMatrix

_MOST_SMALL = 256 << 20  # bytes
_AGAIN = "`moe-local verify` tells which parts; pack it again"


class Store:
    """A whole store, its headers and small files checked against its manifest. Raises CheckpointError otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = Manifest.read(directory)
        with _told_of(directory):
            assert_sound(self.manifest)
        self.entries = {name: self._header(name, checksum) for name, checksum in self.manifest.headers.items()}
        for name, digest in self.manifest.files.items():
            if small_digest(directory / name) != digest:
                raise CheckpointError(f"{directory / name} is not as the manifest says", remedy=_AGAIN)

    def _header(self, name: str, checksum: int) -> dict[str, TensorEntry]:
        file = self.directory / name
        entries = read_header(file)
        if header_checksum(file) != checksum:
            raise CheckpointError(f"the header of {file} is not as the manifest says", remedy=_AGAIN)
        return entries

    @property
    def checkpoint(self) -> Checkpoint:
        """The store as a checkpoint: its configuration and tensors, whatever is in them."""
        tensors = {f"{file}:{name}": entry for file, found in self.entries.items() for name, entry in found.items()}
        return Checkpoint(self.directory, read_json(self.directory / "config.json"), tensors)

    def catalog(self, skeleton: PreTrainedModel) -> Catalog:
        """Where everything is. Raises CheckpointError when it is not this model."""
        paths, numbers = set(self.manifest.layer_of), set(self.manifest.layer_of.values())
        if paths != set(experts_modules(skeleton)) or numbers != set(range(len(self.manifest.layers))):
            raise CheckpointError(
                f"{self.directory} has other MoE layers than {type(skeleton).__name__}", remedy="pack it again"
            )
        with _told_of(self.directory):
            assert_of_model(self.manifest, skeleton)
        layers = tuple(self._layer(layer) for layer in self.manifest.layers)
        encoded = {matrix.path: self._matrix(matrix) for matrix in self.manifest.matrices}
        used = {part.name for tensor in encoded.values() for part in tensor.parts.values()}
        dense = {name: entry for name, entry in self._dense.items() if name not in used}
        return Catalog(layers, self.manifest.layer_of, dense, encoded=encoded)

    @cached_property
    def _dense(self) -> dict[str, TensorEntry]:
        return {name: entry for file in self.manifest.dense for name, entry in self.entries[file].items()}

    def _layer(self, layer: StoredLayer) -> LayerCatalog:
        entries = self.entries.get(layer.file, {})
        records = []
        for expert in range(len(layer.checksums)):
            entry = entries.get(str(expert))
            if entry is None or entry.length != layer.layouts[expert].size:
                raise CheckpointError(
                    f"{self.directory / layer.file} has no whole record of expert {expert}", remedy=_AGAIN
                )
            records.append((Extent(entry.file, entry.offset, entry.length, 0),))
        return LayerCatalog(layer.path, layer.layouts, tuple(records))

    def _matrix(self, matrix: StoredMatrix) -> EncodedTensor:
        prefix = f"{matrix.path}::"
        parts = {name.removeprefix(prefix): entry for name, entry in self._dense.items() if name.startswith(prefix)}
        if not parts:
            raise CheckpointError(f"{self.directory} lacks the matrix of {matrix.path}", remedy=_AGAIN)
        with _told_of(self.directory):
            assert_stored(matrix, parts)
        return EncodedTensor(f"{matrix.path}.weight", matrix.shape, matrix.encoding, parts)


@contextmanager
def _told_of(directory: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CheckpointError(
            f"{directory / MANIFEST} makes no sense ({first_line(error)})",
            remedy=f"delete {directory} and pack it again",
        ) from error


def open_store(directory: Path) -> Store:
    return Store(directory)


def header_checksum(file: Path) -> int:
    """CRC-32 of a safetensors header, its length included."""
    with open_regular(file) as stream:
        prefix = stream.read(8)
        length = min(MAX_HEADER, int.from_bytes(prefix, "little"))
        return zlib.crc32(prefix + stream.read(length))


def small_digest(file: Path) -> str | None:
    """SHA-256 of a small file; None if it cannot be read, or is not small."""
    try:
        return hashlib.sha256(read_regular(file, _MOST_SMALL)).hexdigest()
    except (OSError, CheckpointError):
        return None
