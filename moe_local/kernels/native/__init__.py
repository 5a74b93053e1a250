"""Our own kernels for CPUs, in C++: built with the package where there is a compiler, chosen at run time.

`MOE_LOCAL_KERNELS` names the processor to compute as (avx512, avx-vnni, avx2, neon, portable), or `off`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_local.errors import MoeLocalError

if TYPE_CHECKING:
    from moe_local.kernels.native import _native

VARIABLE = "MOE_LOCAL_KERNELS"
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # as the kernels number them
# Without the cache: pip keeps wheels that it has built, also those without kernels.
REMEDY = (
    "install a C++17 compiler (on Debian: apt install g++), then"
    " pip install --force-reinstall --no-deps --no-cache-dir moe-local"
)


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why the kernels are not there; None if they are."""
    if os.environ.get(VARIABLE) == "off":
        return f"they are switched off by {VARIABLE}"
    try:
        from moe_local.kernels.native import _native  # noqa: F401
    except ImportError as error:
        return f"they were not built when moe-local was installed ({error})"
    return None


def machine() -> _native.Machine:
    """This processor with as many threads as torch has. Raises MoeLocalError for a processor that it is not."""
    return _machine(torch.get_num_threads())


@lru_cache(maxsize=16)
def _machine(threads: int) -> _native.Machine:
    from moe_local.kernels.native import _native

    processor = os.environ.get(VARIABLE) or None
    try:
        return _native.Machine(threads, processor)
    except ValueError as error:
        known = "avx512, avx-vnni, avx2, neon, portable or off"
        raise MoeLocalError(f"{VARIABLE}={processor}: {error}", remedy=f"set it to one of {known}, or not") from error


def multipliable(x: Tensor) -> Tensor:
    """x, contiguous and of a type that the kernels take: float32 where it is of another."""
    return (x if x.dtype in TYPES else x.float()).contiguous()
