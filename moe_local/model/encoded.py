"""Dense modules whose matrix stays encoded: linear layers and embeddings, put in place while a model is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.kernels.base import Multiply
from moe_local.kernels.matrix import bind
from moe_local.model.buffers import LARGE

_FEW = 32  # rows, that every format multiplies without decoding


class EncodedLinear(nn.Module):
    """`nn.Linear` without its weight. Ready once `connect` was called."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.in_features = original.in_features
        self.out_features = original.out_features
        self.bias = original.bias
        self.__dict__["weight"] = torch.empty(0, dtype=original.weight.dtype)  # models ask for its type
        vars(self)["_is_hf_initialized"] = True

    def connect(self, encoded: EncodedTensor, arrays: Mapping[str, Tensor]) -> None:
        shape = (encoded.shape[0], encoded.shape[1])
        vars(self)["_multiply"] = bind(encoded.encoding, arrays, shape)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        multiply: Multiply = vars(self)["_multiply"]
        rows = x.reshape(-1, self.in_features)
        if len(rows) > _FEW and self.in_features * self.out_features >= LARGE:
            y = torch.cat([multiply(rows[at : at + _FEW]) for at in range(0, len(rows), _FEW)])
        else:
            y = multiply(rows)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


class EncodedEmbedding(nn.Module):
    """`nn.Embedding` of int8 rows with a scale each. Ready once `connect` was called."""

    def __init__(self, original: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings = original.num_embeddings
        self.embedding_dim = original.embedding_dim
        self.padding_idx = original.padding_idx
        self._dtype = original.weight.dtype
        vars(self)["_is_hf_initialized"] = True

    def connect(self, encoded: EncodedTensor, arrays: Mapping[str, Tensor]) -> None:
        self.__dict__["weight"] = arrays["weight"]
        vars(self)["_scales"] = arrays["scales"]

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] int -> [..., hidden]."""
        rows = F.embedding(ids, vars(self)["weight"])
        scales: Tensor = vars(self)["_scales"][ids]
        return rows.to(self._dtype) * scales[..., None].to(self._dtype)


_REPLACEMENTS: dict[type[nn.Module], type[Any]] = {nn.Linear: EncodedLinear, nn.Embedding: EncodedEmbedding}


def encoded_module(original: nn.Module) -> nn.Module:
    """What takes the place of a module whose matrix stays encoded."""
    made: nn.Module = _REPLACEMENTS[type(original)](original)
    return made


def with_modules(
    cls: type[PreTrainedModel], replacements: Mapping[str, Callable[[nn.Module], nn.Module]]
) -> type[PreTrainedModel]:
    """A subclass of a model class that is built with other modules, made of the original ones, at these paths.

    They have no `weight` that transformers would load.
    """
    if not replacements:
        return cls

    def initialize(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        for path, replacement in replacements.items():
            self.set_submodule(path, replacement(self.get_submodule(path)))
        kept = {f"{path}.weight" for path in replacements}
        tied = self.all_tied_weights_keys
        self.all_tied_weights_keys = {a: b for a, b in tied.items() if not kept & {a, b}}

    return type(cls.__name__, (cls,), {"__init__": initialize, "__module__": cls.__module__})


def load_arrays(
    model: PreTrainedModel, encoded: Mapping[str, EncodedTensor], read: Callable[[TensorEntry], Tensor]
) -> None:
    """Gives every encoded module its arrays; `read` makes a tensor on the model's device of a TensorEntry."""
    for path, tensor in encoded.items():
        module: Any = model.get_submodule(path)
        module.connect(tensor, {name: read(part) for name, part in tensor.parts.items()})
