"""A GGUF file's tensors under the names that Hugging Face's checkpoint has for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moe_local.checkpoint.gguf_architecture import GgufArchitecture, Undo
from moe_local.checkpoint.gguf_changes import CHANGES
from moe_local.checkpoint.gguf_header import GgufTensor
from moe_local.checkpoint.header import TensorEntry
from moe_local.errors import UnsupportedError

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

TensorOptions = dict[str, Any]  # what the scheme `gguf` is told of a tensor
Named = tuple[str, list[TensorEntry], TensorOptions | None]  # name, what it is made of, options; None: a plain one

_IN_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>[\w.]+?)(?:\.(?P<kind>weight|bias|scale))?")
_ONE_EXPERT = re.compile(  # before April 2024
    r"blk\.(?P<layer>\d+)\.ffn_(?P<projection>gate|up|down)\.(?P<expert>\d{1,5})\.(?P<kind>weight|bias)"
)
_GLOBAL = re.compile(r"(?P<part>\w+)\.(?P<kind>weight|bias)")
_EXPERTS = {  # -> the projections (gate, up, down: 0, 1, 2) whose rows follow each other in it
    "ffn_gate_exps": (0,),
    "ffn_up_exps": (1,),
    "ffn_down_exps": (2,),
    "ffn_gate_up_exps": (0, 1),
}
# Written without their axes of length 1: how many axes are left, and where the one was
_SQUEEZED = {"ffn_gate_inp_shexp": (1, 0), "shortconv.conv": (2, 1), "ssm_conv1d": (2, 1)}
_MOST_EXPERTS = 1 << 14  # far beyond any model's


def named(known: GgufArchitecture, config: Mapping[str, Any], tensors: Iterable[GgufTensor]) -> Iterator[Named]:
    """Every tensor of the checkpoint, as it lies in the file. Raises UnsupportedError for one not understood."""
    left = {tensor.name: tensor for tensor in tensors}
    for prefix, target, undo in _to_undo(known, left):
        parts = [left.pop(f"{prefix}{part}") for part in undo.parts]
        yield _undone(target, parts, undo, config)
    for tensor in left.values():
        heads = _permuted_heads(known, config, tensor)
        for entry in _entries(known, tensor, as_blocks=heads > 0):
            told = {"type": tensor.type, **({"rotary_heads": heads} if heads else {})}
            yield entry.name, [entry], told if heads or tensor.type not in PLAIN_TYPES else None


def _to_undo(known: GgufArchitecture, tensors: Mapping[str, GgufTensor]) -> list[tuple[str, str, Undo]]:
    """(prefix of the file's names, name of the checkpoint's tensor, what to undo) wherever all of its parts are."""
    layers = dict.fromkeys(match["layer"] for name in tensors if (match := _IN_LAYER.match(name)))
    places = [("", "", undo) for undo in known.undo_outside]
    places += [(f"blk.{n}.", f"{known.layers}.{n}.", undo) for n in layers for undo in known.undo]
    return [
        (prefix, ours + undo.name, undo)
        for prefix, ours, undo in places
        if all(f"{prefix}{part}" in tensors for part in undo.parts)
    ]


def _undone(target: str, tensors: list[GgufTensor], undo: Undo, config: Mapping[str, Any]) -> Named:
    entries = [
        _named(_whole(tensor, as_blocks=tensor.type not in PLAIN_TYPES), f"{target}:{tensor.name}")
        for tensor in tensors
    ]
    numbers = undo.numbers(config)
    try:
        shape = CHANGES[undo.change](*map(_on_meta, tensors), **numbers).shape
    except (RuntimeError, IndexError, ZeroDivisionError, OverflowError):
        raise unknown_tensor(tensors[0]) from None
    told = {
        "change": undo.change,
        "numbers": numbers,
        "parts": {entry.name: tensor.type for entry, tensor in zip(entries, tensors, strict=True)},
        "shape": list(shape),
    }
    return target, entries, told


def _on_meta(tensor: GgufTensor) -> Tensor:
    return torch.empty(tensor.shape, device="meta")


def _permuted_heads(known: GgufArchitecture, config: Mapping[str, Any], tensor: GgufTensor) -> int:
    """Of how many heads the tensor's rows have their rotary halves interleaved; 0 for none."""
    match = _IN_LAYER.fullmatch(tensor.name)
    if not known.rotary_permuted or match is None:
        return 0
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    return int(config[heads[match["part"]]]) if match["part"] in heads else 0


