"""What a target of the fuzzer is, and how a model is opened whose files were damaged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedModel

from moe_local.checkpoint.architecture import build_skeleton, load_config, model_class
from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.files import Checkpoint
from moe_local.engine import load
from moe_local.planning.options import Options
from moe_local.testing import architecture, write_tiny_checkpoint

OPTIONS = Options(device="cpu", context=64, dtype="float32", ram=8 << 30)
SMALL = 400_000  # bytes of a shard


class Target(ABC):
    """`folder` is the target's own, for what it makes once."""

    share = 1.0  # of all inputs, beside the others'

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Makes what is sound."""

    @abstractmethod
    def damage(self, random: Random) -> None:
        """Writes what is damaged over it, whatever was damaged before."""

    @abstractmethod
    def open(self) -> None:
        """Opens it, as the product does. Who calls judges what is raised; an assertion is a wrong answer."""


def assert_inside(catalog: Catalog) -> None:
    """Every extent lies in its file, and in its record."""
    sizes: dict[Path, int] = {}
    for layer in catalog.layers:
        for layout, extents in zip(layer.layouts, layer.records, strict=True):
            for extent in extents:
                size = sizes.setdefault(extent.file, extent.file.stat().st_size)
                assert 0 <= extent.offset <= extent.offset + extent.length <= size
                assert 0 <= extent.position <= extent.position + extent.length <= layout.size


def run_through(model: Path) -> None:
    """Plans, loads, and computes a few tokens: of damage that is not seen, the numbers may be wrong and no more."""
    with load(model, OPTIONS) as engine, torch.no_grad():
        assert_inside(engine.load_plan.catalog)
        logits = engine.model(input_ids=torch.tensor([[5, 6, 7]])).logits
        assert logits.shape[:2] == (1, 3)


class Tiny(Target):
    """A tiny checkpoint of two shards, of which one file is damaged."""

    model_type = "qwen3_moe"

    def prepare(self) -> None:
        self.model = write_tiny_checkpoint(
            architecture(self.model_type), self.folder / "model", max_shard_bytes=SMALL
        )

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        config = load_config(Checkpoint.open(self.model))
        return build_skeleton(model_class(config), config, torch.float32)

    @cached_property
    def sound(self) -> bytes:
        return self.file.read_bytes()

    @property
    def file(self) -> Path:
        return self.model / "config.json"
