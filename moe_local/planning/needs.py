"""What a model takes, in bytes, whatever it is measured on or estimated from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import gt, lt
from typing import Any

from moe_local.planning.formulas import PREFILL_CHUNK

_KV_SHARE = 0.25  # of what is left after the dense weights: the most that a batch's KV caches take


@dataclass(frozen=True)
class Needs:
    """What a model takes, in bytes, at one context length."""

    dense: int  # everything but the experts
    kv_bytes: int  # KV cache of one sequence, at the full context
    workspace: int  # activations and temporaries at the peak of a forward pass of `chunk` tokens, the longest
    slot: int  # the largest record
    experts: tuple[int, ...]  # experts of each MoE layer
    top_k: tuple[int, ...]  # experts that one token needs in each MoE layer
    embedding_rows: int = 0  # of `dense`: embeddings that could be read from the disk row by row
    embedding_rows_on_disk: int = 0  # embeddings that are read so: no part of `dense`
    sequences: int = 1  # that are computed at once
    kv_bytes_per_sequence: int = 0  # bytes of the KV cache of one of several sequences
    workspace_bytes_per_sequence: int = 0  # temporaries of one of several sequences, beside `workspace`
    chunk: int = PREFILL_CHUNK  # tokens of a prompt that go through the model at once, at most
    workspaces: tuple[tuple[int, int], ...] = ()  # (tokens, bytes) of smaller forward passes, ascending
    longer: tuple[tuple[int, int], ...] = ()  # and of longer ones, for which memory could be given

    @classmethod
    def of_passes(cls, workspaces: Sequence[tuple[int, int]], **needs: Any) -> Needs:
        """With forward passes of (tokens, bytes), ascending; the longest ones are left out for now."""
        return cls(**_cut(workspaces, PREFILL_CHUNK), **needs)

    def with_long_passes(self, available: int, *, elastic: bool) -> Needs:
        """These needs with the longest passes for which `available` bytes have room beside experts.

        A prompt that goes through the model at once needs each expert once. What a long pass takes costs experts
        their place: up to a half of what there is where it is `elastic` and lasts as long as the pass, else a
        thirty-second.
        """
        short = self.with_short_passes()
        left = available - short.resident_bytes
        most = min(left // (2 if elastic else 32), left - short.least_slots_bytes)
        fitting = [tokens for tokens, size in short.longer if size - short.workspace <= most]
        return replace(self, **_cut(self._passes, max(fitting, default=PREFILL_CHUNK)))

    def with_short_passes(self) -> Needs:
        """These needs with passes as short as they get, however little memory there is."""
        return replace(self, **_cut(self._passes, PREFILL_CHUNK))

    @property
    def _passes(self) -> tuple[tuple[int, int], ...]:
        return (*self.workspaces, (self.chunk, self.workspace), *self.longer)

    @property
    def kv_cache(self) -> int:
        """Bytes of the KV caches of all sequences."""
        return max(self.kv_bytes, self.sequences * self.kv_bytes_per_sequence)

    @property
    def resident_bytes(self) -> int:
        """Bytes of everything but experts: what is left of a budget is theirs."""
        more = self.sequences * self.workspace_bytes_per_sequence if self.sequences > 1 else 0
        return self.dense + self.kv_cache + self.workspace + more

    def with_embeddings_on_disk(self, available: int) -> Needs:
        """These needs with embeddings left on the disk, where `available` bytes do not hold them and everything else.

        A token needs one row of them, and all of an expert: their memory is worth more to experts.
        """
        if available >= self.resident_bytes + self.all_experts * self.slot:
            return self
        rows = self.embedding_rows
        return replace(self, dense=self.dense - rows, embedding_rows=0, embedding_rows_on_disk=rows)

    def with_fewer_sequences(self, available: int) -> Needs:
        """These needs with as many of the sequences as leave to experts three quarters of what `available` bytes have
        beside the rest.

        One where even the fewest slots would not fit beside two: a budget is not too small for a batch alone.
        """
        share = (available - self.dense - self.workspace) * _KV_SHARE

        def fit(count: int) -> bool:
            needs = replace(self, sequences=count)
            return (
                count * self.kv_bytes_per_sequence <= share
                and needs.resident_bytes + needs.least_slots_bytes <= available
            )

        return replace(self, sequences=next((n for n in range(self.sequences, 1, -1) if fit(n)), 1))

    def workspace_of(self, tokens: int) -> int:
        """Bytes of temporaries in a forward pass of so many tokens."""
        return next((size for most, size in self.workspaces if tokens <= most), self.workspace)

    @property
    def all_experts(self) -> int:
        return sum(self.experts)

    @property
    def token_set(self) -> int:
        """Experts that one token needs: with fewer slots, caching is worse than none."""
        return sum(min(k, n) for k, n in zip(self.top_k, self.experts, strict=True))

    @property
    def useful_share(self) -> float:
        """The smallest share of each layer's experts, in whole hundredths, that has room for one token's."""
        return max(math.ceil(100 * min(k, n) / n) for k, n in zip(self.top_k, self.experts, strict=True)) / 100

    @property
    def least_slots_bytes(self) -> int:
        """Bytes of the fewest slots: one a layer, and one for what passes through."""
        return (len(self.experts) + 1) * self.slot


def _cut(passes: Sequence[tuple[int, int]], chunk: int) -> dict[str, Any]:
    """The fields of `Needs` for passes of up to `chunk` tokens, or of fewer where none of `passes` has so many."""
    longest, workspace = [each for each in passes if each[0] <= chunk][-1]
    shorter, longer = (tuple(each for each in passes if which(each[0], longest)) for which in (lt, gt))
    return {"chunk": longest, "workspace": workspace, "workspaces": shorter, "longer": longer}
