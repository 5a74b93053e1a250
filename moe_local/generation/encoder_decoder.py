"""Models that make one text of another: what they do not do, and the languages that they translate between."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_local.errors import MoeLocalError, UnsupportedError
from moe_local.registry import closest

_LANGUAGE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")  # as NLLB names them: eng_Latn


def assert_goes_on(model: PreTrainedModel, what: str) -> None:
    """Raises UnsupportedError for an encoder-decoder where `what` is asked for, which needs a text that goes on."""
    if model.config.is_encoder_decoder:
        raise not_for_it(type(model).__name__, what)


def not_for_it(model: str, what: str) -> UnsupportedError:
    """What is raised of an encoder-decoder that is asked for `what`, like "a chat"."""
    return UnsupportedError(
        f"{model} is an encoder-decoder: it makes one text of another, and does not go on with it, as {what} needs",
        remedy="moe-local generate runs it",
    )


def translation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    source: str | None,
    target: str | None,
) -> tuple[list[int], int | None]:
    """The tokens of a text marked as `source`, and the token that a text of `target` begins with.

    Both are languages by the tokenizer's names; None leaves it as it is. Raises MoeLocalError for a language that
    there is not, and where a model that translates is not told the language to translate into.
    """
    known = languages(tokenizer) if model.config.is_encoder_decoder else {}
    if not known and (source is not None or target is not None):
        raise MoeLocalError("this model does not translate", remedy="leave out --source and --target")
    if known and target is None and model.generation_config.forced_bos_token_id is None:
        raise MoeLocalError("the language to translate into is not given", remedy="give --target, like fra_Latn")
    marked = list(ids) if source is None else _marked(ids, _known(known, source), set(known.values()))
    return marked, None if target is None else _known(known, target)


def languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that stand for languages, by name; none for most tokenizers."""
    return {name: token for name, token in tokenizer.get_added_vocab().items() if _LANGUAGE.fullmatch(name)}


def _marked(ids: Sequence[int], source: int, known: set[int]) -> list[int]:
    """`ids` with `source` in the place of the language that the tokenizer put there, or before them."""
    if not known & set(ids):
        return [source, *ids]
    return [source if token in known else token for token in ids]


def _known(known: Mapping[str, int], name: str) -> int:
    if name in known:
        return known[name]
    close = closest(name, known)
    remedy = f"did you mean {' or '.join(close)}?" if close else f"it has {len(known)}, like {min(known)}"
    raise MoeLocalError(f"the model has no language {name!r}", remedy=remedy)
