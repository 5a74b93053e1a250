"""Packing a checkpoint into a store: one expert in memory at a time, resumable, never half there."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import torch
import transformers
from torch import Tensor

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.quantization import without_quantization
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.checkpoint.tokenizer import load_tokenizer
from moe_local.errors import MoeLocalError, StorageError
from moe_local.files import locked
from moe_local.formats.registry import packable
from moe_local.memory.files import FileReader
from moe_local.store.body import MANIFEST, OutdatedError, is_store
from moe_local.store.encode import encode_record, encode_tensor
from moe_local.store.job import Job, layer_change, share_of, small_files
from moe_local.store.manifest import Manifest, StoredLayer, StoredMatrix
from moe_local.store.parts import Part, experts_file, most_bytes, needed, parts
from moe_local.store.progress import JOURNAL, Journal
from moe_local.store.read import header_checksum
from moe_local.store.shards import Here, Progress, Report, Shards
from moe_local.store.source import records
from moe_local.store.tensors import read_arrays, read_tensor
from moe_local.store.writer import Behind, Planned, sync_folder, written_whole
from moe_local.units import format_size
from moe_local.version import __version__

SHARD = ".safetensors"
_SPARE = 64 << 20  # bytes of disk to leave


def pack(job: Job, target: Path, report: Report | None = None, shards: Shards | None = None) -> Path:
    """Makes the store `target`, or goes on with it where an earlier run stopped.

    The checkpoint's files are had from `shards`; by default they are here. A second process that packs the same
    waits, then finds it done. Raises StorageError when the disk is too small or fails, MoeLocalError when `target`
    is something else, and what `shards` raise.
    """
    report = report or (lambda stage, fraction: None)
    try:
        if _is_made(target, job):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.resolve()
        with locked(
            beside.with_name(f"{beside.name}.lock"),
            waiting=lambda: report("another process is packing it: waiting", 0.0),
        ):
            return _pack(job, target, report, shards or Here(job.checkpoint))
    except OSError as error:
        raise StorageError(f"cannot pack into {target} ({error})", remedy="name another folder") from error


def left_to_pack(job: Job, target: Path) -> list[Part]:
    """The parts that `pack` would write: all of them, or what an earlier run into `target` left."""
    journal = Journal.read(_partial(target), job.identity)
    return [part for part in parts(job) if journal is None or part.name not in journal.done]


def _partial(target: Path) -> Path:
    """Where a store is until it is whole."""
    return target.with_name(f"{target.name}.partial")


def _is_made(target: Path, job: Job) -> bool:
    """Whether the store is there. Raises MoeLocalError when something else is, but for one to be packed again."""
    if is_store(target):
        try:
            _assert_same(target, job.identity)
        except OutdatedError:
            return False
        return True
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise MoeLocalError(f"{target} exists and is not a store", remedy="name another folder")
    return False


def _pack(job: Job, target: Path, report: Report, shards: Shards) -> Path:
    if _is_made(target, job):  # by whom we waited for
        return target
    partial = _partial(target)
    if not _is_finished(partial, job):
        journal = Journal.open(partial, job.identity)
        found = parts(job)
        left = [part for part in found if part.name not in journal.done]
        _assert_room(most_bytes(left, shards.sizes), partial)
        progress = Progress(job.total + sum(shards.sizes[file] for file in needed(left)), report)
        progress.add(sum(part.size for part in found) - sum(part.size for part in left))
        _write_all(job, left, partial, journal, progress, shards)
        _finish(job, found, partial, journal)
    shards.keep_only(())
    if target.exists():
        shutil.rmtree(target)  # empty, or of another version
    partial.rename(target)
    sync_folder(target.parent)
    return target


def _is_finished(partial: Path, job: Job) -> bool:
    """Whether an earlier run came to its end but for the last renaming."""
    if (partial / JOURNAL).exists() or not is_store(partial):
        return False
    try:
        _assert_same(partial, job.identity)
    except OutdatedError:
        shutil.rmtree(partial)
        return False
    return True


def _assert_same(target: Path, identity: dict[str, str]) -> None:
    source = Manifest.read(target).source
    if any(source.get(name) != value for name, value in identity.items()):
        raise MoeLocalError(
            f"{target} is a store of something else, or in another format", remedy="name another folder"
        )


def _assert_room(most: int, partial: Path) -> None:
    free = shutil.disk_usage(partial).free
    if free < most + _SPARE:
        raise StorageError(
            f"packing needs {format_size(most + _SPARE)} of disk and {partial.parent} has {format_size(free)} free",
            remedy="free some space, choose another folder with -o or MOE_LOCAL_HOME, or use --no-pack",
        )


def _write_all(
    job: Job, left: Sequence[Part], partial: Path, journal: Journal, progress: Progress, shards: Shards
) -> None:
    """Writes the parts that are `left`, each once its sources are here, which it gives up when it was the last."""
    shards.keep_only(needed(left))
    for number, part in enumerate(left):
        shards.need(part.sources, progress)
        files = FileReader()
        with closing(files):
            files.open(sorted(part.sources))
            if part.layer is None:
                progress.stage = "packing the dense weights"
                journal.add(part.name, _write_dense(job, part, files, partial / part.name, progress))
            else:
                progress.stage = f"packing layer {part.layer + 1} of {len(job.catalog.layers)}"
                change = layer_change(job, part.layer, files)
                checksums = _write_layer(job, part.layer, files, partial / part.name, progress)
                journal.add(part.name, checksums, change)
        shards.keep_only(needed(left[number + 1 :]))


def _write_layer(job: Job, number: int, files: FileReader, file: Path, progress: Progress) -> list[int]:
    layer, layouts = job.catalog.layers[number], job.layouts[number]
    planned = {str(expert): Planned(torch.uint8, (layout.size,)) for expert, layout in enumerate(layouts)}
    with written_whole(file, planned) as writer, Behind(writer) as behind:
        for source, layout, record in zip(layer.layouts, layouts, records(layer, files), strict=True):
            behind.write(*encode_record(source, layout, record))
            progress.add(layout.size)
    return writer.checksums


def _write_dense(job: Job, part: Part, files: FileReader, file: Path, progress: Progress) -> list[int]:
    with written_whole(file, job.dense_tensors(part.dense)) as writer:
        for name in part.dense:
            for tensor in _dense_tensors(job, name, job.catalog.dense[name], files):
                writer.write(tensor)
                progress.add(tensor.numel() * tensor.element_size())
    return writer.checksums


def _dense_tensors(job: Job, name: str, source: Source, files: FileReader) -> Iterator[Tensor]:
    matrices = job.dense.matrices.get(name)
    if matrices is None:
        yield read_tensor(source, files, job.dtype).contiguous()
        return
    arrays = read_arrays(source, files) if isinstance(source, EncodedTensor) else {}
    for matrix in matrices:
        if isinstance(source, EncodedTensor):
            yield from encode_tensor(source, arrays, matrix.encoding, job.dtype).values()
        else:
            yield from packable(matrix.encoding).encode(read_tensor(source, files, job.dtype)).values()


def _finish(job: Job, found: Sequence[Part], partial: Path, journal: Journal) -> None:
    """Copies the small files and writes the manifest, which makes the store whole."""
    small = _copy_small(job.checkpoint, partial)
    layers = tuple(
        StoredLayer(layer.path, experts_file(number), layouts, tuple(journal.done[experts_file(number)]))
        for number, (layer, layouts) in enumerate(zip(job.catalog.layers, job.layouts, strict=True))
    )
    manifest = Manifest(
        source={
            "name": str(job.checkpoint.directory.resolve()),
            **job.identity,
            "asked": job.packing.asked_of(job.checkpoint),
            "error": str(share_of(journal.changes.values())),
        },
        made_by={
            "moe-local": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        },
        formats={"experts": job.expert_formats, "dense": job.dense_formats},
        layers=layers,
        layer_of=job.catalog.layer_of,
        matrices=tuple(_matrices(job)),
        dense={
            part.name: dict(zip(job.dense_tensors(part.dense), journal.done[part.name], strict=True))
            for part in found
            if part.layer is None
        },
        headers={part.name: header_checksum(partial / part.name) for part in found},
        files=small,
    )
    for stray in partial.glob("*.partial"):
        stray.unlink()
    temporary = partial / f"{MANIFEST}.partial"
    manifest.write(temporary)
    temporary.replace(partial / MANIFEST)
    (partial / JOURNAL).unlink()


def _matrices(job: Job) -> Iterator[StoredMatrix]:
    return chain.from_iterable(job.dense.matrices.values())


def _copy_small(checkpoint: Checkpoint, partial: Path) -> dict[str, str]:
    """Configuration, tokenizer and the like; returns their SHA-256."""
    if checkpoint.gguf:
        tokenizer, _ = load_tokenizer(checkpoint)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
    for file in small_files(checkpoint):
        shutil.copyfile(file, partial / file.name)
    config = without_quantization(checkpoint.config)
    (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    others = (JOURNAL, MANIFEST, SHARD, ".partial")
    copied = sorted(file for file in partial.iterdir() if not file.name.endswith(others))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in copied}
