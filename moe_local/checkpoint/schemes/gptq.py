"""gptq: integers of 4 or 8 bits, packed along the columns by AutoGPTQ, GPTQModel and others.

`qweight` I32 [in * bits / 32, out], `qzeros` I32 [groups, out * bits / 32], `scales` [groups, out], and `g_idx` I32
[in], the group of each column, which ancient checkpoints lack. The first version of the format, "gptq", stores zeros
less one; "gptq_v2" stores them as they are.

`dynamic` has settings for some modules, by regular expressions that match from the start of a module's name, the
first that does counting: "-:" before one leaves its modules as they are, "+:" or nothing changes what is said.

https://github.com/ModelCloud/GPTQModel, https://github.com/AutoGPTQ/AutoGPTQ
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import (
    FLOATS,
    ModulePattern,
    assert_none_left,
    bits_of,
    expect,
    expect_matrix,
    group_size,
    section,
)
from moe_local.errors import UnsupportedError

_LESS = {"gptq": 1, "gptq_v2": 0}  # what zeros are stored without


def gptq(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of integers."""
    less = _LESS[_version(config)]
    exceptions = Exceptions.read(section(config, "dynamic"))
    return gptq_matrices(tensors, lambda module: {**config, **exceptions.of(module)}, less)


def gptq_matrices(
    tensors: Mapping[str, TensorEntry], settings: Callable[[str], Mapping[str, Any]], less: int
) -> list[EncodedTensor]:
    """The matrices of every module, whose `bits` and `group_size` `settings` gives; zeros are stored less `less`."""
    encoded = []
    for module in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        its = settings(module)
        encoded.append(_matrix(tensors, module, bits_of(its, "bits", (4, 8)), group_size(its, "group_size"), less))
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, [".qzeros", ".scales", ".g_idx"], used)
    return encoded


@dataclass(frozen=True)
class Exceptions:
    """Settings of their own for the modules whose names match a pattern from their start."""

    patterns: tuple[tuple[ModulePattern, Mapping[str, Any]], ...]

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Exceptions:
        """Raises ValueError for a pattern or settings that are none."""
        found = []
        for pattern, change in given.items():
            if not isinstance(change, dict | bool | None):
                raise ValueError(f"the settings of modules {pattern!r} are {change!r}")
            left_alone = pattern.startswith("-:") or change is False
            settings = change if isinstance(change, dict) and not left_alone else {}
            found.append((ModulePattern(pattern.removeprefix("-:").removeprefix("+:")), settings))
        return cls(tuple(found))

    def of(self, module: str) -> Mapping[str, Any]:
        """What is different for a module."""
        return next((change for pattern, change in self.patterns if pattern.match(module)), {})


def _version(config: Mapping[str, Any]) -> str:
    version = config.get("checkpoint_format") or config.get("format") or "gptq"
    if version not in _LESS or config.get("is_marlin_format"):
        raise UnsupportedError(
            f"gptq of format {version!r}{', for marlin,' if config.get('is_marlin_format') else ''} cannot be read",
            remedy=f"use one of {', '.join(_LESS)}",
        )
    return str(version)


def _matrix(tensors: Mapping[str, TensorEntry], module: str, bits: int, group: int, less: int) -> EncodedTensor:
    qweight = expect_matrix(tensors, f"{module}.qweight", [torch.int32])
    words, out = qweight.shape
    width = words * 32 // bits
    groups = -(-width // group) if group else 1
    if out * bits % 32:
        raise ValueError(f"tensor {qweight.name!r} has {out} outputs, whose zeros fill no whole words")
    parts = {
        "qweight": qweight,
        "qzeros": expect(tensors, f"{module}.qzeros", [torch.int32], (groups, out * bits // 32)),
        "scales": expect(tensors, f"{module}.scales", FLOATS, (groups, out)),
    }
    if f"{module}.g_idx" in tensors:
        parts["g_idx"] = expect(tensors, f"{module}.g_idx", [torch.int32], (width,))
    encoding = Encoding("gptq", (("bits", bits), ("group", group), ("less", less)))
    return EncodedTensor(f"{module}.weight", (out, width), encoding, parts)
