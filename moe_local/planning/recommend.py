"""Which of the models whose sizes are known suit a machine: by the same arithmetic as `plan`, nothing fetched."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from moe_local.errors import BudgetError
from moe_local.planning.estimate import Estimate, estimate
from moe_local.planning.families import model_sizes
from moe_local.planning.known_models import shipped
from moe_local.planning.locality import nearest
from moe_local.planning.machines import Machine
from moe_local.planning.sizes import ModelSizes
from moe_local.planning.weights import Formats, dense_bytes, needs_of, record_bytes

READING = 5.0  # tokens/s at which an answer comes about as fast as people read
_PUBLISHED = {None: 2.0, "fp8": 1.0}  # bytes a number, of weights as they are downloaded


class Verdict(IntEnum):
    """How an answer comes, by the ends of the range of tokens/s; the better first."""

    FLUENT = 0  # as fast as people read, even at the low end
    MAYBE = 1  # at the high end
    SLOW = 2  # slower than that
    TOO_LARGE = 3  # not at all


@dataclass(frozen=True)
class Suggestion:
    """One model on one machine. Sizes in bytes."""

    sizes: ModelSizes
    formats: Formats
    context: int
    download: int  # as published, about
    store: int  # packed
    outcome: Estimate | BudgetError

    @property
    def verdict(self) -> Verdict:
        if isinstance(self.outcome, BudgetError):
            return Verdict.TOO_LARGE
        low, high = self.outcome.tokens_per_second
        return Verdict.FLUENT if low >= READING else Verdict.MAYBE if high >= READING else Verdict.SLOW


def recommend(machine: Machine, context: int) -> list[Suggestion]:
    """All known models at `context` tokens, or at the most that they have: those that answer fast enough first, of
    them the largest.
    """
    known = (model_sizes(each["config"], each["name"], each["name"]) for each in shipped().values())
    found = [_suggest(sizes, machine, context) for sizes in known]
    return sorted(found, key=lambda each: (each.verdict, -each.sizes.parameters))


def _suggest(sizes: ModelSizes, machine: Machine, context: int) -> Suggestion:
    formats = Formats("mxfp4" if sizes.quantised == "mxfp4" else "int4")
    tokens = min(context, sizes.positions or context)
    needs = needs_of(sizes, formats, tokens, gpu=machine.vram is not None)
    outcome: Estimate | BudgetError
    try:
        outcome = estimate(sizes, machine, formats, tokens, nearest(sizes.experts[0], sizes.top_k))
    except BudgetError as error:
        outcome = error
    store = needs.all_experts * needs.slot + dense_bytes(sizes, formats)[0]
    return Suggestion(sizes, formats, tokens, published_bytes(sizes), store, outcome)


def published_bytes(sizes: ModelSizes) -> int:
    """What a download of the original weights takes, about: each number in bf16, or as it is published."""
    if sizes.quantised == "mxfp4":
        return sum(sizes.experts) * record_bytes(sizes, Formats("mxfp4")) + 2 * sizes.dense_held
    return round(sizes.parameters * _PUBLISHED.get(sizes.quantised, 2.0))
