"""bitsandbytes checkpoints, written by that library.

Its quantiser takes linear layers only: experts one by one where transformers 4 had them so, and fused ones never.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BitsAndBytesConfig

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes import understood
from moe_local.errors import CheckpointError
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.quantised import assert_quantised_runs, assert_runs_as, is_linear, rewrite_checkpoint

functional = pytest.importorskip("bitsandbytes.functional")

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
EIGHT = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}


class _FourBits:
    """`Linear4bit`, module by module."""

    def __init__(self, kind: str, nested: bool, block: int = 64, storage: torch.dtype = torch.uint8) -> None:
        self._arguments = {"quant_type": kind, "compress_statistics": nested, "blocksize": block}
        self._storage = storage
        self._block = block

    def quantise(self, name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, weight):
            return None
        packed, state = functional.quantize_4bit(weight, quant_storage=self._storage, **self._arguments)
        return {name: packed, **{f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}}

    def dequantise(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        described = {key.removeprefix(f"{name}."): part for key, part in parts.items() if key != name}
        state = functional.QuantState.from_dict(described, torch.device("cpu"))
        # On a CPU, bitsandbytes 0.50 misreads rows that are not whole blocks; GPUs and its own quantising do not.
        shape = state.shape
        state.shape = torch.Size([shape.numel() // self._block, self._block])
        decoded: Tensor = functional.dequantize_4bit(parts[name], state).view(shape)
        return decoded


FOUR_BITS = {
    "nf4": _FourBits("nf4", nested=False),
    "nf4-nested": _FourBits("nf4", nested=True),
    "fp4": _FourBits("fp4", nested=False),
    "fp4-nested": _FourBits("fp4", nested=True),
    "nf4-of-128": _FourBits("nf4", nested=True, block=128),
    "nf4-as-bf16": _FourBits("nf4", nested=False, storage=torch.bfloat16),
}


@pytest.mark.parametrize("library", FOUR_BITS.values(), ids=FOUR_BITS.keys())
@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_four_bits(model_type: str, library: _FourBits, tmp_path: Path) -> None:
    assert_quantised_runs(model_type, tmp_path, library.quantise, library.dequantise, FOUR)


def _eight_bits(name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
    if not is_linear(name, weight):
        return None
    codes, absmax, _ = functional.int8_vectorwise_quant(weight.half())
    module = name.removesuffix("weight")
    return {name: codes, f"{module}SCB": absmax, f"{module}weight_format": torch.tensor(0, dtype=torch.uint8)}


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_eight_bits(model_type: str, tmp_path: Path) -> None:
    def dequantise(name: str, parts: Mapping[str, Tensor]) -> Tensor:
        absmax = parts[f"{name.removesuffix('weight')}SCB"]
        decoded: Tensor = functional.int8_vectorwise_dequant(parts[name], absmax)
        return decoded

    assert_quantised_runs(model_type, tmp_path, _eight_bits, dequantise, EIGHT)


NESTED = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.mark.parametrize("options", [NESTED, {"load_in_8bit": True}], ids=["four", "eight"])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "granitemoe"])
def test_as_transformers_writes_them(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    """transformers 5 fuses experts, and so leaves them as they are."""
    found = architecture(model_type)
    original = write_tiny_checkpoint(found, tmp_path / "original")
    config = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **options)
    load = found.model_class.from_pretrained
    model = load(original, quantization_config=config, device_map="cpu", dtype=torch.float32)
    model.save_pretrained(tmp_path / "quantised")
    taken = {name for name in load_file(tmp_path / "quantised/model.safetensors") if "self_attn" in name}
    assert any(name.endswith(("absmax", "SCB")) for name in taken)
    model.dequantize(dtype=torch.float32).save_pretrained(tmp_path / "plain")
    assert_runs_as(model_type, tmp_path / "quantised", tmp_path / "plain")


VICTIM = "model.layers.1.mlp.experts.3.gate_proj"
STATE = "weight.quant_state.bitsandbytes__nf4"


def _text(value: object) -> Tensor:
    text = value if isinstance(value, str) else json.dumps(value)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _state(**changes: Any) -> Tensor:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [32, 64], "nested_blocksize": 256}
    return _text({**state, "nested_dtype": "float32", "nested_offset": 0.5, **changes})


BAD: list[tuple[dict[str, Tensor | None], str]] = [
    ({"weight": None}, "gate_proj.weight' is missing"),
    ({"weight.absmax": None}, "weight.absmax' is missing"),
    ({"weight.nested_absmax": None}, "nested_absmax' is missing"),
    ({"weight.nested_quant_map": torch.ones(16)}, r"has shape \(16,\), not \(256,\)"),
    ({"weight.absmax": torch.ones(32)}, "is of type float32, not uint8"),
    ({STATE: None}, "belongs to no quantised matrix"),
    ({"weight": torch.ones(512, 1, dtype=torch.uint8)}, "not 1024 bytes in a column"),
    ({"weight": torch.ones(1, 1024, dtype=torch.uint8)}, "not 1024 bytes in a column"),
    ({STATE: _state(shape=[32, 128])}, "not 2048 bytes in a column"),
    ({STATE: _state(shape=[1 << 60, 1 << 60])}, "bytes in a column"),
    ({STATE: _state(shape=[2, 16, 64])}, "says that the shape is"),
    ({STATE: _state(shape=[-32, -64])}, "says that the shape is"),
    ({STATE: _state(shape=None)}, "says that the shape is"),
    ({STATE: _state(blocksize=0)}, "says that blocks are of 0"),
    ({STATE: _state(blocksize=[64])}, "says that blocks are of"),
    ({STATE: _state(nested_blocksize=-1)}, "says that blocks are of 64 and -1"),
    ({STATE: _state(nested_offset=None)}, "does not end with the offset"),
    ({STATE: _state(more=1)}, "does not end with the offset"),
    ({STATE: _state(more=" " * 5000)}, "not a short text"),
    ({STATE: _text("[" * 4000)}, "holds no description"),
    ({STATE: _text([1])}, "holds no description"),
    ({STATE: torch.tensor([255, 0, 1], dtype=torch.uint8)}, "holds no description"),
    ({STATE: None, "weight.quant_state.bitsandbytes__nf5": _state()}, "is of 'nf5'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_four_bits_are_named(qwen: Path, tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    library = FOUR_BITS["nf4-nested"]

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = dict(library.quantise(name, tensor) or {name: tensor})
        if name == f"{VICTIM}.weight":
            for key, instead in changes.items():
                parts.pop(f"{VICTIM}.{key}", None)
                parts |= {} if instead is None else {f"{VICTIM}.{key}": instead}
        return parts

    rewrite_checkpoint(qwen, tmp_path, replace, FOUR)
    with pytest.raises(CheckpointError, match=message):
        understood(Checkpoint.open(tmp_path))


@pytest.mark.parametrize(
    ("part", "instead", "message"),
    [
        ("SCB", None, "SCB' is missing"),
        ("SCB", torch.ones(31), r"has shape \(31,\), not \(32,\)"),
        ("weight", None, "SCB' belongs to no quantised matrix"),
        ("weight", torch.ones(2, 16, 64, dtype=torch.int8), "is no matrix"),
    ],
)
def test_bad_eight_bits_are_named(
    qwen: Path, tmp_path: Path, part: str, instead: Tensor | None, message: str
) -> None:
    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = dict(_eight_bits(name, tensor) or {name: tensor})
        if name == f"{VICTIM}.weight":
            del parts[f"{VICTIM}.{part}"]
            parts |= {} if instead is None else {f"{VICTIM}.{part}": instead}
        return parts

    rewrite_checkpoint(qwen, tmp_path, replace, EIGHT)
    with pytest.raises(CheckpointError, match=message):
        understood(Checkpoint.open(tmp_path))


def test_a_file_that_went_away_is_named(qwen: Path, tmp_path: Path) -> None:
    library = FOUR_BITS["nf4"]
    rewrite_checkpoint(qwen, tmp_path, lambda n, t: library.quantise(n, t) or {n: t}, FOUR)
    checkpoint = Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        understood(checkpoint)


def test_every_part_is_taken(qwen: Path, tmp_path: Path) -> None:
    library = FOUR_BITS["nf4-nested"]
    rewrite_checkpoint(qwen, tmp_path, lambda n, t: library.quantise(n, t) or {n: t}, FOUR)
    sources = understood(Checkpoint.open(tmp_path))
    assert sources.keys() == Checkpoint.open(qwen).tensors.keys()
    assert isinstance(sources[f"{VICTIM}.weight"], EncodedTensor)
