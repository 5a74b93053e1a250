"""The KV cache of sequences that are computed together: a row for each, a token of each in a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_local.generation.batch.caches import beginning, branch, join, select, take_out
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.formulas import PREFILL_CHUNK

_SLACK = 32  # columns of padding that are not worth copying everything else for
Hide = Callable[[Tensor | None], None]  # says which tokens [B * T] of the next forward pass are there


class KVRows:
    """A KV cache with a row for each sequence, and which of its columns are tokens.

    `mask` [B, L] int64 is 1 where a token is; every row's last column is its last token.
    """

    def __init__(self, model: PreTrainedModel, cache: Any, mask: Tensor, hide: Hide, chunk: int) -> None:
        self.mask = mask
        self._model = model
        self._cache = cache
        self._hide = hide
        self._chunk = chunk  # tokens that go through the model at once, at most
        self._takes = inspect.signature(model.forward).parameters

    @classmethod
    def empty(cls, model: PreTrainedModel, count: int, hide: Hide, chunk: int = PREFILL_CHUNK) -> KVRows:
        mask = torch.zeros(count, 0, dtype=torch.long, device=model.device)
        return cls(model, None, mask, hide, chunk)

    def branch(self, count: int) -> KVRows:
        """`count` sequences that begin as this one did."""
        return KVRows(self._model, branch(self._cache, count), self.mask.expand(count, -1), self._hide, self._chunk)

    def beginning(self, number: int, tokens: int) -> KVRows:
        """A copy of one sequence: of its first `tokens`, all of them unless the cache `can_branch`; at least one."""
        columns = self.mask[number].nonzero().flatten()[:tokens]
        mask = torch.ones(1, tokens, dtype=torch.long, device=self.mask.device)
        return KVRows(self._model, beginning(self._cache, number, columns), mask, self._hide, self._chunk)

    def crop(self, tokens: int) -> None:
        """Lets go of all but the first `tokens` of its one sequence, which has no padding; it `can_branch`."""
        self._cache.crop(tokens - self.length)  # a negative number: tokens to take off the end
        self.mask = self.mask[:, :tokens]

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def length(self) -> int:
        """Columns: tokens of the longest sequence."""
        return self.mask.shape[1]

    def read(self, sequences: Sequence[Sequence[int]], beside: int = 0) -> Tensor:
        """Goes on by a prompt for each sequence, shorter ones padded -> logits of what comes next, [B, V] float32.

        `beside` tokens of others go through the model at the same time.
        """
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        there = torch.zeros_like(ids)
        for row, tokens in enumerate(sequences):
            ids[row, longest - len(tokens) :] = torch.tensor(list(tokens))
            there[row, longest - len(tokens) :] = 1
        step = max(1, (self._chunk - beside) // len(sequences))
        ids, there = ids.to(self.mask.device), there.to(self.mask.device)
        for start in range(0, longest, step):
            logits = self._forward(ids[:, start : start + step], there[:, start : start + step])
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Goes on by one token for each sequence, [B] -> logits of what comes next, [B, V] float32."""
        ids = tokens[:, None].to(self.mask.device)
        return self._forward(ids, torch.ones_like(ids))

    @torch.inference_mode()
    def _forward(self, ids: Tensor, there: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, there], dim=1)
        inputs: dict[str, Any] = {"attention_mask": self.mask, CACHE: self._cache, "use_cache": True}
        if "position_ids" in self._takes:
            inputs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = 1
        self._hide(None if there.all() else there.flatten().bool())
        out = self._model(input_ids=ids, **inputs)
        self._cache = kv_cache(out)
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def keep(self, numbers: Sequence[int]) -> None:
        """Lets go of all but these sequences."""
        at = torch.tensor(list(numbers), dtype=torch.long, device=self.mask.device)
        self.mask = self.mask[at]
        if len(at):
            select(self._cache, at)
        else:
            self._cache = None

    def take_out(self, leaving: Sequence[tuple[int, int]], rest: Sequence[int]) -> list[KVRows]:
        """Lets go of all sequences but `rest`; those of `leaving`, (number, tokens) each, as rows of their own."""
        if not rest and len(leaving) == 1 and leaving[0][1] == self.length and len(self) == 1:
            one = KVRows(self._model, self._cache, self.mask, self._hide, self._chunk)
            self.mask, self._cache = self.mask[:0], None
            return [one]
        at = torch.tensor(list(rest), dtype=torch.long, device=self.mask.device)
        places = [(number, self.mask[number].nonzero().flatten()) for number, _ in leaving]
        made = take_out(self._cache, places, at) if len(self) else []
        self.mask = self.mask[at]
        self._cache = self._cache if rest else None
        return [
            KVRows(self._model, cache, torch.ones_like(columns)[None], self._hide, self._chunk)
            for cache, (_, columns) in zip(made, places, strict=True)
        ]

    def joined(self, others: Sequence[KVRows]) -> KVRows:
        """All sequences in one, with no more padding than they need. Those that were joined are empty afterwards."""
        parts = [part for part in (self, *others) if len(part)]
        counts = torch.cat([part.mask.sum(dim=1) for part in parts or (self,)])
        length = int(counts.max()) if parts else 0
        if len(parts) < 2 and (not parts or parts[0].length - length < _SLACK):
            return parts[0] if parts else self
        columns = [[row.nonzero().flatten() for row in part.mask] for part in parts]
        cache = join([part._cache for part in parts], columns, length)
        mask = (torch.arange(length, device=counts.device) >= length - counts[:, None]).long()
        return KVRows(self._model, cache, mask, self._hide, self._chunk)


Passed = tuple[KVRows, Tensor]  # sequences, and logits [B, V] of what comes next
