"""Scores that are no numbers: what damaged weights give."""

from __future__ import annotations

import math

from torch import Tensor
from transformers import LogitsProcessor

from moe_local.errors import CheckpointError

DAMAGED = "the model's output is not a number (NaN or infinite): its weights are damaged, or overflow in this dtype"
DAMAGED_REMEDY = "download it again, or try --dtype float32"


class RefuseDamage(LogitsProcessor):  # type: ignore[misc]
    """Damaged weights give what is no number; sampling from it would be noise or an obscure error."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        refuse_damage(scores)
        return scores


def refuse_damage(scores: Tensor) -> None:
    """Raises CheckpointError for scores [..., V] of which any cannot be chosen from."""
    if not all(map(math.isfinite, scores.amax(dim=-1).flatten().tolist())):
        raise CheckpointError(DAMAGED, remedy=DAMAGED_REMEDY)


def damaged(scores: Tensor) -> Tensor:
    """[...] bool: where the best of scores [..., V] is no number (NaN), or infinite, or there is none."""
    return ~scores.amax(dim=-1).isfinite()
