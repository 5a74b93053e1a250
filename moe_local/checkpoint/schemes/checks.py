"""What schemes demand of a configuration's values and of tensors, before either is believed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from time import perf_counter
from typing import Any

import regex  # type: ignore[import-untyped]  # it comes with transformers, and has no types
import torch

from moe_local.checkpoint.header import TensorEntry, assert_known
from moe_local.errors import UnsupportedError

_PATIENCE = 5.0  # seconds that a pattern may take for all modules: real ones take a tenth of one
_LEAST = 0.01
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_LONGEST = 10_000  # characters of a pattern: published ones that list every expert have some thousand


def expect(
    tensors: Mapping[str, TensorEntry],
    name: str,
    dtypes: Collection[torch.dtype],
    *shapes: tuple[int, ...],
) -> TensorEntry:
    """The tensor `name`, if it has one of `dtypes` and, where there are any, of `shapes`.

    Raises ValueError naming it, UnsupportedError for one of a type that is not known.
    """
    entry = tensors.get(name)
    if entry is None:
        raise ValueError(f"tensor {name!r} is missing")
    assert_known(entry)
    if entry.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"tensor {name!r} is of type {str(entry.dtype).removeprefix('torch.')}, not {wanted}")
    if shapes and entry.shape not in shapes:
        raise ValueError(f"tensor {name!r} has shape {entry.shape}, not {' or '.join(map(str, shapes))}")
    return entry


def expect_matrix(tensors: Mapping[str, TensorEntry], name: str, dtypes: Collection[torch.dtype]) -> TensorEntry:
    """As `expect`, for a tensor of two axes, neither of them empty."""
    entry = expect(tensors, name, dtypes)
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise ValueError(f"tensor {name!r} has shape {entry.shape}, which is no matrix")
    return entry


def assert_none_left(tensors: Mapping[str, TensorEntry], suffixes: Collection[str], used: Collection[str]) -> None:
    """Raises ValueError for a tensor that ends in one of `suffixes` and belongs to no matrix."""
    for name in tensors:
        if name not in used and name.endswith(tuple(suffixes)):
            raise ValueError(f"tensor {name!r} belongs to no quantised matrix")


def integer(config: Mapping[str, Any], key: str) -> int:
    """A whole number of the configuration. Raises ValueError if it is something else."""
    value = config.get(key)
    if type(value) is not int:
        raise ValueError(f"{key} is {value!r}")
    return value


def bits_of(config: Mapping[str, Any], key: str, supported: Collection[int]) -> int:
    """The bits of a number. Raises UnsupportedError for as many as cannot be read."""
    bits = integer(config, key)
    if bits not in supported:
        raise UnsupportedError(
            f"quantised numbers of {bits} bits cannot be read", remedy=f"use {' or '.join(map(str, supported))} bits"
        )
    return bits


def group_size(config: Mapping[str, Any], key: str) -> int:
    """How many columns share a scale; 0 for all of them, which the configuration calls -1."""
    size = integer(config, key)
    if size < 1 and size != -1:
        raise ValueError(f"{key} is {size}")
    return max(0, size)


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object of the configuration, empty where it is absent. Raises ValueError if it is something else."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{key} is {value!r}")
    return value or {}


def boolean(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A flag of the configuration, or `default` where it is absent. Raises ValueError if it is something else."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}")
    return value


class ModulePattern:
    """A regular expression of the configuration, for the names of modules.

    A few letters can keep an expression busy for ever, so that it has a time for all its answers together; `re` knows
    no such thing. Raises ValueError for what is no expression, is longer than any real one, or takes too long.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > _LONGEST:
            raise ValueError(f"a pattern has {len(pattern)} characters")
        self._left = _PATIENCE
        try:
            self._compiled = regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{pattern!r} is not a pattern ({error})") from error

    def match(self, module: str) -> bool:
        """Whether it fits the beginning of a name."""
        return self._timed(self._compiled.match, module)

    def search(self, module: str) -> bool:
        """Whether it fits some part of a name."""
        return self._timed(self._compiled.search, module)

    def _timed(self, answer: Callable[..., object], module: str) -> bool:
        began = perf_counter()
        try:
            found = answer(module, timeout=max(_LEAST, self._left))
        except TimeoutError as error:
            raise ValueError(f"the pattern {self._compiled.pattern!r} takes too long") from error
        self._left -= perf_counter() - began
        return found is not None
