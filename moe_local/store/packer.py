"""Packing a checkpoint into a store: one expert in memory at a time, resumable, never half there."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from torch import Tensor
from transformers import PreTrainedModel

from moe_local import __version__
from moe_local.checkpoint.catalog import Catalog, LayerCatalog
from moe_local.checkpoint.files import INDEX, Checkpoint
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor, Encoding, Layout, Source
from moe_local.checkpoint.tokenizer import load_tokenizer
from moe_local.config import format_size
from moe_local.errors import MoeLocalError, StorageError
from moe_local.formats import decode_projection, decode_tensor, packable
from moe_local.memory.disk import FileReader, RecordReader
from moe_local.store.dense import DensePlan, plan_dense
from moe_local.store.encode import encode_record, encode_tensor, encoded_specs, packed_layout
from moe_local.store.manifest import DENSE, MANIFEST, Manifest, StoredLayer, StoredMatrix, is_store
from moe_local.store.nearest import nearest
from moe_local.store.read import header_checksum
from moe_local.store.writer import Planned, StreamWriter, sync_folder, written_whole

Report = Callable[[str, float], None]  # (stage, fraction done)
JOURNAL = "journal.jsonl"
_AHEAD = 4  # records read while one is encoded
_BEHIND = 4  # and encoded while one is written
_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_SPARE = 64 << 20  # bytes of disk to leave


@dataclass(frozen=True)
class Packing:
    """What to pack into: the experts' encoding, and the dense matrices' (None leaves them as they are).

    With `near`, what is quantised already goes into the encoding nearest to its own.
    """

    experts: Encoding
    dense: Encoding | None
    near: bool = False

    def __str__(self) -> str:
        return f"{self.experts}, dense {self.dense or 'as it is'}" + (", or the nearest" if self.near else "")

    def of_expert(self, encoding: Encoding) -> Encoding:
        return nearest(encoding, self.experts) if self.near else self.experts

    def of_dense(self, encoding: Encoding | None) -> Encoding:
        assert self.dense is not None
        return self.dense if encoding is None or not self.near else nearest(encoding, self.dense)


@dataclass(frozen=True)
class Job:
    """A packing that was understood and not yet begun."""

    checkpoint: Checkpoint
    catalog: Catalog
    layouts: tuple[Layout, ...]
    dense: DensePlan
    packing: Packing
    dtype: torch.dtype  # of dense tensors that the checkpoint holds encoded

    @property
    def total(self) -> int:
        """Bytes of the store's large files."""
        experts = sum(
            layer.experts * layout.size for layer, layout in zip(self.catalog.layers, self.layouts, strict=True)
        )
        return experts + sum(planned.length for planned in self.dense_tensors().values())

    @property
    def expert_formats(self) -> str:
        """What the experts are packed into, each format once."""
        found = (encoding for layout in self.layouts for encoding in layout.encodings)
        return " and ".join(dict.fromkeys(map(str, found)))

    def dense_tensors(self) -> dict[str, Planned]:
        """The tensors of the dense file in the order they are written."""
        found: dict[str, Planned] = {}
        for name, source in self.catalog.dense.items():
            for matrix in self.dense.matrices.get(name, ()):
                for array, spec in encoded_specs(matrix.encoding, matrix.shape).items():
                    found[f"{matrix.path}::{array}"] = Planned(spec.dtype, spec.shape, spec.length)
            if name not in self.dense.matrices:
                found[name] = self._plain(source)
        return found

    def _plain(self, source: Source) -> Planned:
        if isinstance(source, TensorEntry):
            return Planned(source.dtype, source.shape, source.length)
        shape = tuple(source.shape)
        shape = (*shape[:-2], shape[-1], shape[-2]) if source.transposed else shape
        return Planned(self.dtype, shape, torch.Size(shape).numel() * self.dtype.itemsize)


def plan_packing(
    checkpoint: Checkpoint, catalog: Catalog, skeleton: PreTrainedModel, packing: Packing, dtype: torch.dtype
) -> Job:
    """What packing will make, and how much of it. Reads nothing."""
    layouts = tuple(packed_layout(layer.layout, packing.of_expert) for layer in catalog.layers)
    dense = plan_dense(catalog, skeleton, None if packing.dense is None else packing.of_dense)
    return Job(checkpoint, catalog, layouts, dense, packing, dtype)