def _entries(known: GgufArchitecture, tensor: GgufTensor, *, as_blocks: bool) -> Iterator[TensorEntry]:
    """A tensor under its name in Hugging Face's checkpoint; one for each expert where it stacks them."""
    whole = _squeezed(tensor, _whole(tensor, as_blocks=as_blocks or tensor.type not in PLAIN_TYPES))
    if (alone := _ONE_EXPERT.fullmatch(tensor.name)) and f"ffn_{alone['projection']}_exps" not in known.names:
        pattern = known.experts[_EXPERTS[f"ffn_{alone['projection']}_exps"][0]].format(int(alone["expert"]))
        yield _named(whole, f"{known.layers}.{alone['layer']}.{pattern}.{alone['kind']}")
        return
    match = _IN_LAYER.fullmatch(tensor.name)
    if match is None:
        yield _named(whole, _global_name(known, tensor))
        return
    prefix, part, kind = f"{known.layers}.{match['layer']}", match["part"], match["kind"]
    if (whole_name := known.names.get(f"{part}.{kind}" if kind else part)) is not None:
        yield _named(whole, f"{prefix}.{whole_name}")
    elif part in known.names and kind in ("weight", "bias"):
        yield _named(whole, f"{prefix}.{known.names[part]}.{kind}")
    elif (
        part in _EXPERTS
        and kind in ("weight", "bias")
        and len(whole.shape) in (2, 3)
        and whole.shape[0] <= _MOST_EXPERTS
    ):
        patterns = [f"{prefix}.{known.experts[projection]}.{kind}" for projection in _EXPERTS[part]]
        yield from _slices(whole, patterns)
    else:
        raise unknown_tensor(tensor)


def _slices(whole: TensorEntry, patterns: list[str]) -> Iterator[TensorEntry]:
    """The experts of a stacked tensor [experts, rows, ...], the rows of each in as many parts as there are names."""
    experts, rows, *rest = whole.shape
    size = whole.length // (experts * len(patterns))
    for number in range(experts * len(patterns)):
        expert, part = divmod(number, len(patterns))
        shape = (rows // len(patterns), *rest)
        offset = whole.offset + number * size
        yield TensorEntry(patterns[part].format(expert), whole.file, whole.dtype, shape, offset, size)


def _whole(tensor: GgufTensor, *, as_blocks: bool) -> TensorEntry:
    """A tensor as it lies: numbers, or rows of bytes."""
    shape, dtype = tensor.shape, PLAIN_TYPES.get(tensor.type, torch.uint8)
    if as_blocks:
        rows = tensor.length
        for axis in shape[:-1]:
            rows //= axis
        shape, dtype = (*shape[:-1], rows), torch.uint8
    return TensorEntry(tensor.name, tensor.file, dtype, shape, tensor.offset, tensor.length)


def _squeezed(tensor: GgufTensor, whole: TensorEntry) -> TensorEntry:
    match = _IN_LAYER.fullmatch(tensor.name)
    axes, axis = _SQUEEZED.get(match["part"], (0, 0)) if match else (0, 0)
    if len(whole.shape) != axes or whole.dtype == torch.uint8:
        return whole
    return replace(whole, shape=(*whole.shape[:axis], 1, *whole.shape[axis:]))


def _named(entry: TensorEntry, name: str) -> TensorEntry:
    return replace(entry, name=name)


def _global_name(known: GgufArchitecture, tensor: GgufTensor) -> str:
    match = _GLOBAL.fullmatch(tensor.name)
    if match is None or match["part"] not in known.outside:
        raise unknown_tensor(tensor)
    return f"{known.outside[match['part']]}.{match['kind']}"


def unknown_tensor(tensor: GgufTensor) -> UnsupportedError:
    return UnsupportedError(
        f"{tensor.file} has a tensor {tensor.name!r} of shape {tensor.shape} that is not understood",
        remedy="use the model's safetensors repository",
    )
