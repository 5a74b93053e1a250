"""auto-round: the tensors of GPTQ or AWQ under names and settings of AutoRound's own.

`packing_format` (older versions: `backend`) says which: "auto_round:auto_gptq" and others that name gptq are its
first version, zeros stored less one; ones that name awq are AutoAWQ's "gemm"; plain "auto_round" is GPTQ with zeros
stored as they are. `extra_config` has settings for some modules, by their names or by regular expressions found
anywhere in them; modules of 16 bits are left alone.

https://github.com/intel/auto-round
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.awq import awq_matrices
from moe_local.checkpoint.schemes.checks import ModulePattern, bits_of, group_size, section
from moe_local.checkpoint.schemes.gptq import gptq_matrices
from moe_local.errors import UnsupportedError

_DEFAULT = "auto_round:auto_gptq"
_SPECIAL = set("*+?^$()[]{}|\\")  # what tells an expression from a name that has dots in it
_PLAIN = ("auto_round", "autoround", "auto", "exllamav2", "triton", "tritonv2", "torch", "marlin", "ipex", "cuda")


def auto_round(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of integers."""
    settings = _Settings.read(config)
    packing = _packing(config)
    if packing == "awq":
        return awq_matrices(tensors, settings.awq_group)
    return gptq_matrices(tensors, settings.of, less=1 if packing == "gptq" else 0)


def _packing(config: Mapping[str, Any]) -> str:
    """ "gptq", "awq", or "plain" for GPTQ with zeros as they are."""
    stated = str(config.get("packing_format") or config.get("backend") or _DEFAULT)
    data_type = str(config.get("data_type") or "int")
    if not data_type.startswith("int"):
        raise UnsupportedError(f"auto-round of data type {data_type!r} cannot be read", remedy="use one of integers")
    for kind in ("awq", "gptq"):
        if kind in stated:
            return kind
    if all(word in _PLAIN for word in stated.split(":")):
        return "plain"
    raise UnsupportedError(
        f"auto-round of packing format {stated!r} cannot be read",
        remedy="use one of auto_round:auto_gptq, auto_round:auto_awq, auto_round",
    )


@dataclass(frozen=True)
class _Settings:
    """Those of all modules, and of some."""

    common: Mapping[str, Any]
    named: Mapping[str, Mapping[str, Any]]
    patterns: tuple[tuple[ModulePattern, Mapping[str, Any]], ...]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> _Settings:
        named = section(config, "extra_config")
        settings = {name: section(named, name) for name in named}
        special = ((name, its) for name, its in settings.items() if _SPECIAL & set(name))
        return cls(config, settings, tuple((ModulePattern(name), its) for name, its in special))

    def of(self, module: str) -> Mapping[str, Any]:
        """The settings of a module: its name counts before expressions, the first of those that is found in it."""
        change = self.named.get(module)
        if change is None:
            change = next((its for pattern, its in self.patterns if pattern.search(module)), {})
        return {**self.common, **{key: value for key, value in change.items() if value is not None}}

    def awq_group(self, module: str) -> int:
        its = self.of(module)
        bits_of(its, "bits", (4,))
        return group_size(its, "group_size")
