"""What stands on a line of a job's input, and what is written for it. A format is a class and a line in `FORMATS`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from moe_local.errors import MoeLocalError
from moe_local.files import MOST_PROMPT
from moe_local.generation.batch import Answer, Request
from moe_local.generation.sampling import Sampling
from moe_local.generation.template import EFFORTS, Message, thinking
from moe_local.units import format_size

MOST_LINE = 4 * MOST_PROMPT  # bytes
_NUMBER, _COUNT = (int, float), (int,)
_OPTIONS: dict[str, tuple[type, ...]] = {
    "max_new_tokens": _COUNT,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": _COUNT,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "seed": _COUNT,
}
_MOST = 1e30  # of any number that an option may be
_OWN = ("id", "prompt", "messages", "system", "raw", "stop", "metadata")
_LIMITS = ("max_completion_tokens", "max_tokens")  # what OpenAI calls it
_TEMPLATE = ("chat_template_kwargs", "reasoning_effort")
_EFFORTS = {"none": "off", "minimal": "low", "xhigh": "high"} | {
    each: each for each in EFFORTS
}  # OpenAI's words, and ours
_ROLES = ("system", "user", "assistant")
_KINDS = {str: "text", dict: "an object", int: "a whole number", float: "a number", bool: "true or false"}
Fields = dict[str, Any]


@dataclass(frozen=True)
class Defaults:
    """What a line does not say itself."""

    sampling: Sampling
    system: str | None = None
    raw: bool = False


@dataclass(frozen=True)
class Line:
    """A line of input. `number` counts from 1; with an `error` there is no request in it."""

    number: int
    id: str | int | None = None
    request: Request | None = None
    error: str | None = None
    extra: Any = None  # what the format needs to write its answer


class LineFormat(Protocol):
    """One way to write requests and answers."""

    def read(self, number: int, text: str, defaults: Defaults) -> Line:
        """Raises MoeLocalError for what makes no sense."""

    def write(self, line: Line, answer: Answer | None) -> Fields:
        """What is said of a line: of its answer, or of its error."""


def understand(format: LineFormat, number: int, raw: bytes, defaults: Defaults) -> Line:
    """A line as it was read from a file: its request is tagged with it; what is wrong is told in `error`."""
    if len(raw) > MOST_LINE:
        return Line(number, error=f"the line has more than {format_size(MOST_LINE)}")
    try:
        line = format.read(number, raw.decode(), defaults)
        return line if line.request is None else replace(line, request=replace(line.request, tag=line))
    except UnicodeDecodeError as error:
        return Line(number, error=f"the line is not UTF-8 (byte {error.start})")
    except MoeLocalError as error:
        return Line(number, id=getattr(error, "line_id", None), error=str(error))


class Own:
    """`{"prompt": ...}` or `{"messages": [...]}`, with `id`, `system`, `raw`, `metadata` and sampling options."""

    def read(self, number: int, text: str, defaults: Defaults) -> Line:
        given = _object(text)
        id = _id(given.pop("id", None))
        with _naming(id):
            metadata = given.pop("metadata", None)
            for name in _LIMITS:
                if name in given:
                    given.setdefault("max_new_tokens", given.pop(name))
            request = Request(
                _prompt(given),
                _sampling(given, defaults.sampling, _OPTIONS),
                system=_typed(given, "system", str) or defaults.system,
                raw=bool(_typed(given, "raw", bool, defaults.raw)),
                template_variables=_template_variables(given),
            )
            if given:
                known = ", ".join([*_OWN, *_TEMPLATE, *_OPTIONS])
                raise MoeLocalError(f"{_names(given)} is not known here", remedy=f"use {known}")
        return Line(number, id, request, extra=metadata)

    def write(self, line: Line, answer: Answer | None) -> Fields:
        begin: Fields = {"id": line.id, "line": line.number}
        if line.extra is not None:
            begin["metadata"] = line.extra
        if answer is None or answer.error is not None:
            return {**begin, "error": line.error or (answer and answer.error)}
        return {
            **begin,
            "text": answer.text,
            **({"reasoning": answer.reasoning} if answer.reasoning else {}),
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens,
        }


class PlainText(Own):
    """Each line is a prompt."""

    def read(self, number: int, text: str, defaults: Defaults) -> Line:
        request = Request(text.rstrip("\r\n"), defaults.sampling, system=defaults.system, raw=defaults.raw)
        return Line(number, None, request)


class OpenAI:
    """The files of OpenAI's batch API, `/v1/chat/completions` and `/v1/completions`.

    https://platform.openai.com/docs/guides/batch
    """

    _OPTIONS: Mapping[str, tuple[type, ...]] = {"temperature": _NUMBER, "top_p": _NUMBER, "seed": _COUNT}
    # Allowed if they ask for what is done anyway.
    _HARMLESS: Mapping[str, tuple[Any, ...]] = {
        "n": (1,), "stream": (False,), "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,),
        "best_of": (1,), "echo": (False,), "response_format": ({"type": "text"},), "tools": ([],),
        "logit_bias": ({},), "modalities": (["text"],), "parallel_tool_calls": (True, False),
    }  # fmt: skip
    _IGNORED = ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")

    def read(self, number: int, text: str, defaults: Defaults) -> Line:
        given = _object(text)
        id = _id(given.get("custom_id"))
        with _naming(id):
            if id is None:
                raise MoeLocalError("there is no custom_id")
            url, body = given.get("url"), given.get("body")
            if given.get("method") != "POST" or url not in ("/v1/chat/completions", "/v1/completions"):
                raise MoeLocalError(
                    f"{given.get('method')} {url} is not answered here",
                    remedy="use POST with /v1/chat/completions or /v1/completions",
                )
            if not isinstance(body, dict):
                raise MoeLocalError("body is not an object")
            return Line(number, id, self._request(dict(body), url, defaults), extra=(url, body.get("model")))

    def _request(self, body: Fields, url: str, defaults: Defaults) -> Request:
        chat = url.endswith("/chat/completions")
        model = body.pop("model", None)
        if model is not None and not isinstance(model, str):
            raise MoeLocalError("model is not text")
        for name in self._IGNORED:
            body.pop(name, None)
        for name, values in self._HARMLESS.items():
            if (value := body.pop(name, None)) is not None and value not in values:
                raise MoeLocalError(f"{name} {value!r} is not done here", remedy="leave it out")
        limits = [_typed(body, name, int) for name in _LIMITS]
        limit = next((each for each in limits if each is not None), None)
        sampling = _sampling(body, defaults.sampling, self._OPTIONS)
        variables = _template_variables(body)
        prompt = _prompt({name: body.pop(name) for name in ("messages" if chat else "prompt",) if name in body})
        if unknown := {name for name, value in body.items() if value is not None}:
            raise MoeLocalError(f"{_names(unknown)} is not done here", remedy="leave it out")
        chosen = sampling if limit is None else replace(sampling, max_new_tokens=limit)
        return Request(prompt, chosen, raw=not chat, template_variables=variables)

    def write(self, line: Line, answer: Answer | None) -> Fields:
        begin: Fields = {"id": f"batch_req_{line.number}", "custom_id": line.id}
        if answer is None or answer.error is not None:
            message = line.error or (answer and answer.error)
            return {**begin, "response": None, "error": {"code": "invalid_request", "message": message}}
        url, model = line.extra
        chat = url.endswith("/chat/completions")
        spoken: Fields = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            spoken["reasoning_content"] = answer.reasoning
        said: Fields = {"message": spoken} if chat else {"text": answer.text}
        body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{line.number}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model or "moe-local",
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": answer.finish_reason}],
            "usage": {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.new_tokens,
                "total_tokens": answer.prompt_tokens + answer.new_tokens,
            },
        }
        request = f"req_{line.number}"
        return {**begin, "response": {"status_code": 200, "request_id": request, "body": body}, "error": None}


FORMATS: dict[str, Callable[[], LineFormat]] = {"jsonl": Own, "openai": OpenAI, "text": PlainText}


def guess_format(name: str, first: bytes) -> str:
    """Of a file's name and its first line that is not blank."""
    if name.endswith((".txt", ".text")):
        return "text"
    try:
        given = json.loads(first)
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict) and {"custom_id", "body"} <= given.keys():
        return "openai"
    return "jsonl" if name.endswith((".jsonl", ".json", ".ndjson")) or first.lstrip()[:1] == b"{" else "text"


