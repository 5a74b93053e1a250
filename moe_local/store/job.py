"""What a packing will make of a checkpoint, before anything is written."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from moe_local.checkpoint.catalog import Catalog, LayerCatalog, distinct, shared
from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.names import INDEX
from moe_local.checkpoint.quantization import QUANT_FILE
from moe_local.checkpoint.record import Layout, Source
from moe_local.checkpoint.schemes import method
from moe_local.formats.records import decode_projection
from moe_local.formats.registry import nearest
from moe_local.memory.files import FileReader
from moe_local.store.body import MANIFEST, VERSION
from moe_local.store.dense_packing import DensePlan, plan_dense
from moe_local.store.encode import encode_record, encoded_specs, packed_layout
from moe_local.store.open import ModelFiles
from moe_local.store.source import read_record
from moe_local.store.writer import Planned

_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_OTHERS = (INDEX, "config.json", QUANT_FILE, MANIFEST)  # made anew, or of no use


@dataclass(frozen=True)
class Packing:
    """What to pack into: the experts' encoding, and the dense matrices' (None leaves them as they are).

    With `near`, what is quantised already goes into the encoding nearest to its own.
    """

    experts: Encoding
    dense: Encoding | None
    near: bool = False

    def of_expert(self, encoding: Encoding) -> Encoding:
        return nearest(encoding, self.experts) if self.near else self.experts

    def of_dense(self, encoding: Encoding | None) -> Encoding:
        assert self.dense is not None
        return self.dense if encoding is None or not self.near else nearest(encoding, self.dense)

    def asked_of(self, checkpoint: Checkpoint) -> str:
        """What is asked for, in words that a store keeps: with the same words, the same comes of this checkpoint.

        What is not quantised has nothing to be near to.
        """
        near = "nearest or " if self.near and method(checkpoint) is not None else ""
        return f"{near}{self.experts}, dense {self.dense or 'kept'}"


@dataclass(frozen=True)
class Job:
    """A packing that was understood and not yet begun."""

    checkpoint: Checkpoint
    catalog: Catalog
    layouts: tuple[tuple[Layout, ...], ...]  # [layers][experts], equal ones the very same
    dense: DensePlan
    packing: Packing
    dtype: torch.dtype  # of dense tensors that the checkpoint holds encoded

    @property
    def total(self) -> int:
        """Bytes of the store's large files."""
        experts = sum(layout.size for layouts in self.layouts for layout in layouts)
        dense = self.dense_tensors(self.catalog.dense)
        return experts + sum(planned.length for planned in dense.values())

    @property
    def expert_formats(self) -> str:
        """What the experts are packed into, each format once, joined by "and"."""
        found = (
            encoding for layouts in self.layouts for layout in distinct(layouts) for encoding in layout.encodings
        )
        return " and ".join(dict.fromkeys(map(str, found)))

    @property
    def dense_formats(self) -> str:
        """What dense matrices are packed into, each format once."""
        found = (str(matrix.encoding) for matrices in self.dense.matrices.values() for matrix in matrices)
        return " and ".join(sorted(set(found))) or "as it was"

    @cached_property
    def identity(self) -> dict[str, str]:
        """What tells one packing from another: of which files, and into what."""
        packing = f"{self.expert_formats}, dense {self.dense_formats}"
        return {"fingerprint": fingerprint(self.checkpoint), "packing": packing, "layout": str(VERSION)}

    @cached_property
    def error(self) -> float:
        """See `relative_error`."""
        return relative_error(self)

    def dense_tensors(self, names: Iterable[str]) -> dict[str, Planned]:
        """What comes of these dense tensors of the checkpoint, in the order in which it is written."""
        found: dict[str, Planned] = {}
        for name in names:
            source = self.catalog.dense[name]
            for matrix in self.dense.matrices.get(name, ()):
                for array, planned in encoded_specs(matrix.encoding, matrix.shape).items():
                    found[f"{matrix.path}::{array}"] = planned
            if name not in self.dense.matrices:
                found[name] = self._plain(source)
        return found

    def _plain(self, source: Source) -> Planned:
        if isinstance(source, TensorEntry):
            return Planned(source.dtype, source.shape)
        shape = tuple(source.shape)
        shape = (*shape[:-2], shape[-1], shape[-2]) if source.transposed else shape
        return Planned(self.dtype, shape)


def plan_packing(files: ModelFiles, packing: Packing) -> Job:
    """What packing a checkpoint will make, and how much of it. Reads nothing."""
    layouts = tuple(_packed_layouts(layer, packing) for layer in files.catalog.layers)
    dense = plan_dense(files.catalog, files.skeleton, None if packing.dense is None else packing.of_dense)
    return Job(files.checkpoint, files.catalog, layouts, dense, packing, files.dtype)


def _packed_layouts(layer: LayerCatalog, packing: Packing) -> tuple[Layout, ...]:
    """The layout of every expert of a layer once it is packed."""
    packed = {id(layout): packed_layout(layout, packing.of_expert) for layout in layer.kinds}
    return shared([packed[id(layout)] for layout in layer.layouts])


def fingerprint(checkpoint: Checkpoint) -> str:
    """64 hex digits that change when the checkpoint's configuration, tensors or files do, and not with its folder's
    name. Reads nothing beyond what opening it read.
    """
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for name, entry in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape} {entry.offset}".encode())
    for file in (*checkpoint.files, *small_files(checkpoint)):
        digest.update(f"{file.name} {checkpoint.versions.get(file.name) or _version(file)}".encode())
    return digest.hexdigest()


def _version(file: Path) -> str:
    """What changes when the file does: in the hub's cache, where it is a link, the name of what is in it."""
    if file.is_symlink() and (target := file.resolve()).parent.name == "blobs":
        return target.name
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def small_files(checkpoint: Checkpoint) -> list[Path]:
    """Tokenizer, templates and the like, that a store has copies of."""
    if checkpoint.gguf:
        return []
    found = sorted(checkpoint.directory.iterdir())
    return [file for file in found if file.is_file() and file.suffix in _SMALL and file.name not in _OTHERS]


def relative_error(job: Job) -> float:
    """What packing costs: the root mean square of the change over that of the numbers.

    From one expert of every layout of a layer.
    """
    files = FileReader()
    files.open(job.checkpoint.files)
    with closing(files):
        return share_of(layer_change(job, number, files) for number in range(len(job.layouts)))


def share_of(changes: Iterable[tuple[float, float]]) -> float:
    """The relative error that layers' `layer_change` add up to."""
    found = list(changes)
    change, energy = sum(change for change, _ in found), sum(energy for _, energy in found)
    return math.sqrt(change / energy) if energy else 0.0


def layer_change(job: Job, number: int, files: FileReader) -> tuple[float, float]:
    """Of one expert of every layout of a layer: the squares of what packing changes, and of the numbers, summed."""
    change = energy = 0.0
    for source, target, record in _samples(job, number, files):
        packed = torch.cat(encode_record(source, target, record))
        for name, projection in source.projections.items():
            before = decode_projection(projection, record, torch.float32)
            after = decode_projection(target.projections[name], packed, torch.float32)
            change += float((after - before).square().sum())
            energy += float(before.square().sum())
    return change, energy


def _samples(job: Job, number: int, files: FileReader) -> Iterator[tuple[Layout, Layout, Tensor]]:
    """The first record of every layout of a layer, as it is and as it will be laid out."""
    layer, layouts = job.catalog.layers[number], job.layouts[number]
    for source in layer.kinds:
        expert = next(expert for expert, layout in enumerate(layer.layouts) if layout is source)
        yield source, layouts[expert], read_record(layer, expert, files)
