"""How much memory tensors take at once: counted while a model's code runs, on meta without any of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch says no types of it
    """While it is entered, counts the bytes of what is made by storage, from when it is made until nobody has it.

    What lies in the memory of `known` tensors is not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        settings: Any = _config  # torch puts `patch` there when it is imported
        self._nonzero = settings.patch(meta_nonzero_assume_all_nonzero=True)  # how many are, meta cannot tell
        self.peak = self._live = 0
        self._known = {_storage(tensor) for tensor in known}
        self._held: dict[int, tuple[int, int]] = {}  # of each storage: how many tensors have it, and its bytes

    def __enter__(self) -> LiveBytes:
        self._nonzero.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *ended: Any) -> None:
        super().__exit__(*ended)  # type: ignore[no-untyped-call]
        self._nonzero.__exit__(*ended)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and _storage(each) not in self._known:
                self._hold(each)
        return made

    def _hold(self, tensor: Tensor) -> None:
        key = _storage(tensor)
        count, size = self._held.get(key, (0, tensor.untyped_storage().nbytes()))
        self._held[key] = count + 1, size
        self._live += 0 if count else size
        self.peak = max(self.peak, self._live)
        weakref.finalize(tensor, self._drop, key)

    def _drop(self, key: int) -> None:
        count, size = self._held.pop(key)
        if count > 1:
            self._held[key] = count - 1, size
        else:
            self._live -= size


class OnlyOutputs(TorchFunctionMode):
    """While it is entered, torch's attention makes its output, and none of the scores: as kernels do, in blocks."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, value = given["query"], given["value"]
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