@contextmanager
def _naming(id: str | int | None) -> Iterator[None]:
    """Errors inside carry the line's id, so that its error record has it."""
    try:
        yield
    except MoeLocalError as error:
        vars(error)["line_id"] = id
        raise


def _object(text: str) -> Fields:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MoeLocalError(f"the line is not JSON ({error})") from error
    if not isinstance(given, dict):
        raise MoeLocalError("the line is not a JSON object")
    return given


def _id(value: Any) -> str | int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise MoeLocalError("the id is neither text nor a whole number")
    return value


def _typed(given: Fields, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
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


def _sampling(given: Fields, defaults: Sampling, options: Mapping[str, tuple[type, ...]]) -> Sampling:
    found = {name: _typed(given, name, kind, getattr(defaults, name)) for name, kind in options.items()}
    stop = given.pop("stop", None)
    stops = [stop] if isinstance(stop, str) else stop
    if stops is not None and not (isinstance(stops, list) and all(isinstance(each, str) for each in stops)):
        raise MoeLocalError("stop is neither text nor a list of texts")
    rest = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    return Sampling(**{**rest, **found, "stop": defaults.stop if stops is None else tuple(stops)})


def _template_variables(given: Fields) -> Fields | None:
    """Takes out what the chat template is to be told; None where that is nothing."""
    told = _typed(given, "chat_template_kwargs", dict, {})
    effort = _typed(given, "reasoning_effort", str)
    if effort is not None and effort not in _EFFORTS:
        raise MoeLocalError(f"reasoning_effort is {effort!r}", remedy=f"use {', '.join(_EFFORTS)}")
    if strange := [name for name in told if not name.isidentifier()]:
        raise MoeLocalError(f"{_names(strange)} in chat_template_kwargs is no name")
    return {**thinking(effort and _EFFORTS[effort]), **told} or None


def _prompt(given: Fields) -> str | list[Message]:
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


def _names(names: Any) -> str:
    shown = sorted(str(name)[:40] for name in names)
    return ", ".join(shown[:3])
