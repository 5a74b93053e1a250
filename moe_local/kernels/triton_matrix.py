"""Which encoded matrices the Triton kernels read, and with which parameters. Needs no triton."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from moe_local.checkpoint.tracing import row_major
from moe_local.formats.base import Format, Shape
from moe_local.formats.fp8 import Fp8
from moe_local.formats.int4 import BLOCK, Int4
from moe_local.formats.int8 import GROUP, Int8
from moe_local.formats.mxfp4 import Mxfp4
from moe_local.formats.nf4 import TABLES, Nf4
from moe_local.formats.nvfp4 import Nvfp4
from moe_local.formats.plain import Plain
from moe_local.kernels.native import VARIABLE

KINDS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}  # of numbers, as the kernels say it


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why there are no Triton kernels; None if there are."""
    if os.environ.get(VARIABLE) == "off":
        return f"they are switched off by {VARIABLE}"
    return None if find_spec("triton") else "triton is not installed"


class Lying(NamedTuple):
    """An array's type, shape, and strides in elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        return self.strides == row_major(self.shape)


class Spec(NamedTuple):
    """What of a format is compiled into a kernel; its functions take it by place."""

    kind: str  # int4, int8, mxfp4, nvfp4, table, fp8, bf16, fp16 or fp32
    group: int = 0  # columns that share a scale; 0: all of a row
    unit: int = 1  # a row's words are a multiple of it
    scale_rows: int = 1  # rows that share a scale
    scales: str = ""  # fp8: their type; nvfp4: of the number beside them, see `_times_whole`
    pack: int = 8  # columns in a word


@dataclass(frozen=True)
class Reader:
    """How the kernels read a matrix [out, in]: the arrays of its data, its scales and what scales these.

    A row has `units` times the spec's unit words; `pitch` is how many units further the next row begins (in blocks of
    16 rows: how many 64 bytes further the next block), `across` the scales in a line, or a plain row's stride.
    """

    spec: Spec
    units: int
    pitch: int
    arrays: tuple[str, str | None, str | None]
    across: int = 0
    table: str | None = None  # of `formats.nf4.TABLES`

    def tile(self) -> tuple[int, int]:
        """Rows and steps that a program multiplies one row by at a time: 128 bits and more for each thread."""
        few, many = (32, 64) if self.spec.pack > 1 else (64, 128)
        return BLOCK, many if self.steps >= 4 * many else few

    def steps_tiled(self) -> int:
        """Steps that are decoded and multiplied at a time: 64 columns."""
        return 64 // self.spec.pack

    @property
    def steps(self) -> int:
        return self.units * self.spec.unit


def values(table: str | None, device: torch.device) -> Tensor | None:
    """The numbers of a table [16] float32 on a device, kept there."""
    return None if table is None else _values(table, device)


@lru_cache(maxsize=8)
def _values(table: str, device: torch.device) -> Tensor:
    return torch.tensor(TABLES[table], device=device)


def reads(form: Format, shape: Shape) -> bool:
    """Whether the kernels read matrices of a format and shape [out, in], where they lie as the format has them."""
    width = shape[1]
    if isinstance(form, Nf4):
        return not form.nested and form.block % 8 == width % 8 == 0
    if isinstance(form, Fp8):
        return width % 4 == (form.columns or 4) % 4 == 0
    steps = {Mxfp4: 32, Nvfp4: 16, Int8: 4, Int4: 8, Plain: 1}
    return any(isinstance(form, kind) and width % step == 0 for kind, step in steps.items())


def reader_of(form: Format, shape: Shape, arrays: Mapping[str, Lying]) -> Reader | None:
    """For a matrix that lies in `arrays`; None if it is none that the kernels read."""
    if not reads(form, shape):
        return None
    if isinstance(form, Plain):
        return _plain(shape, arrays["weight"])
    if not all(array.contiguous for array in arrays.values()):
        return None
    if isinstance(form, Int4):
        return _blocked(Spec("int4", form.group), shape[1] // 8, shape[1] // form.group * (form.group // 8 + 1))
    if isinstance(form, Int8):
        return _blocked(Spec("int8", pack=4), shape[1] // 4, (shape[1] + -shape[1] % GROUP) // 4 + 1)
    if isinstance(form, Mxfp4):
        return _rowwise(Spec("mxfp4", 32), shape, ("blocks", "scales", None), shape[1] // 32)
    if isinstance(form, Nvfp4):
        return _nvfp4(form, shape, arrays)
    if isinstance(form, Nf4):
        found = _rowwise(Spec("table", form.block), shape, ("weight", "absmax", None), table=form.table)
        return found if arrays["absmax"].dtype == torch.float32 else None
    return _fp8(form, shape, arrays) if isinstance(form, Fp8) else None


def _blocked(spec: Spec, words: int, pitch: int) -> Reader:
    return Reader(spec, words, pitch, ("blocks", None, None))


def _unit(number: int, most: int) -> int:
    return math.gcd(number, most)


def _rowwise(
    spec: Spec, shape: Shape, names: tuple[str, str | None, str | None], across: int = 0, table: str | None = None
) -> Reader:
    words = shape[1] // spec.pack
    unit = _unit(words, 4)
    return Reader(spec._replace(unit=unit), words // unit, words // unit, names, across, table)


def _plain(shape: Shape, weight: Lying) -> Reader | None:
    if weight.dtype not in KINDS:
        return None
    down, across = weight.strides
    unit = _unit(math.gcd(shape[1], down), 8) if across == 1 else 1
    spec = Spec(KINDS[weight.dtype], unit=unit, pack=1)
    return Reader(spec, shape[1] // unit, down // unit, ("weight", None, None), across)


def _nvfp4(form: Nvfp4, shape: Shape, arrays: Mapping[str, Lying]) -> Reader | None:
    whole = arrays.get("whole")
    if arrays["scale"].dtype != torch.float8_e4m3fn or (whole is not None and whole.dtype != torch.float32):
        return None
    how = "" if whole is None else "one" if math.prod(whole.shape) == 1 else "rows"
    if how == "rows" and whole is not None and math.prod(whole.shape) != shape[0]:
        return None
    names = ("weight", "scale", "whole" if how else None)
    spec = Spec("nvfp4", 16, scales=f"{how}_divide" if how and form.divides else how)
    return _rowwise(spec, shape, names, shape[1] // 16)


def _fp8(form: Fp8, shape: Shape, arrays: Mapping[str, Lying]) -> Reader | None:
    scale = arrays["scale"]
    count = math.prod(scale.shape)
    if arrays["weight"].dtype != torch.float8_e4m3fn or scale.dtype not in (torch.float32, torch.bfloat16):
        return None
    spec = Spec("fp8", scales=KINDS[scale.dtype], pack=4)
    if form.rows is None or form.columns is None:
        found = _rowwise(spec, shape, ("weight", "scale", None), int(count > 1))
        return found if count in (1, shape[0]) else None
    down, across = -(-shape[0] // form.rows), -(-shape[1] // form.columns)
    if count != down * across:
        return None
    spec = spec._replace(group=form.columns, scale_rows=form.rows)
    return _rowwise(spec, shape, ("weight", "scale", None), across)
