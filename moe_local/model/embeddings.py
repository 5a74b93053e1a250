"""Which embeddings can be left on the disk: a token needs one row, so rows are read when they are asked for.

What the system caches of the file is not the process's: it goes when memory is short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.formats.registry import EMBEDDING
from moe_local.model.modules import rows_of


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
        return {path: found} if found.encoding == EMBEDDING and not found.transposed else {}
    return {path: found} if found.dtype.is_floating_point else {}


def leave_on_disk(catalog: Catalog, rows: Mapping[str, Source]) -> Catalog:
    """The catalog, with these embeddings to be read by rows."""
    names = {_name(catalog, f"{path}.weight") for path in rows}
    return replace(
        catalog,
        dense={name: source for name, source in catalog.dense.items() if name not in names},
        encoded={path: tensor for path, tensor in catalog.encoded.items() if path not in rows},
        embedding_rows=rows,
    )


def _name(catalog: Catalog, parameter: str) -> str:
    """What the checkpoint calls a parameter."""
    return next((name for name, of in catalog.parameters.items() if of == parameter), parameter)


def bytes_of_rows(rows: Mapping[str, Source], dtype: torch.dtype) -> int:
    """What these embeddings would take in memory, without scales, computing in `dtype`."""
    return sum(
        rows_of(source).length if isinstance(source, EncodedTensor) else math.prod(source.shape) * dtype.itemsize
        for source in rows.values()
    )
