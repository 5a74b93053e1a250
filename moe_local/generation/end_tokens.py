"""At which tokens an answer ends: whatever of a model's files says so, as each of them is wrong for somebody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from moe_local.generation.template import ChatTemplate
from moe_local.generation.template_settings import TemplateSettings

# Special tokens that end a turn wherever they are used: what llama.cpp goes by where a file names none.
_NAMES = frozenset(
    """
    <|im_end|> <|eot_id|> <|eom_id|> <|eot|> <|end|> <|return|> <|call|> <|calls|> <|flush|> <|endoftext|>
    <|end_of_text|> <|eos|> <eos> </s> [EOS] <end_of_turn> <turn|> <end_of_utterance> <EOT> _<EOT> [EOT]
    <\uff5cend\u2581of\u2581sentence\uff5c> <|END_OF_TURN_TOKEN|> <|role_end|>
    """.split()  # noqa: SIM905 - a list of them is hard to read
)
_PROBE = "An answer of which the end is looked for."


def with_end_tokens(
    defaults: GenerationConfig, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> GenerationConfig:
    """The defaults, with every end token that generation config, configuration and tokenizer name.

    (The configuration of a GGUF file has all that the file names.) Beside them the special token that the chat
    template closes an answer with, and special tokens of well-known names; but none after which an answer may go on:
    harmony's `<|end|>` closes its reasoning, too.
    """
    found = [*_ids(defaults.eos_token_id)]
    for part in (config, config.get_text_config()):
        found += _ids(getattr(part, "eos_token_id", None))
    if tokenizer is not None:
        template = ChatTemplate(tokenizer, lambda text: None, TemplateSettings())
        named = [*_ids(tokenizer.eos_token_id), *_well_known(tokenizer), *_closing_a_turn(tokenizer, template)]
        words = tokenizer.convert_ids_to_tokens(named)
        found += [
            token for token, word in zip(named, words, strict=True) if not template.answers.continues(str(word))
        ]
    most = getattr(config.get_text_config(), "vocab_size", None) or 1 << 31  # transformers adds tokens beyond it
    defaults.eos_token_id = [token for token in dict.fromkeys(found) if token < most] or None
    return defaults


def _ids(value: object) -> Iterator[int]:
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 1 << 31:
            yield each


def _closing_a_turn(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> list[int]:
    """The special token that the chat template puts right after an answer, if there is one."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = template.apply(turns, {}, answer_follows=False)
    except Exception:  # there is none, or it takes no such conversation
        return []
    _, found, after = text.rpartition(_PROBE)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    here = {number: token.content for number, token in added.items() if token.special and token.content}
    matching = [number for number, content in here.items() if found and after.lstrip().startswith(content)]
    return sorted(matching, key=lambda number: -len(here[number]))[:1]


def _well_known(tokenizer: PreTrainedTokenizerBase) -> Iterable[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return [number for number, token in added.items() if token.special and token.content in _NAMES]
