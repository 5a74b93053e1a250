"""Which embeddings can be left on the disk: a token needs one row, so rows are read when they are asked for.

What the system caches of the file is not the process's: it goes when memory is short.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.conversions import Conversions
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.formats.registry import EMBEDDING
from moe_local.model.modules import rows_of

Rows = Mapping[str, tuple[Source, ...]]  # by a module's path, what holds its rows, one below the other


def readable_by_rows(skeleton: PreTrainedModel, catalog: Catalog) -> Rows:
    """The embeddings of tokens, and of what tokens make together, whose rows lie in the files as they are and which
    nothing else needs.
    """
    tokens: Any = skeleton.get_input_embeddings()
    uses = Counter(id(parameter) for _, parameter in skeleton.named_parameters(remove_duplicate=False))
    modules = {
        path: module
        for path, module in skeleton.named_modules()
        if type(module) is nn.Embedding
        and module.max_norm is None
        and uses[id(module.weight)] == 1  # else it is the output layer's as well
        # Smaller ones are of positions and kinds.
        and (module is tokens or module.num_embeddings > tokens.num_embeddings)
    }
    plain = _stacked(skeleton, catalog, modules)
    found = {path: (catalog.encoded[path],) if path in catalog.encoded else plain.get(path, ()) for path in modules}
    return {path: parts for path, parts in found.items() if parts and _are_rows(parts, modules[path])}


def _stacked(
    skeleton: PreTrainedModel, catalog: Catalog, modules: Mapping[str, nn.Module]
) -> dict[str, tuple[Source, ...]]:
    """The tensors that the weights of these modules are stacked of, in order."""
    conversions = Conversions(skeleton, {f"{path}.weight" for path in modules})
    for name, source in catalog.dense.items():
        if name not in catalog.parameters:
            conversions.take(source)
    found = conversions.stacked() | {of: (catalog.dense[name],) for name, of in catalog.parameters.items()}
    return {name.removesuffix(".weight"): parts for name, parts in found.items()}


def _are_rows(parts: Sequence[Source], module: nn.Embedding) -> bool:
    shapes = [tuple(part.shape) for part in parts]
    if any(len(shape) != 2 or shape[1] != module.embedding_dim for shape in shapes):
        return False
    if sum(shape[0] for shape in shapes) != module.num_embeddings:
        return False
    (first, *others) = parts
    if isinstance(first, EncodedTensor):
        return not others and first.encoding == EMBEDDING and not first.transposed
    types = {part.dtype if isinstance(part, TensorEntry) else None for part in parts}
    return len(types) == 1 and all(dtype is not None and dtype.is_floating_point for dtype in types)


def leave_on_disk(catalog: Catalog, rows: Rows) -> Catalog:
    """The catalog, with these embeddings to be read by rows."""
    names = {part.name for parts in rows.values() for part in parts}
    return replace(
        catalog,
        dense={name: source for name, source in catalog.dense.items() if source.name not in names},
        encoded={path: tensor for path, tensor in catalog.encoded.items() if path not in rows},
        embedding_rows=rows,
    )


def bytes_of_rows(rows: Rows, dtype: torch.dtype) -> int:
    """What these embeddings would take in memory, without scales, computing in `dtype`."""
    return sum(
        rows_of(source).length if isinstance(source, EncodedTensor) else math.prod(source.shape) * dtype.itemsize
        for parts in rows.values()
        for source in parts
    )
