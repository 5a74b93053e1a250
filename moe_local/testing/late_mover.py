"""A mover that takes its time and spoils what must not be touched meanwhile: a GPU's copies, without a GPU."""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import Tensor

from moe_local.keys import Key
from moe_local.memory.slab import Slab

_POISON = 0xFF  # a byte: as bf16, float16 and float32 no number


@dataclass(eq=False)
class _Upload:
    key: Key
    source: Tensor
    target: Tensor
    content: Tensor  # what the source held when the upload began


class LateMover:
    """Begins an upload by filling its target with bytes that are no numbers, and copies some time later.

    The bytes that count are the source's at that later time, so whoever writes to it before it is released, reads the
    target before the upload has arrived, or writes to it meanwhile, finds wrong numbers. What arrives, and what is
    released, comes in any order. Raises AssertionError when it finds that a slot was touched.
    """

    def __init__(self, host: Slab, device: Slab, *, seed: int = 0) -> None:
        self._host = host
        self._device = device
        self._random = random.Random(seed)
        self._started: list[_Upload] = []
        self._arrived: list[_Upload] = []  # and told of, the source not released yet

    def start(self, key: Key, source: int, target: int) -> None:
        held = self._host[source]
        self._device[target].fill_(_POISON)
        self._started.append(_Upload(key, held, self._device[target], held.clone()))

    def arrived(self, *, wait: bool) -> list[Key]:
        chosen = self._some(self._started, wait)
        for upload in chosen:
            assert upload.source.equal(upload.content), f"the source of {upload.key} was written to"
            assert (upload.target == _POISON).all(), f"the target of {upload.key} was written to"
            upload.target.copy_(upload.source)
        self._arrived.extend(chosen)
        return [upload.key for upload in chosen]

    def released(self, *, wait: bool) -> list[Key]:
        chosen = self._some(self._arrived, wait)
        for upload in chosen:
            assert upload.source.equal(upload.content), f"the source of {upload.key} was written to"
        return [upload.key for upload in chosen]

    def drain(self) -> None:
        self._started, self._arrived = [], []

    def _some(self, uploads: list[_Upload], wait: bool) -> list[_Upload]:
        """Takes some of `uploads` out, in any order; with `wait` one at least, if there is one."""
        count = self._random.randint(1 if wait and uploads else 0, len(uploads))
        chosen = self._random.sample(uploads, count)
        uploads[:] = [upload for upload in uploads if upload not in chosen]
        return chosen
