"""Checkpoints of any size that take no room: whole headers, and holes in the files where the weights would be."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from moe_local.checkpoint.architecture import build_skeleton, model_class
from moe_local.store.writer import Planned, header_of


def write_hollow_checkpoint(config: PreTrainedConfig, directory: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A checkpoint of the model that `config` describes, as it would be published in `dtype`, every weight zero.

    The file is sparse: hundreds of gigabytes take the megabyte of their header. Returns the directory, which is made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config.dtype = dtype
    model = build_skeleton(model_class(config), config, dtype)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    published = revert_weight_conversion(model, state)
    tensors = {name: Planned(tensor.dtype, tuple(tensor.shape)) for name, tensor in published.items()}
    header = header_of(tensors)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor.length for tensor in tensors.values()))
    config.save_pretrained(directory)
    return directory
