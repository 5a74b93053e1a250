"""Whatever a configuration and headers say, an error of ours or matrices whose parts agree with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import DTYPES, TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes import SCHEMES, understood
from moe_local.errors import MoeLocalError
from moe_local.formats.records import decode_tensor

STATE = b'{"quant_type": "nf4", "blocksize": 64, "shape": [16, 32], "nested_blocksize": 256, "nested_offset": 0.5}'
I32, U8, F32 = torch.int32, torch.uint8, torch.float32
GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 8}}

# Every scheme with a sound matrix of its own, "a.weight" [16, 32]: its configuration and its tensors.
SOUND: dict[str, tuple[dict[str, Any], dict[str, tuple[torch.dtype, tuple[int, ...]]]]] = {
    "auto-round": (
        {"bits": 4, "group_size": 8, "packing_format": "auto_round:auto_gptq", "extra_config": {"a": {"bits": 4}}},
        {"qweight": (I32, (4, 16)), "qzeros": (I32, (4, 2)), "scales": (F32, (4, 16))},
    ),
    "awq": (
        {"bits": 4, "group_size": 8, "version": "gemm"},
        {"qweight": (I32, (32, 2)), "qzeros": (I32, (4, 2)), "scales": (F32, (4, 16))},
    ),
    "bitsandbytes": (
        {"load_in_4bit": True},
        {
            "weight": (U8, (256, 1)),
            "weight.absmax": (U8, (8,)),
            "weight.nested_absmax": (F32, (1,)),
            "weight.nested_quant_map": (F32, (256,)),
            "weight.quant_state.bitsandbytes__nf4": (U8, (len(STATE),)),
        },
    ),
    "compressed-tensors": (
        {"format": "pack-quantized", "config_groups": {"a": GROUP}, "ignore": []},
        {
            "weight_packed": (I32, (16, 4)),
            "weight_scale": (F32, (16, 4)),
            "weight_zero_point": (I32, (2, 4)),
            "weight_g_idx": (I32, (32,)),
        },
    ),
    "fp8": (
        {"weight_block_size": [8, 16]},
        {"weight": (torch.float8_e4m3fn, (16, 32)), "weight_scale_inv": (F32, (2, 2))},
    ),
    "gptq": (
        {"bits": 4, "group_size": 8, "checkpoint_format": "gptq", "dynamic": {}},
        {"qweight": (I32, (4, 16)), "qzeros": (I32, (4, 2)), "scales": (F32, (4, 16)), "g_idx": (I32, (32,))},
    ),
    "mlx": (
        {"bits": 4, "group_size": 8, "mode": "affine", "a": {"bits": 4}},
        {"weight": (torch.uint32, (16, 4)), "scales": (F32, (16, 4)), "biases": (F32, (16, 4))},
    ),
    "modelopt": (
        {"quant_algo": "NVFP4", "exclude_modules": []},
        {"weight": (U8, (16, 16)), "weight_scale": (torch.float8_e4m3fn, (16, 2)), "weight_scale_2": (F32, ())},
    ),
    "mxfp4": ({}, {"weight_blocks": (U8, (2, 16, 1, 16)), "weight_scales": (U8, (2, 16, 1))}),
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.sampled_from(["", "gemm", "group", "tensor"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["weights", "a"]), inner, max_size=2),
    max_leaves=6,
)
shapes = st.lists(st.sampled_from([0, 1, 2, 4, 8, 16, 32, 33]), max_size=4).map(tuple)


def test_every_scheme_is_tried() -> None:
    assert SOUND.keys() == SCHEMES.keys() - {"gguf"}  # which has a test of its own: its configuration is ours


def _entry(name: str, file: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorEntry:
    return TensorEntry(name, file, dtype, shape, 0, math.prod(shape) * dtype.itemsize)


def _sound(method: str, file: Path) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    config, tensors = SOUND[method]
    entries = {f"a.{name}": _entry(f"a.{name}", file, *tensor) for name, tensor in tensors.items()}
    return {"quant_method": method, **config}, entries


def _decoded(source: EncodedTensor) -> torch.Tensor:
    """From parts of zeros; an nf4 offset is text."""
    arrays = {name: torch.zeros(part.shape, dtype=U8).to(part.dtype) for name, part in source.parts.items()}
    if "offset" in arrays:
        arrays["offset"] = torch.tensor(list(STATE[-len(arrays["offset"]) :]), dtype=U8)
    for part, array in zip(source.parts.values(), arrays.values(), strict=True):
        assert part.length == array.nbytes
    return decode_tensor(source, arrays, F32)


@pytest.mark.parametrize("method", SOUND)
def test_what_is_sound_decodes(method: str, tmp_path: Path) -> None:
    file = tmp_path / "tensors"
    file.write_bytes(STATE)
    config, entries = _sound(method, file)
    sources = understood(Checkpoint(tmp_path, {"model_type": "qwen3_moe", "quantization_config": config}, entries))
    decoded = [_decoded(source) for source in sources.values() if isinstance(source, EncodedTensor)]
    assert [tensor.shape[-2:].numel() for tensor in decoded] == [512]


@pytest.mark.parametrize("method", SOUND)
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_what_is_not_is_refused_or_decodes(
    method: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.getbasetemp()
    file = directory / f"state-{method}"
    file.write_bytes(STATE)
    config, entries = _sound(method, file)
    if config.keys() - {"quant_method"} and data.draw(st.booleans(), label="spoil the configuration"):
        _spoil(config, data)
    for name in data.draw(st.lists(st.sampled_from(sorted(entries)), max_size=2, unique=True), label="spoil"):
        if data.draw(st.booleans(), label="drop"):
            del entries[name]
        else:
            dtype = data.draw(st.sampled_from([entries[name].dtype, *DTYPES.values()]), label="dtype")
            shape = data.draw(st.just(entries[name].shape) | shapes, label="shape")
            entries[name] = replace(_entry(name, file, dtype, shape), offset=0)
    try:
        sources = understood(
            Checkpoint(directory, {"model_type": "qwen3_moe", "quantization_config": config}, entries)
        )
    except MoeLocalError as error:
        assert error.remedy
        return
    for source in sources.values():
        if isinstance(source, EncodedTensor):
            shape = source.shape if not source.transposed else (*source.shape[:-2], *source.shape[:-3:-1])
            assert _decoded(source).shape == shape


def _spoil(config: dict[str, Any], data: st.DataObject) -> None:
    """Another value somewhere in the configuration, at any depth."""
    here: dict[str, Any] = config
    key = data.draw(st.sampled_from(sorted(config.keys() - {"quant_method"})), label="key")
    while isinstance(here[key], Mapping) and here[key] and data.draw(st.booleans(), label="deeper"):
        here[key] = dict(here[key])
        here = here[key]
        key = data.draw(st.sampled_from(sorted(here)), label="key")
    here[key] = data.draw(json_values, label="value")
