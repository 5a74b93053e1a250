"""A model's router scores for `bench routing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_local.errors import MoeLocalError
from moe_local.files import read_text

if TYPE_CHECKING:
    from moe_local.bench.scores import Scores
    from moe_local.engine import Engine
    from moe_local.planning.options import Options

    from .routing_flags import RoutingFlags

_CHARACTERS = 64  # of a text for each token that is asked for: more than tokenizers put into one, on average


def record(model: str | None, asked: RoutingFlags, options: Options, *, pack: bool) -> Scores:
    """Loads the model and runs it over the text."""
    from moe_local.bench.scores import record_scores

    from .load import load, progress

    text = None if asked.text is None else read_text(asked.text, most=asked.tokens * _CHARACTERS, whole=False)
    with load(model, options, pack=pack, purpose="routing token by token") as engine:
        texts = _texts(engine, text, asked.tokens)
        with progress() as report:
            return record_scores(engine, texts, report)


def _texts(engine: Engine, text: str | None, tokens: int) -> list[list[int]]:
    """Token ids, in pieces that the context holds; of a text as it is, of our prompts as a chat has them."""
    from moe_local.bench.workload import OWN

    ids = (
        [engine.encode(prompt.text) for prompt in OWN]
        if text is None
        else [engine.generator.encoder.encode_text(text, tokens)]
    )
    context, left, found = engine.load_plan.context, tokens, []
    for each in ids:
        for begin in range(0, len(each), context):
            piece = each[begin : begin + min(context, left)]
            left -= len(piece)
            if len(piece) > 1:
                found.append(piece)
    if not found:
        raise MoeLocalError("the text has no two tokens", remedy="give a longer one")
    return found
