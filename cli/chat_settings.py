"""What `/set` changes and shows: how the tokens of a chat are chosen."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.generation.sampling import Sampling
from moe_local.registry import meant

SETTINGS = tuple(field.name for field in fields(Sampling))
DEFAULT = "default"
_WHOLE = ("max_new_tokens", "top_k", "seed")


def setting(name: str) -> str:
    """The setting that is meant, hyphens or not. Raises MoeLocalError for one that is none."""
    wanted = name.replace("-", "_").lower()
    if wanted not in SETTINGS:
        remedy = meant(wanted, SETTINGS) or f"there are {', '.join(SETTINGS)}"
        raise MoeLocalError(f"there is no setting {name}", remedy=remedy)
    return wanted


def changed(sampling: Sampling, name: str, text: str) -> Sampling:
    """With one setting as typed; `default` is the model's own. Raises MoeLocalError for what makes no sense."""
    values = vars(sampling) | {name: getattr(Sampling, name) if text == DEFAULT else _value(name, text)}
    try:
        return Sampling(**values)
    except MoeLocalError as error:
        raise MoeLocalError(error.message.removeprefix("--"), remedy=error.remedy) from error


def _value(name: str, text: str) -> Any:
    if name == "stop":
        return (_text(text),)
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError as error:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise MoeLocalError(f"{name} {text} is not {kind}", remedy=f"{DEFAULT} is the model's own") from error


def _text(typed: str) -> str:
    """As it is, or between quotes as JSON: `"\\n"` is a line break."""
    try:
        read = json.loads(typed) if typed.startswith('"') else typed
    except ValueError as error:
        raise MoeLocalError(f"{typed} is no text in quotes ({error})", remedy="leave the quotes out") from error
    return str(read)


def shown(sampling: Sampling, name: str, config: Any) -> str:
    """A setting for people; `config` is the model's generation config, whose values hold where nothing is set."""
    value = getattr(sampling, name)
    if name == "stop":
        return " ".join(json.dumps(each, ensure_ascii=False) for each in value) or "(none)"
    if value is not None:
        return str(value)
    if name == "temperature" and not config.do_sample:
        return "(the model's: greedy)"
    of_model = getattr(config, name, None)
    return "(none)" if of_model is None else f"(the model's: {of_model})"
