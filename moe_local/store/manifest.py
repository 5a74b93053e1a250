"""The manifest of a store: JSON that says what is where, and the checks on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import Array, Layout, Matrix, Projection
from moe_local.errors import CheckpointError, first_line
from moe_local.store.body import MANIFEST, VERSION, again, digest, read_body

_MOST = 1 << 50  # of any size, in bytes or elements
_LONGEST = 255  # characters of a file's name
T = TypeVar("T")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.int8, torch.int32, torch.int64,
        torch.float8_e4m3fn, torch.float8_e8m0fnu,
    )
}  # fmt: skip


@dataclass(frozen=True)
class StoredLayer:
    """One MoE layer: the file of its records, in the order of the experts, the layout of each, and a CRC-32 of it.

    Experts that are laid out alike share one layout, the very same object.
    """

    path: str
    file: str
    layouts: tuple[Layout, ...]
    checksums: tuple[int, ...]


@dataclass(frozen=True)
class StoredMatrix:
    """A dense matrix [out, in] that is kept encoded, for the module at `path`; `kind` is linear or embedding."""

    path: str
    kind: str
    shape: tuple[int, int]
    encoding: Encoding


@dataclass(frozen=True)
class Manifest:
    """Everything a store says of itself. `dense` has for every file of other tensors a CRC-32 of each, `files` a
    SHA-256 of every small file; `headers` the CRC-32 of the header of every safetensors file.
    """

    source: Mapping[str, str]  # name and fingerprint of the checkpoint, packing; and asked and error, but in old ones
    made_by: Mapping[str, str]  # versions
    formats: Mapping[str, str]  # experts, dense
    layers: tuple[StoredLayer, ...]
    layer_of: Mapping[str, int]
    matrices: tuple[StoredMatrix, ...]
    dense: Mapping[str, Mapping[str, int]]
    headers: Mapping[str, int]
    files: Mapping[str, str]

    def write(self, file: Path) -> None:
        body = {
            "version": VERSION,
            "source": dict(self.source),
            "made_by": dict(self.made_by),
            "formats": dict(self.formats),
            "layers": [_layer_to_json(layer) for layer in self.layers],
            "layer_of": dict(self.layer_of),
            "matrices": [{**asdict(m), "encoding": _encoding_to_json(m.encoding)} for m in self.matrices],
            "dense": {name: dict(checksums) for name, checksums in self.dense.items()},
            "headers": dict(self.headers),
            "files": dict(self.files),
        }
        text = json.dumps({"digest": digest(body), **body}, indent=1)
        with file.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises CheckpointError when it is damaged or of another version."""
        body = read_body(directory)
        try:
            return _from_json(body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{directory / MANIFEST} makes no sense ({first_line(error)})", remedy=again(directory)
            ) from error


def _from_json(body: Mapping[str, Any]) -> Manifest:
    """Raises KeyError, TypeError or ValueError for what no packing writes: a digest that fits proves nothing."""
    layers = tuple(_layer_from_json(layer) for layer in _list(body["layers"]))
    matrices = tuple(_matrix_from_json(matrix) for matrix in _list(body["matrices"]))
    texts = {key: _object(body[key], _text) for key in ("source", "made_by", "formats")}
    found = Manifest(
        texts["source"], texts["made_by"], texts["formats"], layers, _object(body["layer_of"], _natural), matrices,
        _object(body["dense"], _checksums), _object(body["headers"], _checksum), _object(body["files"], _text),
    )  # fmt: skip
    for required in ("name", "fingerprint"):
        found.source[required]
    for required in ("experts", "dense"):
        found.formats[required]
    for name in [*found.headers, *found.files]:
        _file_name(name)
    if missing := {*found.dense, *(layer.file for layer in layers)} - found.headers.keys():
        raise ValueError(f"headers lack {min(missing)!r}")
    if any(layer >= len(layers) for layer in found.layer_of.values()):
        raise ValueError("layer_of names a layer that there is not")
    return found


def _layer_from_json(given: Mapping[str, Any]) -> StoredLayer:
    checksums = tuple(_checksum(value) for value in _list(given["checksums"]))
    if "layout" in given:
        layouts = (layout_from_json(given["layout"]),) * len(checksums)
    else:
        kinds = [layout_from_json(kind) for kind in _list(given["layouts"])]
        layouts = tuple(kinds[_natural(number)] for number in _list(given["layout_of"]) if number < len(kinds))
    if not checksums or len(layouts) != len(checksums):
        raise ValueError(f"a layer has {len(layouts)} layouts for {len(checksums)} experts")
    return StoredLayer(_text(given["path"]), _file_name(given["file"]), layouts, checksums)


