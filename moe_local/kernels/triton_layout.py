"""Records as the Triton kernels are told of them: arguments that are made once for a layout. Needs no triton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moe_local.checkpoint.record import Layout, Matrix, Projection
from moe_local.formats.registry import format_of
from moe_local.kernels.gating import Gating
from moe_local.kernels.triton_matrix import KINDS, Lying, Reader, reader_of

OPTIONS: Mapping[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
COLUMNS = 64  # of the outputs of a tile


@dataclass(frozen=True)
class Side:
    """A projection: how its matrices are read, where they begin in a record, and its bias."""

    reader: Reader
    places: tuple[tuple[int, int, int], ...]  # of data, scales and what scales these, for each matrix
    rows: int  # [out] of all matrices
    width: int  # [in]
    bias: int = 0
    bias_kind: str = ""

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.reader.units, self.reader.pitch, self.reader.across


@dataclass(frozen=True)
class PlacedExpert:
    """A layout's up (or gate and up) and down with one gating, and the arguments of the kernels for it."""

    up: Side
    down: Side
    gating: Gating

    @property
    def inner(self) -> int:
        """Outputs of gate and up once they are one."""
        return self.down.width

    @property
    def up_tile_rows(self) -> int:
        """Rows of up's matrices that give the `inner` outputs, side by side: gate and up where they take turns."""
        return 2 * self.inner if self.gating.interleaved else self.inner

    @cached_property
    def vector_blocks(self) -> tuple[int, int]:
        """Programs that it takes for up's outputs and for down's, of one choice."""
        up, down = self.up_vector["tile"][0], self.down_vector["tile"][0]
        return -(-self.up_tile_rows // up), -(-self.down.rows // down)

    @property
    def tiled_blocks(self) -> tuple[int, int]:
        """The same of one tile of rows."""
        return -(-self.up_tile_rows // COLUMNS), -(-self.down.rows // COLUMNS)

    @cached_property
    def up_numbers(self) -> tuple[int | float, ...]:
        """Of `up_vector` and `up_tiled`, from `width` to `limit`."""
        first, last = self.up.places[0], self.up.places[-1]
        row = self.inner if len(self.up.places) == 1 else 0
        gating = self.gating
        return (
            self.up.width, self.inner, *first, *last, row, self.up.bias, *self.up.numbers, gating.alpha, gating.limit
        )  # fmt: skip

    @cached_property
    def down_numbers(self) -> tuple[int, ...]:
        """Of `down_vector` and `down_tiled`, from `width` to `across`."""
        return self.down.width, self.down.rows, *self.down.places[0], self.down.bias, *self.down.numbers

    @cached_property
    def up_vector(self) -> dict[str, Any]:
        """What is compiled into `up_vector`."""
        return {**vector(self.up.reader, self.up_tile_rows), **self._gating, "bias_kind": self.up.bias_kind}

    @cached_property
    def down_vector(self) -> dict[str, Any]:
        return {**vector(self.down.reader, self.down.rows), "bias_kind": self.down.bias_kind}

    def up_tiled(self, block: int, exact: bool) -> dict[str, Any]:
        """What is compiled into `up_tiled`, for tiles of `block` rows."""
        made = tiled(self.up.reader, self.up_tile_rows, block, exact)
        return {**made, **self._gating, "bias_kind": self.up.bias_kind}

    def down_tiled(self, block: int, exact: bool) -> dict[str, Any]:
        return {**tiled(self.down.reader, self.down.rows, block, exact), "bias_kind": self.down.bias_kind}

    @property
    def _gating(self) -> dict[str, Any]:
        return {"gating": (self.gating.activation, self.gating.gated, self.gating.interleaved)}


def vector(reader: Reader, rows: int) -> dict[str, Any]:
    """What is compiled into a kernel that multiplies a row by so many `rows` of a matrix."""
    tile = reader.tile()
    even, fits = reader.steps % tile[1] == 0, rows % tile[0] == 0
    return {"spec": tuple(reader.spec), "tile": tile, "even": even, "fits": fits, **OPTIONS}


def tiled(reader: Reader, rows: int, block: int, exact: bool) -> dict[str, Any]:
    """What is compiled into a kernel that multiplies `block` rows by so many `rows` of a matrix."""
    tile = (block, COLUMNS, reader.steps_tiled())
    even, fits = reader.steps % tile[2] == 0, rows % COLUMNS == 0
    return {"spec": tuple(reader.spec), "tile": tile, "even": even, "fits": fits, "exact": exact, **OPTIONS}


def place(layout: Layout, gating: Gating) -> PlacedExpert | None:
    """The experts of a layout with a gating; None where the kernels lack something for them."""
    found = layout.projections
    up = _side(found.get("gate_up_proj") or found.get("up_proj"))
    down = _side(found.get("down_proj"))
    if up is None or down is None or len(down.places) != 1:
        return None
    if len(up.places) > 1 and (not gating.gated or gating.interleaved):
        return None
    fits = up.rows == down.width * (2 if gating.gated else 1)
    return PlacedExpert(up, down, gating) if fits else None


def _side(projection: Projection | None) -> Side | None:
    """A projection of one matrix, or of two of a kind, its outputs in the model's order."""
    if projection is None or projection.order is not None or projection.bias_order is not None:
        return None
    first, bias = projection.matrices[0], projection.bias
    readers = [_reader(matrix) for matrix in projection.matrices]
    reader = readers[0]
    alike = all(each.shape == first.shape for each in projection.matrices) and len(set(readers)) == 1
    if reader is None or not alike or len(readers) > 2:
        return None
    if bias is not None and (bias.dtype not in KINDS or bias.strides != (1,)):
        return None
    places = tuple(_places(matrix, reader) for matrix in projection.matrices)
    kept = (0, "") if bias is None else (bias.position, KINDS[bias.dtype])
    return Side(reader, places, *projection.shape, *kept)


def _reader(matrix: Matrix) -> Reader | None:
    lying = {name: Lying(array.dtype, array.shape, array.strides) for name, array in matrix.arrays.items()}
    return reader_of(format_of(matrix.encoding), matrix.shape, lying)


def _places(matrix: Matrix, reader: Reader) -> tuple[int, int, int]:
    data, scales, whole = (0 if name is None else matrix.arrays[name].position for name in reader.arrays)
    return data, scales, whole
