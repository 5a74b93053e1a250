"""auto-round checkpoints: GPTQ's or AutoAWQ's tensors, with AutoRound's names for what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.schemes import understood
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.testing.quantised import assert_quantised_runs, is_linear, rewrite_checkpoint

from .integers import in_order, pack, quantise

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Writer:
    """Quantises linear layers as `config` says; `bits_of` gives the bits of a tensor where they are others."""

    def __init__(self, packing: str, bits_of: Mapping[str, int] = {}, **config: Any) -> None:
        self.config = {"quant_method": "auto-round", "bits": 4, "group_size": 16, "sym": False, **config}
        self._packing = packing
        self._bits_of = bits_of
        self._wanted: dict[str, Tensor] = {}

    def quantise(self, name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        bits = next((b for pattern, b in self._bits_of.items() if re.search(pattern, name)), self.config["bits"])
        if not is_linear(name, weight) or bits == 16:
            return None
        group = 32 if bits == 8 else self.config["group_size"]
        integers = quantise(weight, bits, in_order(weight.shape[1], group))
        self._wanted[name] = integers.weight
        prefix = name.removesuffix("weight")
        if self._packing == "awq":
            codes, zeros = pack(integers.codes.T.contiguous(), 4, AWQ_ORDER), integers.zeros.T.contiguous()
            packed_zeros = pack(zeros, 4, AWQ_ORDER)
        else:
            less = 1 if self._packing == "gptq" else 0
            codes = pack(integers.codes, bits).T
            packed_zeros = pack((integers.zeros.T.contiguous() - less) % 2**bits, bits)
        return {f"{prefix}qweight": codes, f"{prefix}qzeros": packed_zeros, f"{prefix}scales": integers.scales.T}

    def dequantise(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        return self._wanted[name]


EIGHT = {"bits": 8, "group_size": 32}
WRITERS = {
    "gptq": Writer("gptq", packing_format="auto_round:auto_gptq"),
    "no-format": Writer("gptq"),
    "gptqmodel-8-bits": Writer("gptq", packing_format="auto_round:gptqmodel", bits=8, group_size=32),
    "awq": Writer("awq", packing_format="auto_round:auto_awq"),
    "plain": Writer("plain", packing_format="auto_round"),
    "older": Writer("gptq", quant_method="intel/auto-round", backend="auto_round:gptq:exllamav2"),
    "older-plain": Writer("plain", quant_method="intel/auto-round", backend="autoround:exllamav2"),
    "modules-by-name": Writer(
        "gptq",
        {r"layers\.0\.self_attn\.q_proj": 16, r"layers\.1\.mlp\.experts\.0\.down": 8},
        extra_config={
            "model.layers.0.self_attn.q_proj": {"bits": 16, "data_type": "float"},
            "model.layers.1.mlp.experts.0.down_proj": EIGHT,
        },
    ),
    "modules-by-pattern": Writer(
        "gptq", {"up_proj": 8, r"experts\.1\.gate": 16}, extra_config={r".*up_proj$": EIGHT, "experts.1.gate": {}}
    ),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_every_variant(writer: Writer, tmp_path: Path) -> None:
    assert_quantised_runs("qwen3_moe", tmp_path, writer.quantise, writer.dequantise, writer.config)


CONFIGS: list[tuple[dict[str, Any], type[MoeLocalError], str]] = [
    ({"bits": 2}, UnsupportedError, "2 bits"),
    ({"packing_format": "auto_round:llm_compressor"}, UnsupportedError, "llm_compressor"),
    ({"data_type": "mx_fp"}, UnsupportedError, "mx_fp"),
    ({"extra_config": {".*": {"bits": 3}}}, UnsupportedError, "3 bits"),
    ({"extra_config": []}, CheckpointError, r"extra_config is \[\]"),
    ({"extra_config": {"*": {"bits": 8}}}, CheckpointError, "is not a pattern"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CONFIGS)
def test_bad_configurations_are_named(
    qwen: Path, tmp_path: Path, changes: dict[str, Any], error: type[MoeLocalError], message: str
) -> None:
    writer = WRITERS["gptq"]
    config = {**writer.config, **changes}
    rewrite_checkpoint(qwen, tmp_path, lambda n, t: writer.quantise(n, t) or {n: t}, config)
    with pytest.raises(error, match=message):
        understood(Checkpoint.open(tmp_path))


def test_awq_has_no_other_widths(qwen: Path, tmp_path: Path) -> None:
    writer = WRITERS["awq"]
    config = {**writer.config, "extra_config": {".*q_proj": {"bits": 8}}}
    rewrite_checkpoint(qwen, tmp_path, lambda n, t: writer.quantise(n, t) or {n: t}, config)
    with pytest.raises(UnsupportedError, match="8 bits"):
        understood(Checkpoint.open(tmp_path))


def test_numbers_by_hand(tmp_path: Path) -> None:
    """One word of codes 0 to 7, zeros of 7 stored as 6 (gptq), scale 2: -14, -12 ... 0."""
    from moe_local.checkpoint.encoding import Encoding
    from moe_local.formats.registry import format_of

    arrays = {
        "qweight": torch.tensor([[0x76543210] * 8], dtype=torch.int32),
        "qzeros": torch.tensor([[0x66666666]], dtype=torch.int32),
        "scales": torch.full((1, 8), 2.0),
    }
    encoding = Encoding("gptq", (("bits", 4), ("group", 8), ("less", 1)))
    weight = format_of(encoding).decode(arrays, (8, 8), torch.float32)
    assert weight[0].tolist() == [-14, -12, -10, -8, -6, -4, -2, 0]
