"""Stores with a model's shape and random weights, as fast as a disk takes them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.measuring import Say
from benchmarks.gpu.scale import Model, Scale
from moe_local.checkpoint.record import Layout
from moe_local.formats.registry import packable
from moe_local.store import pack
from moe_local.store.encode import encode_record
from moe_local.store.first_use import choose, plan
from moe_local.store.job import Job
from moe_local.store.manifest import StoredMatrix
from moe_local.store.parts import experts_file, parts
from moe_local.store.progress import Journal
from moe_local.store.writer import Planned, written_whole
from moe_local.testing import tiny_tokenizer
from moe_local.testing.hollow import write_hollow_checkpoint

STD = 0.02
EMBEDDING_SCALE = 64  # without it nearly all tokens are routed to the same experts


class Noise:
    """Random numbers N(0, `STD`), bf16: `count` of them, again and again, which takes no longer than to copy them."""

    def __init__(self, count: int) -> None:
        numbers = torch.empty(count).normal_(0, STD, generator=torch.Generator().manual_seed(0))
        self._numbers = numbers.to(torch.bfloat16)
        self._next = 0

    def take(self, count: int) -> Tensor:
        """bf16 [count]."""
        taken = torch.empty(count, dtype=torch.bfloat16)
        filled = 0
        while filled < count:
            part = self._numbers[self._next : self._next + count - filled]
            taken[filled : filled + len(part)] = part
            filled += len(part)
            self._next = (self._next + len(part)) % len(self._numbers)
        return taken


def make(say: Say, model: Model, scale: Scale, folder: Path) -> None:
    """Writes the store `folder`/`model.name`.

    A packing of a checkpoint whose weights are holes is taken up where it would only have to be finished: all large
    files are there, of random numbers, a few different experts in each layer again and again.
    """
    noise = Noise(scale.noise)
    hollow = write_hollow_checkpoint(scale.config(model), folder / f"{model.name}-hollow")
    tiny_tokenizer().save_pretrained(hollow)
    formats = model.formats
    job = plan(hollow, choose(formats.experts, formats.group, formats.dense))
    store = folder / model.name
    partial = store.with_name(f"{store.name}.partial")
    journal = Journal.open(partial, job.identity)
    _write_experts(job, partial, journal, model.prototypes, noise)
    _write_dense(job, partial, journal, noise)
    pack(job, store)
    say(store_bytes=job.total, layers=len(job.layouts), experts=sum(map(len, job.layouts)))
    say(record_bytes=job.layouts[0][0].size, format=job.expert_formats)


def _write_experts(job: Job, partial: Path, journal: Journal, count: int, noise: Noise) -> None:
    made: dict[Layout | int, list[Tensor]] = {}
    for number, (layer, layouts) in enumerate(zip(job.catalog.layers, job.layouts, strict=True)):
        records = made.get(layouts[0].size)
        if records is None:
            source, target = layer.layouts[0], layouts[0]
            records = [_record(source, target, noise) for _ in range(min(count, len(layouts)))]
            made[target.size] = records
        planned = {str(expert): Planned(torch.uint8, (layout.size,)) for expert, layout in enumerate(layouts)}
        with written_whole(partial / experts_file(number), planned) as writer:
            for expert in range(len(layouts)):
                writer.write(records[(number + expert) % len(records)])
        journal.add(experts_file(number), writer.checksums, (0.0, 1.0))  # of random numbers nobody asks


def _record(source: Layout, target: Layout, noise: Noise) -> Tensor:
    numbers = noise.take(source.size // 2)
    return torch.cat(encode_record(source, target, numbers.view(torch.uint8)))


def _write_dense(job: Job, partial: Path, journal: Journal, noise: Noise) -> None:
    made: dict[object, list[Tensor]] = {}  # layers have the same encoded matrices; routers and norms are their own

    def encoded(name: str, matrix: StoredMatrix) -> list[Tensor]:
        key = matrix.encoding, matrix.shape
        if key not in made:
            arrays = packable(matrix.encoding).encode(_dense(name, matrix.shape, noise))
            made[key] = [array.contiguous() for array in arrays.values()]
        return made[key]

    for part in (part for part in parts(job) if part.layer is None):
        planned = job.dense_tensors(part.dense)
        with written_whole(partial / part.name, planned) as writer:
            for name in part.dense:
                for matrix in job.dense.matrices.get(name, ()):
                    for array in encoded(name, matrix):
                        writer.write(array)
                if name not in job.dense.matrices:
                    shape = tuple(job.catalog.dense[name].shape)
                    writer.write(_dense(name, shape, noise).to(planned[name].dtype))
        journal.add(part.name, writer.checksums)


def _dense(name: str, shape: tuple[int, ...], noise: Noise) -> Tensor:
    """A weight outside the experts: a norm's ones, a bias's zeros, else random."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith("norm.weight")), dtype=torch.bfloat16)
    scale = EMBEDDING_SCALE if "embed" in name else 1
    return noise.take(math.prod(shape)).view(shape) * scale