def _layer_to_json(layer: StoredLayer) -> dict[str, Any]:
    """One `layout` where all experts share it; else `layouts`, and by number in `layout_of` the one of each."""
    body = {"path": layer.path, "file": layer.file, "checksums": list(layer.checksums)}
    kinds = list({id(layout): layout for layout in layer.layouts}.values())
    if len(kinds) == 1:
        return {**body, "layout": layout_to_json(kinds[0])}
    numbers = {id(kind): number for number, kind in enumerate(kinds)}
    return {
        **body,
        "layouts": [layout_to_json(kind) for kind in kinds],
        "layout_of": [numbers[id(layout)] for layout in layer.layouts],
    }


def _matrix_from_json(given: Mapping[str, Any]) -> StoredMatrix:
    kind = given["kind"]
    if kind not in ("linear", "embedding"):
        raise ValueError(f"a matrix is a {kind!r}")
    return StoredMatrix(_text(given["path"]), kind, _shape(given["shape"]), _encoding_from_json(given["encoding"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} where a text belongs")
    return value


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"{value!r} where a size belongs")
    return value


def _checksum(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError(f"{value!r} where a CRC-32 belongs")
    return value


def _checksums(value: object) -> dict[str, int]:
    return _object(value, _checksum)


def _file_name(value: object) -> str:
    """A file of the store's own folder."""
    name = _text(value)
    if name in ("", ".", "..") or len(name) > _LONGEST or any(character in name for character in "/\\\0:"):
        raise ValueError(f"{name[:_LONGEST]!r} is not the name of a file in its folder")
    return name


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("something else where a list belongs")
    return value


def _object(value: object, of: Callable[[object], T]) -> dict[str, T]:
    if not isinstance(value, dict):
        raise ValueError("something else where an object belongs")
    return {name: of(item) for name, item in value.items()}


def _shape(value: object) -> tuple[int, int]:
    out, width = (_natural(count) for count in _list(value))
    return out, width


def layout_to_json(layout: Layout) -> dict[str, Any]:
    return {
        "size": layout.size,
        "projections": {
            name: {
                "matrices": [
                    {
                        "encoding": _encoding_to_json(matrix.encoding),
                        "shape": list(matrix.shape),
                        "arrays": {key: _array_to_json(array) for key, array in matrix.arrays.items()},
                    }
                    for matrix in projection.matrices
                ],
                "bias": None if projection.bias is None else _array_to_json(projection.bias),
            }
            for name, projection in layout.projections.items()
        },
    }


def layout_from_json(given: Mapping[str, Any]) -> Layout:
    """Raises KeyError, TypeError or ValueError for one that makes no sense."""
    projections = {
        _text(name): Projection(
            tuple(_placed_from_json(matrix) for matrix in _list(projection["matrices"])),
            bias=None if projection["bias"] is None else _array_from_json(projection["bias"]),
        )
        for name, projection in given["projections"].items()
    }
    return Layout(projections, _natural(given["size"]))


def _placed_from_json(given: Mapping[str, Any]) -> Matrix:
    arrays = _object(given["arrays"], _array_from_json)
    return Matrix(_encoding_from_json(given["encoding"]), _shape(given["shape"]), arrays)


def _encoding_to_json(encoding: Encoding) -> dict[str, Any]:
    return {"format": encoding.format, **dict(encoding.options)}


def _encoding_from_json(given: Any) -> Encoding:
    options = {key: value for key, value in given.items() if key != "format"}
    if any(not isinstance(value, str) and type(value) is not int for value in options.values()):
        raise ValueError(f"an encoding of {given!r}")
    return Encoding(_text(given["format"]), tuple(options.items()))


def _array_to_json(array: Array) -> dict[str, Any]:
    return {**asdict(array), "dtype": str(array.dtype).removeprefix("torch.")}


def _array_from_json(given: Any) -> Array:
    shape, strides = (tuple(_natural(count) for count in _list(given[key])) for key in ("shape", "strides"))
    return Array(_DTYPES[given["dtype"]], shape, strides, _natural(given["position"]))
