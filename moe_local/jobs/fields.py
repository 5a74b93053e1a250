"""Taking the fields of a JSON line apart: each is taken out, of its type, or MoeLocalError says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.generation.messages import Message
from moe_local.generation.sampling import Sampling
from moe_local.generation.template_settings import EFFORTS, thinking

Fields = dict[str, Any]
NUMBER, COUNT = (int, float), (int,)
OPTIONS: dict[str, tuple[type, ...]] = {
    "max_new_tokens": COUNT,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": COUNT,
    "min_p": NUMBER,
    "repetition_penalty": NUMBER,
    "seed": COUNT,
}
_MOST = 1e30  # of any number that an option may be
LIMITS = ("max_completion_tokens", "max_tokens")  # what OpenAI calls it
TEMPLATE = ("chat_template_kwargs", "reasoning_effort")
# OpenAI's words, and ours.
_EFFORTS = {"none": "off", "minimal": "low", "xhigh": "high"} | {each: each for each in EFFORTS}
_ROLES = ("system", "user", "assistant")
_KINDS = {str: "text", dict: "an object", int: "a whole number", float: "a number", bool: "true or false"}


@contextmanager
def naming(id: str | int | None) -> Iterator[None]:
    """Errors inside carry the line's id, so that its error record has it."""
    try:
        yield
    except MoeLocalError as error:
        vars(error)["line_id"] = id
        raise


def json_object(text: str) -> Fields:
    """The object that a line is; MoeLocalError for any other line."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MoeLocalError(f"the line is not JSON ({error})") from error
    if not isinstance(given, dict):
        raise MoeLocalError("the line is not a JSON object")
    return given


def line_id(value: Any) -> str | int | None:
    """The value, as what a line may be called."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise MoeLocalError("the id is neither text nor a whole number")
    return value


def typed(given: Fields, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """Takes a field out; `default` where it is absent or null."""
    value = given.pop(name, None)
    if value is None:
        return default
    kinds: tuple[type, ...] = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise MoeLocalError(f"{name} is not {_KINDS[kinds[-1]]}")
    return _finite(name, value) if float in kinds else value


def _finite(name: str, value: Any) -> float:
    if not abs(value) < _MOST:
        raise MoeLocalError(f"{name} is no finite number")
    return float(value)


def sampling_options(given: Fields, defaults: Sampling, options: Mapping[str, tuple[type, ...]]) -> Sampling:
    """Takes out those of `options` and the stop strings; the defaults for what is not given."""
    found = {name: typed(given, name, kind, getattr(defaults, name)) for name, kind in options.items()}
    stop = given.pop("stop", None)
    stops = [stop] if isinstance(stop, str) else stop
    if stops is not None and not (isinstance(stops, list) and all(isinstance(each, str) for each in stops)):
        raise MoeLocalError("stop is neither text nor a list of texts")
    rest = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    return Sampling(**{**rest, **found, "stop": defaults.stop if stops is None else tuple(stops)})


def template_variables(given: Fields) -> Fields | None:
    """Takes out what the chat template is to be told; None where that is nothing."""
    told = typed(given, "chat_template_kwargs", dict, {})
    effort = typed(given, "reasoning_effort", str)
    if effort is not None and effort not in _EFFORTS:
        raise MoeLocalError(f"reasoning_effort is {effort!r}", remedy=f"use {', '.join(_EFFORTS)}")
    if strange := [name for name in told if not name.isidentifier()]:
        raise MoeLocalError(f"{listed(strange)} in chat_template_kwargs is no name")
    return {**thinking(effort and _EFFORTS[effort]), **told} or None


def prompt_or_messages(given: Fields) -> str | list[Message]:
    """Takes the prompt or the messages out."""
    prompt, messages = given.pop("prompt", None), given.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise MoeLocalError("there is no prompt" if prompt is None else "there are both a prompt and messages")
    if messages is None:
        if not isinstance(prompt, str):
            raise MoeLocalError("prompt is not text")
        return prompt
    if not isinstance(messages, list) or not messages:
        raise MoeLocalError("messages is not a list with something in it")
    return [_message(message) for message in messages]


def _message(given: Any) -> Message:
    if not isinstance(given, dict):
        raise MoeLocalError("a message is not an object")
    role = {"developer": "system"}.get(str(given.get("role")), given.get("role"))
    if role not in _ROLES:
        raise MoeLocalError(f"a message's role is {given.get('role')!r}", remedy=f"use {', '.join(_ROLES)}")
    content = given.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise MoeLocalError("a message has content that is not text")
        content = "".join(str(part) for part in parts)
    if content is None and role == "assistant":  # of an answer that only called tools
        content = ""
    if not isinstance(content, str):
        raise MoeLocalError("a message has no content")
    return {"role": role, "content": content}


def listed(names: Any) -> str:
    """A few of the names, shortened, for a message."""
    shown = sorted(str(name)[:40] for name in names)
    return ", ".join(shown[:3])
