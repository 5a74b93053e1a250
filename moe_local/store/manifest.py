"""The manifest of a store: JSON that says what is where, and the checks on it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from moe_local.checkpoint.json_file import read_json
from moe_local.checkpoint.record import Array, Encoding, Layout, Matrix, Projection
from moe_local.errors import CheckpointError

MANIFEST = "moe-local.json"
VERSION = 1
DENSE = "dense.safetensors"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.int8, torch.int32, torch.int64,
        torch.float8_e4m3fn, torch.float8_e8m0fnu,
    )
}  # fmt: skip


@dataclass(frozen=True)
class StoredLayer:
    """One MoE layer: the file of its records, in the order of the experts, and a CRC-32 of each."""

    path: str
    file: str
    layout: Layout
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
    """Everything a store says of itself. `dense` has a CRC-32 of every tensor of its file, `files` a SHA-256 of every
    small file; `headers` the CRC-32 of the header of every safetensors file.
    """

    source: Mapping[str, Any]  # name, fingerprint
    made_by: Mapping[str, str]  # versions
    formats: Mapping[str, str]  # experts, dense
    layers: tuple[StoredLayer, ...]
    layer_of: Mapping[str, int]
    matrices: tuple[StoredMatrix, ...]
    dense: Mapping[str, int]
    headers: Mapping[str, int]
    files: Mapping[str, str]

    def write(self, file: Path) -> None:
        body = {
            "version": VERSION,
            "source": dict(self.source),
            "made_by": dict(self.made_by),
            "formats": dict(self.formats),
            "layers": [
                {**asdict(layer), "layout": layout_to_json(layer.layout), "checksums": list(layer.checksums)}
                for layer in self.layers
            ],
            "layer_of": dict(self.layer_of),
            "matrices": [{**asdict(m), "encoding": _encoding_to_json(m.encoding)} for m in self.matrices],
            "dense": dict(self.dense),
            "headers": dict(self.headers),
            "files": dict(self.files),
        }
        text = json.dumps({"digest": _digest(body), **body}, indent=1)
        with file.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises CheckpointError when it is damaged or of another version."""
        file = directory / MANIFEST
        again = f"delete {directory} and pack it again"
        try:
            body = read_json(file)
        except CheckpointError as error:
            raise CheckpointError(error.message, remedy=again) from error
        if body.pop("digest", None) != _digest(body):
            raise CheckpointError(f"{file} is damaged: its digest does not match", remedy=again)
        if body["version"] != VERSION:
            raise CheckpointError(f"{file} is of version {body['version']}, not {VERSION}", remedy="pack it again")
        layers = tuple(
            StoredLayer(d["path"], d["file"], layout_from_json(d["layout"]), tuple(d["checksums"]))
            for d in body["layers"]
        )
        matrices = tuple(
            StoredMatrix(m["path"], m["kind"], (m["shape"][0], m["shape"][1]), _encoding_from_json(m["encoding"]))
            for m in body["matrices"]
        )
        return cls(
            body["source"], body["made_by"], body["formats"], layers, body["layer_of"], matrices, body["dense"],
            body["headers"], body["files"],
        )  # fmt: skip


def is_store(directory: Path) -> bool:
    return (directory / MANIFEST).exists()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


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
    projections = {
        name: Projection(
            tuple(
                Matrix(
                    _encoding_from_json(matrix["encoding"]),
                    (matrix["shape"][0], matrix["shape"][1]),
                    {key: _array_from_json(array) for key, array in matrix["arrays"].items()},
                )
                for matrix in projection["matrices"]
            ),
            bias=None if projection["bias"] is None else _array_from_json(projection["bias"]),
        )
        for name, projection in given["projections"].items()
    }
    return Layout(projections, given["size"])


def _encoding_to_json(encoding: Encoding) -> dict[str, Any]:
    return {"format": encoding.format, **dict(encoding.options)}


def _encoding_from_json(given: Mapping[str, Any]) -> Encoding:
    return Encoding(given["format"], tuple((key, value) for key, value in given.items() if key != "format"))


def _array_to_json(array: Array) -> dict[str, Any]:
    return {**asdict(array), "dtype": str(array.dtype).removeprefix("torch.")}


def _array_from_json(given: Mapping[str, Any]) -> Array:
    return Array(_DTYPES[given["dtype"]], tuple(given["shape"]), tuple(given["strides"]), given["position"])
