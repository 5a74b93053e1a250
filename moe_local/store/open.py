"""From a model's name to its files: what it is, and where everything in it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from moe_local.checkpoint.architecture import (
    assert_all_captured,
    build_skeleton,
    compute_dtype,
    load_config,
    model_class,
)
from moe_local.checkpoint.catalog import Catalog, assert_choices, assert_dense_shapes, build_catalog
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.hub import locate
from moe_local.errors import MoeLocalError, UnsupportedError
from moe_local.formats.registry import supports
from moe_local.registry import choice
from moe_local.store.body import is_store
from moe_local.store.read import open_store

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint or store, understood: its model on meta, and where every tensor lies."""

    checkpoint: Checkpoint
    config: PreTrainedConfig
    skeleton: PreTrainedModel
    catalog: Catalog
    dtype: torch.dtype

    @property
    def expert_format(self) -> str:
        """How the experts are held."""
        return " and ".join(map(str, self.catalog.encodings))

    @property
    def config_hash(self) -> str:
        """Of config.json, to tell models apart."""
        return hashlib.sha256(self.config.to_json_string(use_diff=False).encode()).hexdigest()[:16]


def open_model(model: str | Path, dtype: str = "auto") -> ModelFiles:
    """The files of a model by name: a path (a checkpoint, a GGUF file, a store) or a hub's model. Reads headers.

    `dtype` is what the dense part computes in, a name of `_DTYPES`; "auto" is the checkpoint's own.
    Raises CheckpointError and UnsupportedError for what cannot be run.
    """
    directory = locate(str(model))
    if not is_store(directory):
        return open_checkpoint(Checkpoint.open(directory), dtype)
    store = open_store(directory)
    return _model_files(store.checkpoint, store.catalog, dtype)


def open_checkpoint(checkpoint: Checkpoint, dtype: str = "auto") -> ModelFiles:
    """The files of a checkpoint (no store) whose headers were read; errors as in `open_model`."""
    return _model_files(checkpoint, lambda skeleton: build_catalog(checkpoint, skeleton), dtype)


def _model_files(checkpoint: Checkpoint, catalog_of: Callable[[PreTrainedModel], Catalog], dtype: str) -> ModelFiles:
    """Builds the skeleton, has `catalog_of` find everything that it needs, and checks what was found."""
    config = load_config(checkpoint)
    chosen = _dtype(dtype) or compute_dtype(config, checkpoint)
    skeleton = build_skeleton(model_class(config), config, chosen)
    assert_all_captured(skeleton)
    catalog = catalog_of(skeleton)
    _assert_supported(catalog, checkpoint)
    assert_dense_shapes(catalog, skeleton, checkpoint.directory)
    assert_choices(catalog, config, checkpoint.directory)
    return ModelFiles(checkpoint, config, skeleton, catalog, chosen)


def in_dtype(files: ModelFiles, dtype: torch.dtype) -> ModelFiles:
    """The same files, to be computed in another dtype."""
    skeleton = build_skeleton(model_class(files.config), files.config, dtype)
    return replace(files, skeleton=skeleton, dtype=dtype)


def _dtype(name: str) -> torch.dtype | None:
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise MoeLocalError(f"--dtype {name} is unknown", remedy=choice(name, ["auto", *_DTYPES]))
    return _DTYPES[name]


def _assert_supported(catalog: Catalog, checkpoint: Checkpoint) -> None:
    for layer in catalog.layers:
        for layout in layer.kinds:
            if not supports(layout.encodings):
                raise UnsupportedError(
                    f"{checkpoint.directory} holds the experts of {layer.path} as"
                    f" {' and '.join(map(str, layout.encodings))}, which cannot be read",
                    remedy="use the model's bf16, fp16 or fp32 weights",
                )
