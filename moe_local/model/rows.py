"""Embeddings left on the disk: a token needs one row, so rows are read when they are asked for.

What the system caches of the file is not the process's: it goes when memory is short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.memory.files import ReadAt

_BY_ROWS = Encoding("int8")  # the encoding of embeddings, a scale for each row


def readable_by_rows(skeleton: PreTrainedModel, catalog: Catalog) -> dict[str, Source]:
    """The embedding of tokens, by its path, if its rows lie in the files one by one and nothing else needs them."""
    module = skeleton.get_input_embeddings()
    path = next((path for path, found in skeleton.named_modules() if found is module), "")
    if type(module) is not nn.Embedding or module.max_norm is not None:
        return {}
    if sum(module.weight is parameter for _, parameter in skeleton.named_parameters(remove_duplicate=False)) > 1:
        return {}  # it is the output layer's as well
    found = catalog.encoded.get(path) or catalog.dense.get(_name(catalog, f"{path}.weight"))
    if found is None or found.shape != module.weight.shape:
        return {}
    if isinstance(found, EncodedTensor):
        return {path: found} if found.encoding == _BY_ROWS and not found.transposed else {}
    return {path: found} if found.dtype.is_floating_point else {}


def leave_on_disk(catalog: Catalog, rows: Mapping[str, Source]) -> Catalog:
    """The catalog, with these embeddings to be read by rows."""
    names = {_name(catalog, f"{path}.weight") for path in rows}
    return replace(
        catalog,
        dense={name: source for name, source in catalog.dense.items() if name not in names},
        encoded={path: tensor for path, tensor in catalog.encoded.items() if path not in rows},
        rows=rows,
    )


def _name(catalog: Catalog, parameter: str) -> str:
    """What the checkpoint calls a parameter."""
    return next((name for name, of in catalog.parameters.items() if of == parameter), parameter)


def embeddings_on_disk(
    model: PreTrainedModel, rows: Mapping[str, Source], read_at: ReadAt, read: Callable[[TensorEntry], Tensor]
) -> None:
    """Tells every embedding on the disk where it is; `read` gives a whole tensor of the files."""
    for path, source in rows.items():
        module: Any = model.get_submodule(path)
        module.connect(source, read_at, read)


def bytes_of_rows(rows: Mapping[str, Source], dtype: torch.dtype) -> int:
    """What these embeddings would take in memory, without scales, computing in `dtype`."""
    return sum(
        _matrix(source).length if isinstance(source, EncodedTensor) else math.prod(source.shape) * dtype.itemsize
        for source in rows.values()
    )


def _matrix(source: Source) -> TensorEntry:
    """The rows themselves, without their scales."""
    return source.parts["weight"] if isinstance(source, EncodedTensor) else source


class EmbeddingOnDisk(nn.Module):
    """`nn.Embedding` that reads its rows. Ready once `connect` was called."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        assert isinstance(original, nn.Embedding)
        self.num_embeddings = original.num_embeddings
        self.embedding_dim = original.embedding_dim
        self.padding_idx = original.padding_idx
        # Models ask for its type and shape.
        self.__dict__["weight"] = torch.empty_like(original.weight, device="meta")
        vars(self)["_is_hf_initialized"] = True

    def connect(self, source: Source, read_at: ReadAt, read: Callable[[TensorEntry], Tensor]) -> None:
        vars(self)["_rows"] = _matrix(source)
        vars(self)["_scales"] = read(source.parts["scales"]) if isinstance(source, EncodedTensor) else None
        vars(self)["_read_at"] = read_at

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] int -> [..., embedding_dim].

        Raises IndexError for one that is not in the vocabulary, StorageError when a row cannot be read.
        """
        own: dict[str, Any] = vars(self)
        wanted, places = torch.unique(ids, return_inverse=True)
        if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < self.num_embeddings):
            raise IndexError(f"token {int(wanted[0])} or {int(wanted[-1])} of {self.num_embeddings}")
        rows = _read_rows(own["_rows"], own["_read_at"], wanted.tolist()).to(own["weight"].dtype)
        if own["_scales"] is not None:
            rows = rows * own["_scales"][wanted][:, None].to(rows.dtype)
        return rows[places]


def _read_rows(entry: TensorEntry, read_at: ReadAt, wanted: list[int]) -> Tensor:
    """These rows of a matrix, [len(wanted), width] in its own type."""
    size = entry.length // entry.shape[0]
    raw = torch.empty(len(wanted), size, dtype=torch.uint8)
    memory = raw.view(-1).numpy().data
    for place, row in enumerate(wanted):
        read_at(entry.file, entry.offset + row * size, memory[place * size : (place + 1) * size])
    return raw.view(entry.dtype)
