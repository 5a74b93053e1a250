"""Dense modules that do not hold their matrix as a parameter: linear layers and embeddings that stay encoded, and
embeddings left on the disk. They are put in place while a model is built.

What they hold lies in their `__dict__`, past `nn.Module`: to transformers a parameter or buffer is something to load,
move, cast and save, and these must stay what the files have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.formats.base import Arrays, Shape
from moe_local.formats.registry import format_of
from moe_local.kernels.base import Multiply
from moe_local.kernels.matrix import bind, kernel_for
from moe_local.memory.files import ReadAt
from moe_local.model.buffers import rows_decoded
from moe_local.model.transformers_api import keep_tied, mark_loaded


class _Unregistered(nn.Module):
    """A module that holds things without registering them: `_hold` them, and read them from `_held`."""

    def _hold(self, **things: Any) -> None:
        vars(self).update(things)

    @property
    def _held(self) -> dict[str, Any]:
        return vars(self)


class EncodedLinear(_Unregistered):
    """`nn.Linear` without its weight. Ready once `connect` was called."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.in_features = original.in_features
        self.out_features = original.out_features
        self.bias = original.bias
        self._hold(weight=torch.empty(0, dtype=original.weight.dtype))  # models ask for its type
        mark_loaded(self)

    def connect(self, encoded: EncodedTensor, arrays: Mapping[str, Tensor], *, exact: bool) -> None:
        shape = (encoded.shape[0], encoded.shape[1])
        parts = _parts(encoded.encoding, arrays, shape)
        self._hold(multiply=[bind(encoded.encoding, part, each, exact=exact) for part, each in parts])

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        parts: list[Multiply] = self._held["multiply"]
        rows = x.reshape(-1, self.in_features)
        y = parts[0](rows) if len(parts) == 1 else torch.cat([multiply(rows) for multiply in parts], dim=1)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


def _parts(encoding: Encoding, arrays: Arrays, shape: Shape) -> list[tuple[Arrays, Shape]]:
    """A matrix whole; or, where it is decoded to be multiplied and large, in parts that are decoded one by one."""
    form, device, (out, width) = format_of(encoding), next(iter(arrays.values())).device, shape
    step = rows_decoded(out, width)
    if step == out or not (form.divisible and kernel_for(encoding, device, shape).decodes):
        return [(arrays, shape)]
    stops = [(start, min(out, start + step)) for start in range(0, out, step)]
    return [(form.row_part(arrays, start, stop), (stop - start, width)) for start, stop in stops]


class EncodedEmbedding(_Unregistered):
    """`nn.Embedding` of int8 rows with a scale each. Ready once `connect` was called."""

    def __init__(self, original: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings = original.num_embeddings
        self.embedding_dim = original.embedding_dim
        self.padding_idx = original.padding_idx
        self._dtype = original.weight.dtype
        self._hold(weight=torch.empty(0, dtype=self._dtype))  # some models' initialisation reaches for it
        mark_loaded(self)

    def connect(self, encoded: EncodedTensor, arrays: Mapping[str, Tensor], *, exact: bool) -> None:
        self._hold(weight=arrays["weight"], scales=arrays["scales"])

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] int -> [..., hidden]."""
        rows = F.embedding(ids, self._held["weight"])
        scales: Tensor = self._held["scales"][ids]
        return rows.to(self._dtype) * scales[..., None].to(self._dtype)


class EmbeddingOnDisk(_Unregistered):
    """`nn.Embedding` that reads its rows. Ready once `connect` was called."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        assert isinstance(original, nn.Embedding)
        self.num_embeddings = original.num_embeddings
        self.embedding_dim = original.embedding_dim
        self.padding_idx = original.padding_idx
        stand_in = torch.empty((), dtype=original.weight.dtype, device="cpu")
        self._hold(weight=stand_in.expand(original.weight.shape))  # models ask for its type, shape and device
        mark_loaded(self)

    def connect(self, parts: Sequence[Source], read_at: ReadAt, read: Callable[[TensorEntry], Tensor]) -> None:
        """`parts` hold the rows, one below the other; one that is encoded is alone."""
        (first, *_) = parts
        scales = read(first.parts["scales"]).cpu() if isinstance(first, EncodedTensor) else None
        self._hold(rows=_Stack([rows_of(part) for part in parts]), scales=scales, read_at=read_at)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] int -> [..., embedding_dim], on the device that they are on.

        Raises IndexError for one that is not in the vocabulary, StorageError when a row cannot be read.
        """
        own = self._held
        wanted, places = torch.unique(ids.cpu(), return_inverse=True)
        if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < self.num_embeddings):
            raise IndexError(f"token {int(wanted[0])} or {int(wanted[-1])} of {self.num_embeddings}")
        stack: _Stack = own["rows"]
        rows = stack.read(own["read_at"], wanted.tolist()).to(own["weight"].dtype)
        if own["scales"] is not None:
            rows = rows * own["scales"][wanted][:, None].to(rows.dtype)
        found: Tensor = rows[places].to(ids.device)
        return found


class _Stack:
    """Matrices of a width and type in files, one below the other."""

    def __init__(self, parts: Sequence[TensorEntry]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(part.shape[0] for part in parts)]  # of each part, in rows

    def read(self, read_at: ReadAt, wanted: Sequence[int]) -> Tensor:
        """These rows, [len(wanted), width] in their own type."""
        (first, *_) = self._parts
        size = first.length // first.shape[0]
        raw = torch.empty(len(wanted), size, dtype=torch.uint8)
        memory = raw.view(-1).numpy().data
        for place, row in enumerate(wanted):
            number = bisect_right(self._starts, row) - 1
            part, below = self._parts[number], row - self._starts[number]
            read_at(part.file, part.offset + below * size, memory[place * size : (place + 1) * size])
        return raw.view(first.dtype)


def rows_of(source: Source) -> TensorEntry:
    """The rows of an embedding themselves, without their scales."""
    return source.parts["weight"] if isinstance(source, EncodedTensor) else source


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
        keep_tied(self, without={f"{path}.weight" for path in replacements})

    return type(cls.__name__, (cls,), {"__init__": initialize, "__module__": cls.__module__})


def load_arrays(
    model: PreTrainedModel,
    encoded: Mapping[str, EncodedTensor],
    read: Callable[[TensorEntry], Tensor],
    *,
    exact: bool,
) -> None:
    """Gives every encoded module its arrays; `read` makes a tensor on the model's device of a TensorEntry."""
    for path, tensor in encoded.items():
        module: Any = model.get_submodule(path)
        module.connect(tensor, {name: read(part) for name, part in tensor.parts.items()}, exact=exact)


def embeddings_on_disk(
    model: PreTrainedModel,
    rows: Mapping[str, Sequence[Source]],
    read_at: ReadAt,
    read: Callable[[TensorEntry], Tensor],
) -> None:
    """Tells every embedding on the disk where it is; `read` gives a whole tensor of the files."""
    for path, source in rows.items():
        module: Any = model.get_submodule(path)
        module.connect(source, read_at, read)
