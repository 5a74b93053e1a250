"""The large files of a store: which files of the checkpoint each is made from, in the order in which those arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_local.checkpoint.catalog import LayerCatalog
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.store.job import Job


@dataclass(frozen=True)
class Part:
    """One file of a store: the experts of `layer`, or where that is None the tensors that come of `dense` ones.

    `size` is in bytes, without the header.
    """

    name: str
    size: int
    sources: frozenset[Path]
    layer: int | None = None
    dense: tuple[str, ...] = ()


def parts(job: Job) -> list[Part]:
    """All of them. With the checkpoint's files in the order of their names each can be made as early as may be."""
    place = {file: number for number, file in enumerate(job.checkpoint.files)}
    found = [*_expert_parts(job), *_dense_parts(job, place)]
    return sorted(found, key=lambda part: max(place[file] for file in part.sources))


def experts_file(layer: int) -> str:
    return f"experts-{layer:05}.safetensors"


def dense_file(number: int) -> str:
    return f"dense-{number:05}.safetensors"


def most_bytes(found: Sequence[Part], sizes: Mapping[Path, int]) -> int:
    """Bytes that the parts and the checkpoint's files (of `sizes`) take at once, at most: each file comes when it is
    first needed, and is deleted when it was last needed.
    """
    most = written = 0
    here: set[Path] = set()
    for number, part in enumerate(found):
        here |= part.sources
        written += part.size
        most = max(most, written + sum(sizes[file] for file in here))
        here &= needed(found[number + 1 :])
    return most


def needed(found: Iterable[Part]) -> set[Path]:
    """The checkpoint's files that parts are made from."""
    return {file for part in found for file in part.sources}


def _expert_parts(job: Job) -> Iterator[Part]:
    for number, (layer, layouts) in enumerate(zip(job.catalog.layers, job.layouts, strict=True)):
        size = sum(layout.size for layout in layouts)
        yield Part(experts_file(number), size, _files_of(layer), layer=number)


def _files_of(layer: LayerCatalog) -> frozenset[Path]:
    return frozenset(extent.file for extents in layer.records for extent in extents)


def _dense_parts(job: Job, place: Mapping[Path, int]) -> Iterator[Part]:
    """The dense tensors, together those that can be read once the same file is there."""
    groups: dict[Path, list[str]] = {}
    for name, source in job.catalog.dense.items():
        groups.setdefault(max(_sources(source), key=place.__getitem__), []).append(name)
    for number, last in enumerate(sorted(groups, key=place.__getitem__)):
        names = tuple(groups[last])
        sources = frozenset(file for name in names for file in _sources(job.catalog.dense[name]))
        size = sum(planned.length for planned in job.dense_tensors(names).values())
        yield Part(dense_file(number), size, sources, dense=names)


def _sources(source: Source) -> set[Path]:
    return {part.file for part in source.parts.values()} if isinstance(source, EncodedTensor) else {source.file}
