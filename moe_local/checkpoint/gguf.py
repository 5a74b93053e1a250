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

from moe_local.checkpoint.gguf_architectures import KNOWN, GgufArchitecture
from moe_local.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from moe_local.checkpoint.gguf_metadata import ROPE_FACTORS, Metadata
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.regular import open_regular
from moe_local.errors import CheckpointError, UnsupportedError

SUFFIX = ".gguf"
PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_IN_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>[\w.]+)\.(?P<kind>weight|bias)")
_ONE_EXPERT = re.compile(  # before April 2024
    r"blk\.(?P<layer>\d+)\.ffn_(?P<projection>gate|up|down)\.(?P<expert>\d{1,5})\.(?P<kind>weight|bias)"
)
_UNUSED = ("attn_rot_embd",)  # tables of rotary frequencies, of old files: computed instead
_MOST_FACTORS = 1 << 12
_GLOBAL = re.compile(r"(?P<part>\w+)\.(?P<kind>weight|bias)")
_EXPERTS = {  # -> the projections (gate, up, down: 0, 1, 2) whose rows follow each other in it
    "ffn_gate_exps": (0,),
    "ffn_up_exps": (1,),
    "ffn_down_exps": (2,),
    "ffn_gate_up_exps": (0, 1),
}
# Written without their axes of length 1: how many axes are left, and where the one was
_SQUEEZED = {"ffn_gate_inp_shexp": (1, 0), "shortconv.conv": (2, 1)}
_MOST_EXPERTS = 1 << 14  # far beyond any model's
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
    tensors: dict[str, TensorEntry] = {}
    types: dict[str, dict[str, str | int]] = {}
    for tensor in _of_layers(raw, config["num_hidden_layers"], given):
        heads = _permuted_heads(known, config, tensor)
        for entry in _entries(known, tensor, as_blocks=heads > 0):
            tensors[entry.name] = entry
            if heads or tensor.type not in PLAIN_TYPES:
                types[entry.name] = {"type": tensor.type, **({"rotary_heads": heads} if heads else {})}
    config["quantization_config"] = {"quant_method": "gguf", "tensors": types}
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
        raise _unknown(tensor)
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


def _permuted_heads(known: GgufArchitecture, config: dict[str, Any], tensor: GgufTensor) -> int:
    """Of how many heads the tensor's rows have their rotary halves interleaved; 0 for none."""
    match = _IN_LAYER.fullmatch(tensor.name)
    if not known.rotary_permuted or match is None:
        return 0
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    return int(config[heads[match["part"]]]) if match["part"] in heads else 0


def _entries(known: GgufArchitecture, tensor: GgufTensor, *, as_blocks: bool) -> Iterator[TensorEntry]:
    """A tensor under its name in Hugging Face's checkpoint; one for each expert where it stacks them."""
    whole = _entry(tensor, as_blocks=as_blocks)
    if (alone := _ONE_EXPERT.fullmatch(tensor.name)) and f"ffn_{alone['projection']}_exps" not in known.names:
        pattern = known.experts[_EXPERTS[f"ffn_{alone['projection']}_exps"][0]].format(int(alone["expert"]))
        yield _named(whole, f"model.layers.{alone['layer']}.{pattern}.{alone['kind']}")
        return
    match = _IN_LAYER.fullmatch(tensor.name)
    if match is None:
        yield _named(whole, _global_name(known, tensor))
        return
    prefix, part = f"model.layers.{match['layer']}", match["part"]
    if (whole_name := known.names.get(f"{part}.{match['kind']}")) is not None:
        yield _named(whole, f"{prefix}.{whole_name}")
    elif part in known.names:
        yield _named(whole, f"{prefix}.{known.names[part]}.{match['kind']}")
    elif part in _EXPERTS and len(whole.shape) in (2, 3) and whole.shape[0] <= _MOST_EXPERTS:
        patterns = [f"{prefix}.{known.experts[projection]}.{match['kind']}" for projection in _EXPERTS[part]]
        yield from _slices(whole, patterns)
    else:
        raise _unknown(tensor)


def _slices(whole: TensorEntry, patterns: list[str]) -> Iterator[TensorEntry]:
    """The experts of a stacked tensor [experts, rows, ...], the rows of each in as many parts as there are names."""
    experts, rows, *rest = whole.shape
    size = whole.length // (experts * len(patterns))
    for number in range(experts * len(patterns)):
        expert, part = divmod(number, len(patterns))
        shape = (rows // len(patterns), *rest)
        offset = whole.offset + number * size
        yield TensorEntry(patterns[part].format(expert), whole.file, whole.dtype, shape, offset, size)


def _entry(tensor: GgufTensor, *, as_blocks: bool) -> TensorEntry:
    shape = tensor.shape
    if tensor.type in PLAIN_TYPES and not as_blocks:
        match = _IN_LAYER.fullmatch(tensor.name)
        axes, axis = _SQUEEZED.get(match["part"], (0, 0)) if match else (0, 0)
        if len(shape) == axes:
            shape = (*shape[:axis], 1, *shape[axis:])
        dtype = PLAIN_TYPES[tensor.type]
    else:
        rows = tensor.length
        for axis in shape[:-1]:
            rows //= axis
        shape, dtype = (*shape[:-1], rows), torch.uint8
    return TensorEntry(tensor.name, tensor.file, dtype, shape, tensor.offset, tensor.length)


def _named(entry: TensorEntry, name: str) -> TensorEntry:
    return TensorEntry(name, entry.file, entry.dtype, entry.shape, entry.offset, entry.length)


def _global_name(known: GgufArchitecture, tensor: GgufTensor) -> str:
    match = _GLOBAL.fullmatch(tensor.name)
    if match is None or match["part"] not in known.outside:
        raise _unknown(tensor)
    return f"{known.outside[match['part']]}.{match['kind']}"


def _unknown(tensor: GgufTensor) -> UnsupportedError:
    return UnsupportedError(
        f"{tensor.file} has a tensor {tensor.name!r} of shape {tensor.shape} that is not understood",
        remedy="use the model's safetensors repository",
    )
