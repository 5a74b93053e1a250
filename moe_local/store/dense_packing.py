"""Which dense matrices of a model can stay encoded, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.formats.registry import EMBEDDING as EMBEDDING_ENCODING
from moe_local.formats.registry import fits
from moe_local.store.manifest import StoredMatrix

_LEAST = 1 << 12  # elements: smaller matrices are not worth a kernel of their own
_ELSEWHERE = ("vision", "visual", "audio", "router", "image")  # parts of a path: other modalities, and choices
LINEAR, EMBEDDING = "linear", "embedding"


@dataclass(frozen=True)
class DensePlan:
    """`matrices` by the name of the tensor that they are made from; every other tensor stays as it is."""

    matrices: Mapping[str, tuple[StoredMatrix, ...]]


def plan_dense(
    catalog: Catalog, skeleton: PreTrainedModel, choose: Callable[[Encoding | None], Encoding] | None
) -> DensePlan:
    """Encodes every linear layer and embedding that it can; nothing if `choose` is None.

    `choose` gives the encoding from the one that a tensor has, None being that of a plain one. A tensor is only taken
    out when all modules that use it are of these kinds.
    """
    if choose is None:
        return DensePlan({})
    users = _users(skeleton)
    parameters = dict(skeleton.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[StoredMatrix, ...]] = {}
    for name, source in catalog.dense.items():
        parameter = parameters.get(catalog.parameters.get(name, ""))
        uses = users.get(id(parameter), []) if parameter is not None else []
        encoding = choose(source.encoding if isinstance(source, EncodedTensor) else None)
        matrices = tuple(_matrix(path, module, source, encoding) for path, module in uses)
        if matrices and all(matrices):
            found[name] = tuple(matrix for matrix in matrices if matrix is not None)
    return DensePlan(found)


def _users(skeleton: PreTrainedModel) -> dict[int, list[tuple[str, nn.Module]]]:
    """The modules that hold each parameter, by its id."""
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in skeleton.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append((path, module))
    return users


def _matrix(path: str, module: nn.Module, source: Source, encoding: Encoding) -> StoredMatrix | None:
    """How the module's matrix is to be held; None if it must stay as it is."""
    kind = {nn.Linear: LINEAR, nn.Embedding: EMBEDDING}.get(type(module))
    if kind is None or len(source.shape) != 2 or any(word in path.lower() for word in _ELSEWHERE):
        return None
    shape = (source.shape[0], source.shape[1])
    if shape[0] * shape[1] < _LEAST or path.rpartition(".")[2] == "gate":
        return None
    return StoredMatrix(path, kind, shape, EMBEDDING_ENCODING if kind == EMBEDDING else fitting(encoding, shape))


def fitting(encoding: Encoding, shape: tuple[int, int]) -> Encoding:
    """`encoding`, or int8 for a matrix that it cannot hold."""
    return encoding if fits(encoding, shape) else Encoding("int8")
