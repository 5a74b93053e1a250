"""Tokenizers of tiktoken: a file of ranks, and settings beside it. Needs no other library, and runs no remote code.

`tiktoken.model` or `NAME.tiktoken` has a line for each token: its bytes in base64, and its rank, which is its id. The
tokens after these, special ones, are in tokenizer_config.json's `added_tokens_decoder`. How text is split into words
is in the code beside a checkpoint only, which is not run: it is known here for the classes of those that publish so.

https://github.com/openai/tiktoken, https://huggingface.co/moonshotai/Kimi-K2-Instruct, https://huggingface.co/Qwen/Qwen-7B
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from moe_local.checkpoint.json_file import read_json
from moe_local.checkpoint.regular import read_regular
from moe_local.errors import CheckpointError

_MOST = 32 << 20  # bytes of ranks: 200,000 tokens have four million
_MOST_ADDED = 1 << 14  # ids after the ranks: real ones have some hundred
_SETTINGS = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHERS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
PATTERNS = {
    "TikTokenTokenizer": (  # Kimi's and Moonlight's: Chinese apart, words by their capitals, three digits at most
        rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?|\p{{N}}{{1,3}}|{_OTHERS}"
    ),
    "QWenTokenizer": rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}",
}
_COMMON = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}"  # GPT-4's, and Llama 3's


def tiktoken_file(directory: Path) -> Path | None:
    """The file of ranks; None if there is none, or more than one."""
    found = [file for file in directory.iterdir() if file.name == "tiktoken.model" or file.suffix == ".tiktoken"]
    return found[0] if len(found) == 1 else None


def load_tiktoken(ranks: Path) -> tuple[PreTrainedTokenizerFast, tuple[str, ...]]:
    """The tokenizer, and a note where the rule for words is a guess. Raises CheckpointError for a damaged file."""
    beside = ranks.parent / _SETTINGS
    settings = read_json(beside) if beside.exists() else {}
    kind = str(settings.get("tokenizer_class"))
    converter = _Converter(str(ranks), pattern=PATTERNS.get(kind, _COMMON))
    tokenizer = converter.converted()
    added = _added(beside, settings, converter.count)
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    named = {name: _content(settings[name]) for name in _NAMED if settings.get(name) is not None}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    made.chat_template = _template(ranks.parent, settings)
    if kind in PATTERNS:
        return made, ()
    return made, (f"{ranks.name} does not say how text is split into words: GPT-4's rule is used, and may differ",)


class _Converter(TikTokenConverter):  # type: ignore[misc]  # transformers has no types
    """transformers' converter, on ranks that are read and checked here."""

    def load_tiktoken_bpe(self, tiktoken_url: str) -> dict[bytes, int]:
        ranks = read_ranks(Path(tiktoken_url))
        self.count = len(ranks)
        return ranks


def read_ranks(file: Path) -> dict[bytes, int]:
    """Tokens by their bytes. Raises CheckpointError unless their ranks are 0, 1, 2 ..., each once."""
    try:
        lines = [line.split() for line in read_regular(file, _MOST).splitlines() if line.strip()]
        ranks = {binascii.a2b_base64(token, strict_mode=True): int(rank) for token, rank in lines}
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}", remedy="check its permissions") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error})", remedy="download it again") from error
    if len(ranks) != len(lines) or sorted(ranks.values()) != list(range(len(ranks))) or b"" in ranks:
        raise CheckpointError(f"{file} is damaged: its ranks have gaps, or a token twice", remedy="download it again")
    return ranks


def _added(file: Path, settings: Mapping[str, Any], count: int) -> list[AddedToken]:
    """The tokens from id `count` on; ids between them are reserved."""
    given = settings.get("added_tokens_decoder") or {}
    try:
        tokens = {int(number): token for number, token in given.items()}
        last = max(tokens, default=count - 1)
        if last >= count + _MOST_ADDED:
            raise ValueError(f"a token has the id {last}, far beyond {count}")
        return [_token(tokens.get(number), number) for number in range(count, last + 1)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has damaged tokens ({error})", remedy="download it again") from error


def _token(given: Any, number: int) -> AddedToken:
    if given is None:
        return AddedToken(f"<|reserved_token_{number}|>", special=True, normalized=False)
    special = given.get("special", True) if isinstance(given, dict) else True
    return AddedToken(_content(given), special=bool(special), normalized=False)


def _content(given: Any) -> str:
    content = given["content"] if isinstance(given, dict) else given
    if not isinstance(content, str) or not content:
        raise ValueError(f"a token is {content!r}")
    return content


def _template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    file = directory / _TEMPLATE
    if file.exists():
        return read_regular(file, _MOST).decode("utf-8")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None
