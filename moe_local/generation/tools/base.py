"""What a format of tool calls is: how a call begins in an answer, where it ends, and what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from transformers import PreTrainedTokenizerBase

from moe_local.generation import grammar
from moe_local.generation.grammar import mark, quoted
from moe_local.generation.json_values import parse

_WORDS = {"true": True, "false": False, "none": None}  # as Python and others write what JSON has otherwise
Tool = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants to be called; arguments are JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallPiece:
    """A piece of a call: the first one of each has its name. `index` counts the calls of an answer."""

    index: int
    name: str | None
    arguments: str


class Said(NamedTuple):
    """A call as it was written: arguments as values, or as texts whose types only the tool's schema tells."""

    name: str
    arguments: Mapping[str, Any]
    untyped: bool = False


class ToolFormat(ABC):
    """One family's."""

    marks: ClassVar[tuple[str, ...]] = ()  # in a chat template's source: all of them say that it is of this format
    openings: ClassVar[tuple[str, ...]] = ()  # what a call, or several, begin with in an answer
    first_only: ClassVar[bool] = False  # they count at the beginning of an answer only
    specials: ClassVar[tuple[str, ...]] = ()  # tokens whose texts are needed, though they are special ones

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def special_tokens(self) -> dict[int, str]:
        """Those of `specials` that the tokenizer has as tokens."""
        vocabulary = self._tokenizer.get_vocab()
        return {vocabulary[text]: text for text in self.specials if text in vocabulary}

    def is_of(self, chat_template: str, vocabulary: Collection[str]) -> bool:
        """Whether a model with this template, and these tokens, calls tools so."""
        return bool(self.marks) and all(mark in chat_template for mark in self.marks)

    @abstractmethod
    def read(self, text: str, since: int) -> tuple[list[Said], int] | None:
        """The calls that `text`, which begins with an opening, begins with, and where they end; None: not there yet.

        What is before `since` was looked at before, without an end. Raises ValueError where it is no call.
        """

    def finish(self, text: str) -> list[Said]:
        """The calls of a text that ends without what should end them. Raises ValueError where there are none."""
        raise ValueError("a call without an end")

    def grammar(self, tools: Sequence[Tool], *, many: bool) -> str | None:
        """Rules in llguidance's Lark, of which `calls` is a call of these tools, or `many`; None: there are none."""
        return None

    def opening_of(self, text: str) -> int:
        """The length of the opening that a text begins with."""
        return next(len(each) for each in self.openings if text.startswith(each))

    def mark(self, text: str) -> str:
        """A text in a grammar: as the token that it is, if that is a special one."""
        return mark(self._tokenizer, text)


class Enclosed(ToolFormat):
    """A call between two marks."""

    closing: ClassVar[str]

    def read(self, text: str, since: int) -> tuple[list[Said], int] | None:
        begin = self.opening_of(text)
        end = text.find(self.closing, max(begin, since - len(self.closing)))
        if end < 0:
            return None
        return self.inside(text[begin:end]), end + len(self.closing)

    def finish(self, text: str) -> list[Said]:
        return self.inside(text[self.opening_of(text) :])

    @abstractmethod
    def inside(self, text: str) -> list[Said]:
        """What stands between the marks. Raises ValueError where it is no call."""


def json_call(value: Any) -> Said:
    """A call that is an object with a name and arguments. Raises ValueError for any other value."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("no call")
    said: Any = next((function[key] for key in ("arguments", "parameters") if key in function), {})
    return Said(function["name"], _object(parse(said) if isinstance(said, str) and said.strip() else said or {}))


def json_calls(value: Any) -> list[Said]:
    """A call, or a list of them. Raises as `json_call`."""
    return [json_call(each) for each in (value if isinstance(value, list) else [value])]


def parse_object(text: str) -> dict[str, Any]:
    """Arguments in JSON. Raises ValueError for what is no object."""
    return _object(parse(text))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("arguments that are no object")
    return value


def typed(text: str, schema: Any) -> Any:
    """A value that was written without its type: text where the schema has nothing else, JSON where it can be."""
    kinds = _kinds(schema)
    if kinds == {"string"}:
        return text
    bare = text.strip()
    try:
        return parse(bare)
    except ValueError:
        return _WORDS.get(bare.lower(), text) if kinds & {"boolean", "null"} else text


def _kinds(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else {each for each in _list(kind) if isinstance(each, str)}
    for key in ("anyOf", "oneOf"):
        for each in _list(schema.get(key)):
            found |= _kinds(each)
    if (values := _list(schema.get("enum"))) and not found and all(isinstance(each, str) for each in values):
        found = {"string"}
    return found


def _list(value: Any) -> list[Any]:
    """A client's schema may have anything where a list should be."""
    return value if isinstance(value, list) else []


def names(tools: Sequence[Tool]) -> list[str]:
    """Of the tools' functions."""
    return [str(tool["function"]["name"]) for tool in tools]


def schema_of(tool: Tool) -> dict[str, Any]:
    """What a tool's arguments are JSON of."""
    return {"type": "object", **(tool["function"].get("parameters") or {})}


def json_rule(tool: Tool) -> str:
    """A tool's arguments, in a grammar."""
    return grammar.json_rule(schema_of(tool))


def alternatives(tools: Sequence[Tool], rule: str, before: str = "", after: str = "") -> str:
    """Rules: `rule` is one of as many rules as there are tools, each with its name, `before` and `after` around it.

    `{name}` in these stands for the tool's name.
    """
    lines, each_of = [], []
    for number, tool in enumerate(tools):
        name = str(tool["function"]["name"])
        parts = [quoted(before.replace("{name}", name)) if before else "", f"args_{number}"]
        parts.append(quoted(after.replace("{name}", name)) if after else "")
        lines.append(f"{rule}_{number}: {' '.join(part for part in parts if part)}")
        lines.append(f"args_{number}: {json_rule(tool)}")
        each_of.append(f"{rule}_{number}")
    return "\n".join([f"{rule}: {' | '.join(each_of)}", *lines])
