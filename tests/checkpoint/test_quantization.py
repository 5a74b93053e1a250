"""Where the settings of quantisation may stand, and the scheme that they are of."""

from __future__ import annotations

from typing import Any

import pytest

from moe_local.checkpoint.quantization import quantization_of, without_quantization

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
MLX = {"bits": 4, "group_size": 64}
FP8 = {"quant_method": "fp8"}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {}}, None),
        ({"quantization_config": GPTQ}, ("gptq", GPTQ)),
        ({"compression_config": {"config_groups": {}}}, ("compressed-tensors", {"config_groups": {}})),
        ({"text_config": {"quantization_config": GPTQ}}, ("gptq", GPTQ)),
        ({"language_config": {"compression_config": {**GPTQ}}}, ("gptq", GPTQ)),
        ({"thinker_config": {"text_config": {"quantization_config": GPTQ}}}, ("gptq", GPTQ)),
        ({"quantization_config": GPTQ, "text_config": {"quantization_config": FP8}}, ("gptq", GPTQ)),
        ({"quantization_config": {}, "text_config": {"quantization_config": FP8}}, ("fp8", FP8)),
        (
            {"vision_config": {"quantization_config": FP8}, "llm_config": {"quantization_config": GPTQ}},
            ("gptq", GPTQ),
        ),
        ({"quantization": MLX}, ("mlx", MLX)),
        ({"quantization": MLX, "quantization_config": MLX}, ("mlx", MLX)),
        ({"quantization": MLX, "quantization_config": FP8}, ("mlx", MLX)),
        ({"text_config": {"quantization": MLX}}, ("mlx", MLX)),
        ({"quantization": "int8", "quantization_config": GPTQ}, ("gptq", GPTQ)),
        ({"quantization_config": {"load_in_4bit": True}}, ("bitsandbytes", {"load_in_4bit": True})),
    ],
)
def test_places(config: dict[str, Any], wanted: tuple[str, Any] | None) -> None:
    assert quantization_of(config) == wanted


@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        ({"quant_method": "intel/auto-round"}, "auto-round"),
        ({"quant_method": "auto_round"}, "auto-round"),
        ({"quant_method": "GPTQ"}, "gptq"),
        ({"quant_method": "gptq_marlin"}, "gptq"),
        ({"quant_method": "awq_marlin"}, "awq"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_algo": "FP8"}, "modelopt"),
        ({"quantization": {"quant_algo": "NVFP4"}, "producer": {"name": "modelopt"}}, "modelopt"),
        ({"w_bit": 4, "q_group_size": 128}, "awq"),
        ({"quant_method": "exl3"}, "exl3"),
    ],
)
def test_names(settings: dict[str, Any], scheme: str) -> None:
    assert quantization_of({"quantization_config": settings}) == (scheme, settings)


@pytest.mark.parametrize("settings", ["int8", 5, [1], {"quant_method": 5}, {"bits": 4}])
def test_settings_that_tell_no_scheme_are_not_ignored(settings: object) -> None:
    assert quantization_of({"quantization_config": settings}) == (str(settings), settings)


def test_without() -> None:
    config = {"a": 1, "quantization": MLX, "text_config": {"b": 2, "quantization_config": GPTQ}}
    assert without_quantization(config) == {"a": 1, "text_config": {"b": 2}}
