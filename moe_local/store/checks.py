"""What a store says of its matrices, against the formats and the model: a digest that fits proves nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from moe_local.checkpoint.architecture import experts_modules
from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import ALIGNMENT, Array, Layout, Matrix
from moe_local.checkpoint.tracing import row_major
from moe_local.formats.registry import EMBEDDING as EMBEDDING_ENCODING
from moe_local.formats.registry import fits
from moe_local.store.dense_packing import EMBEDDING
from moe_local.store.encode import encoded_specs
from moe_local.store.manifest import Manifest, StoredMatrix
from moe_local.store.writer import Planned

_MOST = 1 << 32  # elements of a matrix
_KINDS: dict[type[nn.Module], str] = {nn.Linear: "linear", nn.Embedding: EMBEDDING}


def assert_sound(manifest: Manifest) -> None:
    """Raises ValueError for records and matrices that no packing makes."""
    for layer in manifest.layers:
        for layout in {id(layout): layout for layout in layer.layouts}.values():
            for name, projection in layout.projections.items():
                if len(projection.matrices) != 1:
                    raise ValueError(f"{name} of {layer.path} has {len(projection.matrices)} matrices")
                _assert_matrix(projection.matrices[0], layout)
                if projection.bias is not None:
                    shape = (projection.matrices[0].shape[0],)
                    _assert_array(projection.bias, Planned(projection.bias.dtype, shape), layout)
    for matrix in manifest.matrices:
        _specs(matrix.encoding, matrix.shape)


def _assert_matrix(matrix: Matrix, layout: Layout) -> None:
    specs = _specs(matrix.encoding, matrix.shape)
    if matrix.arrays.keys() != specs.keys():
        raise ValueError(f"{matrix.encoding} has the arrays {', '.join(matrix.arrays)}")
    for name, array in matrix.arrays.items():
        _assert_array(array, specs[name], layout)


def _assert_array(array: Array, spec: Planned, layout: Layout) -> None:
    if (array.dtype, array.shape, array.strides) != (spec.dtype, spec.shape, row_major(spec.shape)):
        raise ValueError(f"an array is {array.dtype} {array.shape}, not {spec.dtype} {spec.shape}")
    if array.position % ALIGNMENT or array.position + spec.length > layout.size:
        raise ValueError(f"an array at {array.position} is not inside a record of {layout.size} bytes")


def _specs(encoding: Encoding, shape: tuple[int, int]) -> Mapping[str, Planned]:
    """The arrays of a matrix. Raises ValueError where the format cannot hold it, or is none."""
    if math.prod(shape) > _MOST or 0 in shape:
        raise ValueError(f"a matrix has the shape {shape}")
    try:
        if fits(encoding, shape):
            return encoded_specs(encoding, shape)
    except Exception as error:  # whatever options of a format that make no sense lead to
        raise ValueError(f"there is no encoding {encoding}") from error
    raise ValueError(f"{encoding} cannot hold a matrix of shape {shape}")


def assert_of_model(manifest: Manifest, skeleton: PreTrainedModel) -> None:
    """Raises ValueError where records are not those of the model's experts, or a matrix not that of its module."""
    modules = experts_modules(skeleton)
    for path, number in manifest.layer_of.items():
        layer, module = manifest.layers[number], modules[path]
        for layout in {id(layout): layout for layout in layer.layouts}.values():
            _assert_experts(path, module, layout, len(layer.checksums))
    for matrix in manifest.matrices:
        _assert_module(skeleton, matrix)


def _assert_experts(path: str, module: nn.Module, layout: Layout, experts: int) -> None:
    found: dict[str, tuple[int, ...]] = {}
    for name, projection in layout.projections.items():
        out, width = projection.shape
        found[name] = (experts, width, out) if getattr(module, "is_transposed", False) else (experts, out, width)
        if projection.bias is not None:
            found[f"{name}_bias"] = (experts, *projection.bias.shape)
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
    if found != wanted:
        raise ValueError(f"its experts of {path} are {found}, and the model's {wanted}")


def _assert_module(skeleton: PreTrainedModel, matrix: StoredMatrix) -> None:
    try:
        module = skeleton.get_submodule(matrix.path)
    except AttributeError as error:
        raise ValueError(f"the model has no {matrix.path}") from error
    weight = getattr(module, "weight", None)
    if _KINDS.get(type(module)) != matrix.kind or weight is None or tuple(weight.shape) != matrix.shape:
        raise ValueError(f"{matrix.path} is no {matrix.kind} of shape {matrix.shape} in the model")
    if matrix.kind == EMBEDDING and matrix.encoding != EMBEDDING_ENCODING:
        raise ValueError(f"the embedding {matrix.path} is held as {matrix.encoding}")


def assert_stored(matrix: StoredMatrix, parts: Mapping[str, TensorEntry]) -> None:
    """Raises ValueError unless the tensors are the arrays of the matrix."""
    wanted = {name: (spec.dtype, spec.shape) for name, spec in _specs(matrix.encoding, matrix.shape).items()}
    if {name: (part.dtype, part.shape) for name, part in parts.items()} != wanted:
        raise ValueError(f"the tensors of {matrix.path} are not those of {matrix.encoding}")
