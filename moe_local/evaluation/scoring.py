"""Next-token distributions of a model over windows of a text."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_local.evaluation.windows import Window
from moe_local.generation.damage import refuse_damage
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.formulas import PREFILL_CHUNK

ROWS = 8  # distributions in float32 at a time: a large vocabulary has half a megabyte a row


def log_probabilities(
    model: PreTrainedModel, ids: Sequence[int], window: Window, chunk: int = PREFILL_CHUNK
) -> Iterator[tuple[int, Tensor]]:
    """For each scored token of the window in turn: its position in the text, and log p(. | the window before it).

    In pieces (position of the first, [up to ROWS, vocabulary] float32 on the CPU). A window larger than
    `chunk` goes through the model in chunks, which is what the plan has memory for.
    """
    cache = None
    for begin in range(window.begin, window.end - 1, chunk):
        end = min(begin + chunk, window.end - 1)  # the last token predicts nothing that is scored
        first = min(max(begin, window.scored - 1), end)
        logits, cache = _forward(model, ids[begin:end], end - first, cache, more=end < window.end - 1)
        for row in range(first, end, ROWS):
            yield row + 1, _normalised(logits[row - first : row - first + ROWS])


def _forward(
    model: PreTrainedModel, ids: Sequence[int], keep: int, cache: object, *, more: bool
) -> tuple[Tensor, object]:
    """Logits [keep, vocabulary] of the last `keep` tokens, and the KV cache if `more` is to come."""
    inputs = torch.tensor([list(ids)], device=model.device)  # [1, T]
    # 0 would mean all of them
    only = {"logits_to_keep": max(1, keep)} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad():
        out = model(input_ids=inputs, use_cache=more or cache is not None, **{CACHE: cache}, **only)
    logits: Tensor = out.logits[0]
    return logits[len(logits) - keep :], kv_cache(out)


def _normalised(logits: Tensor) -> Tensor:
    scores = logits.float().log_softmax(dim=-1).cpu()
    refuse_damage(scores)
    return scores