def fingerprint(checkpoint: Checkpoint) -> str:
    """Changes when the checkpoint's configuration, tensors or files do."""
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for name, entry in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape} {entry.offset}".encode())
    for file in checkpoint.files:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def pack(job: Job, target: Path, report: Report | None = None) -> Path:
    """Makes the store `target`, or goes on with it where an earlier run stopped.

    A second process that packs the same waits, then finds it done. Raises StorageError when the disk is too small or
    fails, MoeLocalError when `target` is something else.
    """
    report = report or (lambda stage, fraction: None)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(Path(f"{target}.lock"), report):
        identity = {"fingerprint": fingerprint(job.checkpoint), "packing": str(job.packing)}
        if is_store(target):
            _assert_same(target, identity)
            return target
        if target.exists() and any(target.iterdir()):
            raise MoeLocalError(f"{target} exists and is not a store", remedy="name another folder")
        partial = target.with_name(f"{target.name}.partial")
        journal = Journal.open(partial, identity)
        _assert_room(job, partial, journal)
        _write_all(job, partial, journal, report)
        _finish(job, partial, journal, identity)
        if target.exists():
            target.rmdir()
        partial.rename(target)
        sync_folder(target.parent)
    return target


@contextmanager
def _only_one(file: Path, report: Report) -> Iterator[None]:
    """Holds a lock that the system gives back when the process ends, however it does."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("another process is packing it: waiting", 0.0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _assert_same(target: Path, identity: dict[str, str]) -> None:
    source = Manifest.read(target).source
    if any(source.get(name) != value for name, value in identity.items()):
        raise MoeLocalError(
            f"{target} is a store of something else, or in another format", remedy="name another folder"
        )


def _assert_room(job: Job, partial: Path, journal: Journal) -> None:
    needed = job.total - journal.bytes_done(partial) + _SPARE
    free = shutil.disk_usage(partial).free
    if free < needed:
        raise StorageError(
            f"packing needs {format_size(needed)} of disk and {partial.parent} has {format_size(free)} free",
            remedy="free some space, choose another folder with -o or MOE_LOCAL_HOME, or use --no-pack",
        )


class Journal:
    """The files that are whole, with the checksums of their tensors: a line each, written after the file."""

    def __init__(self, file: Path, done: dict[str, list[int]]) -> None:
        self._file = file
        self.done = done

    @classmethod
    def open(cls, partial: Path, identity: dict[str, str]) -> Journal:
        """The journal in `partial`; an empty one where that is of another packing, which is thrown away."""
        file = partial / JOURNAL
        lines = _json_lines(file)
        if not lines or lines[0] != identity:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            journal = cls(file, {})
            journal._append(identity)
            return journal
        whole = {line["file"]: line["checksums"] for line in lines[1:] if (partial / line["file"]).exists()}
        return cls(file, whole)

    def add(self, name: str, checksums: list[int]) -> None:
        self.done[name] = checksums
        self._append({"file": name, "checksums": checksums})

    def _append(self, line: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def bytes_done(self, partial: Path) -> int:
        return sum((partial / name).stat().st_size for name in self.done)


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """The lines that are whole: a kill may cut the last."""
    lines: list[dict[str, Any]] = []
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


def _write_all(job: Job, partial: Path, journal: Journal, report: Report) -> None:
    files = FileReader()
    files.open(job.checkpoint.files)
    progress = Progress(job.total, report)
    with closing(files):
        for number, layer in enumerate(job.catalog.layers):
            name = experts_file(number)
            progress.stage = f"packing layer {number + 1} of {len(job.catalog.layers)}"
            if name in journal.done:
                progress.add(layer.experts * job.layouts[number].size)
            else:
                journal.add(name, _write_layer(layer, job.layouts[number], files, partial / name, progress))
        progress.stage = "packing the dense weights"
        if DENSE not in journal.done:
            journal.add(DENSE, _write_dense(job, files, partial / DENSE, progress))


def experts_file(layer: int) -> str:
    return f"experts-{layer:05}.safetensors"


class Progress:
    """Bytes written, told as a fraction."""

    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._done = 0
        self.stage = ""

    def add(self, count: int) -> None:
        self._done += count
        self._report(self.stage, min(1.0, self._done / max(1, self._total)))


def _write_layer(layer: LayerCatalog, layout: Layout, files: FileReader, file: Path, progress: Progress) -> list[int]:
    planned = {str(expert): Planned(torch.uint8, (layout.size,), layout.size) for expert in range(layer.experts)}
    with written_whole(file, planned) as writer, Behind(writer) as behind:
        for record in _records(layer, files):
            behind.write(*encode_record(layer.layout, layout, record))
            progress.add(layout.size)
    return writer.checksums


def _records(layer: LayerCatalog, files: FileReader) -> Iterator[Tensor]:
    """Every record of a layer in order, uint8 [bytes], some read ahead. One is valid until `_BEHIND` more came."""
    count = _AHEAD + _BEHIND
    buffers = [torch.empty(layer.layout.size, dtype=torch.uint8) for _ in range(count)]
    arrived: set[int] = set()
    started = 0
    with closing(RecordReader(files)) as reader:
        for expert in range(layer.experts):
            while started < min(layer.experts, expert + _AHEAD):
                reader.start((0, started), layer.records[started], buffers[started % count].numpy().data)
                started += 1
            while expert not in arrived:
                arrived.add(reader.next_arrival()[1])
            files.forget(layer.records[expert])
            yield buffers[expert % count]


class Behind:
    """Writes in a thread of its own, a few tensors behind."""

    def __init__(self, writer: StreamWriter) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="moe-local-write")
        self._pending: list[Future[None]] = []

    def write(self, *parts: Tensor) -> None:
        while len(self._pending) > _BEHIND - 2:
            self._pending.pop(0).result()
        self._pending.append(self._thread.submit(self._writer.write, *parts))

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                for future in self._pending:
                    future.result()
        finally:
            self._thread.shutdown(wait=True, cancel_futures=True)


def _write_dense(job: Job, files: FileReader, file: Path, progress: Progress) -> list[int]:
    planned = job.dense_tensors()
    with written_whole(file, planned) as writer:
        for name, source in job.catalog.dense.items():
            for tensor in _dense_tensors(job, name, source, files):
                writer.write(tensor)
                progress.add(tensor.numel() * tensor.element_size())
    return writer.checksums


def _dense_tensors(job: Job, name: str, source: Source, files: FileReader) -> Iterator[Tensor]:
    matrices = job.dense.matrices.get(name)
    if matrices is None:
        yield read_source(source, files, job.dtype).contiguous()
        return
    arrays = _arrays(source, files) if isinstance(source, EncodedTensor) else {}
    for matrix in matrices:
        if isinstance(source, EncodedTensor):
            yield from encode_tensor(source, arrays, matrix.encoding, job.dtype).values()
        else:
            yield from packable(matrix.encoding).encode(read_source(source, files, job.dtype)).values()


def read_source(source: Source, files: FileReader, dtype: torch.dtype) -> Tensor:
    """A whole tensor of the checkpoint, decoded to `dtype` if it is encoded."""
    if isinstance(source, EncodedTensor):
        return decode_tensor(source, _arrays(source, files), dtype)
    raw = torch.empty(source.length, dtype=torch.uint8)
    files(source.file, source.offset, raw.numpy().data)
    return raw.view(source.dtype).view(source.shape)


def _arrays(source: EncodedTensor, files: FileReader) -> dict[str, Tensor]:
    return {name: read_source(part, files, part.dtype) for name, part in source.parts.items()}


def relative_error(job: Job) -> float:
    """What packing costs: the root mean square of the change over that of the numbers, from one expert a layer."""
    files = FileReader()
    files.open(job.checkpoint.files)
    change = energy = 0.0
    with closing(files):
        for layer, layout in zip(job.catalog.layers, job.layouts, strict=True):
            record = next(_records(layer, files))
            packed = torch.cat(encode_record(layer.layout, layout, record))
            for name, projection in layer.layout.projections.items():
                before = decode_projection(projection, record, torch.float32)
                after = decode_projection(layout.projections[name], packed, torch.float32)
                change += float((after - before).square().sum())
                energy += float(before.square().sum())
    return math.sqrt(change / energy) if energy else 0.0


def _finish(job: Job, partial: Path, journal: Journal, identity: dict[str, str]) -> None:
    """Copies the small files and writes the manifest, which makes the store whole."""
    small = _copy_small(job.checkpoint, partial)
    layers = tuple(
        StoredLayer(layer.path, experts_file(number), layout, tuple(journal.done[experts_file(number)]))
        for number, (layer, layout) in enumerate(zip(job.catalog.layers, job.layouts, strict=True))
    )
    planned = job.dense_tensors()
    headers = {layer.file: header_checksum(partial / layer.file) for layer in layers}
    manifest = Manifest(
        source={"name": str(job.checkpoint.directory.resolve()), **identity},
        made_by={
            "moe-local": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        },
        formats={"experts": job.expert_formats, "dense": str(job.packing.dense or "as it was")},
        layers=layers,
        layer_of=job.catalog.layer_of,
        matrices=tuple(_matrices(job)),
        dense=dict(zip(planned, journal.done[DENSE], strict=True)),
        headers={**headers, DENSE: header_checksum(partial / DENSE)},
        files=small,
    )
    (partial / JOURNAL).unlink()
    for stray in partial.glob("*.partial"):
        stray.unlink()
    temporary = partial / f"{MANIFEST}.partial"
    manifest.write(temporary)
    temporary.replace(partial / MANIFEST)


def _matrices(job: Job) -> Iterator[StoredMatrix]:
    return chain.from_iterable(job.dense.matrices.values())


def _copy_small(checkpoint: Checkpoint, partial: Path) -> dict[str, str]:
    """Configuration, tokenizer and the like; returns their SHA-256."""
    if checkpoint.gguf:
        tokenizer, _ = load_tokenizer(checkpoint)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
    for file in [] if checkpoint.gguf else sorted(checkpoint.directory.iterdir()):
        if file.is_file() and file.suffix in _SMALL and file.name not in (INDEX, "config.json", MANIFEST):
            shutil.copyfile(file, partial / file.name)
    config = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
    (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    copied = sorted(file for file in partial.iterdir() if file.suffix in _SMALL)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in copied}
