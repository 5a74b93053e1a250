"""A GGUF file, or a set of them, as a checkpoint: names, shapes and configuration as Hugging Face has them.

Quantised tensors stay rows of blocks, uint8 [out, bytes of a row]; the `quantization_config` made here says which
they are (see `schemes.gguf`). Experts, which GGUF stacks by projection, become one tensor each: slices of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import WeightTransform

from moe_local.checkpoint.gguf_architecture import GgufArchitecture
from moe_local.checkpoint.gguf_architectures import KNOWN
from moe_local.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from moe_local.checkpoint.gguf_metadata import ROPE_FACTORS, Metadata
from moe_local.checkpoint.gguf_tensors import PLAIN_TYPES, TensorOptions, named, unknown_tensor
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.regular import open_regular
from moe_local.errors import CheckpointError, UnsupportedError

SUFFIX = ".gguf"

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_IN_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>\w+)")
_UNUSED = ("attn_rot_embd",)  # tables of rotary frequencies, of old files: computed instead
_MOST_FACTORS = 1 << 12
_PROJECTOR = "mmproj"  # files of this name hold the part that sees images, for use beside a language model


def only_gguf(directory: Path) -> Path | None:
    """The GGUF file of a directory, or the first of its one set; None if there is none.

    Raises CheckpointError where there are several to choose from.
    """
    files = sorted(file for file in directory.glob(f"*{SUFFIX}") if not file.name.startswith(_PROJECTOR))
    models = {match["stem"] if (match := _PART.fullmatch(file.name)) else file.name for file in files}
    if len(models) > 1:
        raise CheckpointError(
            f"{directory} holds {len(models)} GGUF models", remedy=f"name one of them, like {files[0]}"
        )
    return files[0] if files else None


def read_gguf(files: list[Path]) -> tuple[dict[str, Any], dict[str, TensorEntry], tuple[WeightTransform, ...]]:
    """(config, tensors, conversions) of a GGUF file, or of a set in order, from headers alone.

    Raises CheckpointError for missing or damaged files, UnsupportedError for what cannot be run.
    """
    headers = [read_gguf_header(file) for file in files]
    name = headers[0].metadata.get("general.architecture")
    if not isinstance(name, str) or name not in KNOWN:
        raise UnsupportedError(
            f"{files[0]} is a GGUF of architecture {name!r}, which is not supported",
            remedy=f"use one of {', '.join(sorted(KNOWN))}, or the model's safetensors repository",
        )
    known = KNOWN[name]
    raw = _together(headers)
    factors = {name: _factors(raw.pop(name)) for name in ROPE_FACTORS if known.rope_factors and name in raw}
    given = Metadata(headers[0].file, name, headers[0].metadata, raw, factors)
    config = _config(known, given, raw)
    used = [
        tensor for tensor in _of_layers(raw, config["num_hidden_layers"], given) if tensor.name not in known.unused
    ]
    tensors: dict[str, TensorEntry] = {}
    options: dict[str, TensorOptions] = {}
    for name, entries, told in named(known, config, used):
        tensors |= {entry.name: entry for entry in entries}
        if told is not None:
            options[name] = told
    config["quantization_config"] = {"quant_method": "gguf", "tensors": options}
    return config, tensors, known.conversions()


def _of_layers(tensors: dict[str, GgufTensor], layers: int, given: Metadata) -> Iterator[GgufTensor]:
    """Without those that predict several tokens at once, which come after the layers and are not run here."""
    extra = given.integer("nextn_predict_layers", 0)
    for tensor in tensors.values():
        match = _IN_LAYER.match(tensor.name)
        if not (match and (layers <= int(match["layer"]) < layers + extra or match["part"] in _UNUSED)):
            yield tensor


def _factors(tensor: GgufTensor) -> tuple[float, ...]:
    """The numbers of a short vector. Raises CheckpointError if it is none, or they are not above zero."""
    dtype = PLAIN_TYPES.get(tensor.type)
    if dtype is None or len(tensor.shape) != 1 or tensor.shape[0] > _MOST_FACTORS:
        raise unknown_tensor(tensor)
    with open_regular(tensor.file) as stream:
        stream.seek(tensor.offset)
        data = bytearray(stream.read(tensor.length))
    numbers = torch.frombuffer(data, dtype=dtype).tolist() if len(data) == tensor.length else []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise CheckpointError(f"{tensor.file} has a damaged tensor {tensor.name!r}", remedy="download it again")
    return tuple(numbers)


def gguf_set(file: Path) -> list[Path]:
    """The files of the set that a file belongs to, in order: the first has the metadata. Raises CheckpointError."""
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    count = int(match["count"])
    parts = [file.with_name(f"{match['stem']}-{number:05}-of-{count:05}{SUFFIX}") for number in range(1, count + 1)]
    for part in parts:
        if not part.exists():
            raise CheckpointError(f"{part} is missing", remedy=f"download all {count} files of the set")
    if not parts:
        raise CheckpointError(f"{file} is a part of a set of none", remedy="give it its own name back")
    return parts


def _together(headers: list[GgufHeader]) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        told = header.metadata.get("split.count", 0)
        if told not in (0, len(headers)) or header.metadata.get("split.no", number) != number:
            raise CheckpointError(
                f"{header.file} is not part {number + 1} of a set of {len(headers)}",
                remedy="give the files of the set their own names back",
            )
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CheckpointError(f"tensor {name!r} is in both {tensors[name].file} and {tensor.file}")
            tensors[name] = tensor
    return tensors


def _config(known: GgufArchitecture, given: Metadata, tensors: dict[str, GgufTensor]) -> dict[str, Any]:
    """What config.json would hold."""
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{given.file} has no token_embd.weight", remedy="download it again")
    return {
        "model_type": known.model_type,
        "architectures": [known.model_class],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "dtype": _dtype(tensors),
        **known.config(given),
    }


def _dtype(tensors: dict[str, GgufTensor]) -> str:
    """The type to compute in: the file's, where it is not quantised; bfloat16, in which such models are trained."""
    types = {tensor.type for tensor in tensors.values()}
    if types == {"F32"}:
        return "float32"
    return "float16" if types <= {"F32", "F16"} else "bfloat16"
