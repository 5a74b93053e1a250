"""A conversation in a model's chat template: what the template is told, and what is done where it refuses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

from jinja2 import Environment, TemplateError
from transformers import PreTrainedTokenizerBase

from moe_local.errors import CheckpointError, MoeLocalError, first_line
from moe_local.generation.bounded import bounded
from moe_local.generation.channels import AnswerFormat, answer_format
from moe_local.generation.messages import Message, has_tools, plain, with_arguments_as_text
from moe_local.generation.template_settings import TemplateSettings, thinking
from moe_local.generation.tools import ToolFormat, tool_format
from moe_local.generation.tools.base import Tool
from moe_local.generation.tools.plain import told_of_tools
from moe_local.generation.transcript import REASONING_KEYS

_BETWEEN = "\n\n"  # texts that are joined


class ChatTemplate:
    """The template of a tokenizer as the settings say; `notice` is told of what a conversation was changed by."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, notice: Callable[[str], None], settings: TemplateSettings
    ) -> None:
        self._tokenizer = tokenizer
        self._notice = notice
        self.settings = settings
        self._given = settings.source
        self._variables = {**settings.variables, **thinking(settings.level)}
        if settings.level is not None and self.source and not self.hears(thinking(settings.level)):
            notice(f"this model's chat template has no switch for thinking: --think {settings.level} changes nothing")

    @property
    def source(self) -> str:
        """The program itself; empty where the model has none."""
        found = self._given if self._given is not None else self._tokenizer.chat_template
        if isinstance(found, dict):  # several by name
            found = found.get("default") or next(iter(found.values()), "")
        return str(found or "")

    @cached_property
    def answers(self) -> AnswerFormat:
        """How the model marks its reasoning off from its answers."""
        return answer_format(self._tokenizer, self.source)

    @cached_property
    def calls(self) -> ToolFormat:
        """How the model calls tools."""
        return tool_format(self._tokenizer, self.source if self._knows_tools else "")

    @property
    def _knows_tools(self) -> bool:
        return bool(re.search(r"\btools\b", self.source))

    @property
    def reasoning_key(self) -> str | None:
        """By what the template asks an earlier answer's reasoning; None where it does not ask."""
        source = self.source
        asked = (name for name in REASONING_KEYS if re.search(rf"""\.{name}\b|['"]{name}['"]""", source))
        return next(asked, None)

    def hears(self, variables: Mapping[str, Any]) -> bool:
        """Whether the template looks at any of these: by name, not as a part of a message or as a text."""
        return any(re.search(rf"""(?<![\w.'"]){name}\b(?!['"])""", self.source) for name in variables)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Tool] = (),
    ) -> str:
        """The conversation as text, ready for its answer, which may call `tools`.

        A system message that the template refuses, or leaves out, goes into the first user message; where it wants
        turns to alternate, those of one role are joined; of tools that it does not know the system message tells.
        Raises MoeLocalError where none of that helps.
        """
        if not self.source:
            raise CheckpointError(
                "this model has no chat template: it continues text and does not chat",
                remedy="use `moe-local generate --raw`, give one with --chat-template, or use an instruct model",
            )
        messages = _of_known_roles(plain(messages))
        told = {**self._variables, **(variables or {})}
        if (tools or has_tools(messages)) and not self._knows_tools:
            if tools:
                self._notice("this model's chat template knows no tools: the system message tells of them")
            messages, tools = told_of_tools(messages, tools), ()
        if tools:
            told["tools"] = list(tools)
        if taken := sorted(told.keys() & _taken()):
            raise MoeLocalError(f"{taken[0]} cannot be told to a chat template", remedy="leave it out")
        try:
            text = self.apply(messages, told)
        except MoeLocalError:  # of time, or of memory: it would be so again
            raise
        except Exception as refusal:  # templates are programs, and refuse with exceptions of their own
            return self._adapted(messages, told, refusal)
        if not _has_last(messages, text):
            text = self._in_parts(messages, told, text)
        return text if _says_systems(messages, text) else self._with_system(messages, told, text)

    @cached_property
    def _computes_powers(self) -> bool:
        try:
            tokens = list(Environment().lex(self.source))
        except TemplateError:
            return False  # rendering tells of it
        return any(kind == "operator" and value == "**" for _, kind, value in tokens)

    def _in_parts(self, messages: Sequence[Message], variables: Mapping[str, Any], without: str) -> str:
        """With each content as a list of parts, as some templates take it; as it was, where that is no better."""
        parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        try:
            text = self.apply(parts, variables)
        except Exception:
            return without
        return text if _has_last(messages, text) else without

    def apply(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], *, answer_follows: bool = True
    ) -> str:
        """What the template makes of exactly these messages, within a time and an amount of memory.

        With `answer_follows` it ends where the model's answer begins. Raises MoeLocalError where a bound is reached,
        and for powers of numbers: they are computed at once, and nothing can end that. A template's own exceptions
        come out as they are.
        """
        if self._computes_powers:
            raise MoeLocalError(
                "the model's chat template computes powers, which may take for ever",
                remedy="give another one with --chat-template",
            )

        def render() -> str:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._given,
                add_generation_prompt=answer_follows,
                tokenize=False,
                **variables,
            )
            return text

        return bounded("the model's chat template", render)

    def _with_system(self, messages: Sequence[Message], variables: Mapping[str, Any], text: str) -> str:
        """`text`, made of the messages, if the system's words changed it; else one in which they have another place.

        First all of them at the beginning, then in the first user message; `text` where the template refuses that.
        """
        joined = _systems_joined(messages)
        without = self._without_system(joined, variables)
        if _count_of_systems(messages) == 1 and text != without:
            return text
        try:
            if joined != messages:
                again = self.apply(joined, variables)
                if again != text and (_says_systems(joined, again) or again != without):
                    return again
            inside = self.apply(_joined(_system_inside(messages)), variables)
        except MoeLocalError:
            raise
        except Exception:
            return text
        self._notice("this model's chat template knows no system message: its text is in the first user message")
        return inside

    def _without_system(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str | None:
        """What it makes of the other messages; None where it refuses them."""
        try:
            return self.apply([message for message in messages if message["role"] != "system"], variables)
        except Exception:
            return None

    def _adapted(self, messages: Sequence[Message], variables: Mapping[str, Any], refusal: Exception) -> str:
        """Another conversation of the same words, one that the template takes."""
        ways = (
            (with_arguments_as_text(messages), "takes the arguments of calls as text"),
            (_systems_joined(messages), "wants one system message, at the beginning: they are joined"),
            (_joined(messages), "wants turns to alternate: neighbours of one role are joined"),
            (_system_inside(messages), "knows no system message: its text is in the first user message"),
            (
                _joined(_system_inside(messages)),
                "knows no system message and wants turns to alternate: the system's text is in the first user"
                " message, and neighbours of one role are joined",
            ),
        )
        for other, how in ways:
            if other == list(messages):
                continue
            try:
                text = self.apply(other, variables)
            except MoeLocalError:
                raise
            except Exception:
                continue
            self._notice(f"this model's chat template {how}")
            return text
        raise MoeLocalError(
            f"the model's chat template refuses this conversation ({first_line(refusal)})",
            remedy="--chat-template FILE uses another one",
        ) from refusal


@lru_cache(maxsize=1)
def _taken() -> frozenset[str]:
    """Names that are no variables of a template, but something that `apply_chat_template` is told."""
    named = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return (frozenset(named) | {"messages", "conversations"}) - {"tools", "documents", "kwargs"}


def _has_last(messages: Sequence[Message], text: str) -> bool:
    """Whether what the user said last came out, in whatever case or escapes: any long word of it."""
    last = next((each["content"] for each in reversed(messages) if each["role"] == "user"), "")
    return last.strip() in text or any(word.lower() in text.lower() for word in re.findall(r"\w{2,}", last)[-8:])


def _says_systems(messages: Sequence[Message], text: str) -> bool:
    """Whether the words of every system message came out, or there is nothing beside them or none of them to say."""
    rest = [message["content"].strip() for message in messages if message["role"] != "system"]
    systems = [message["content"].strip() for message in messages if message["role"] == "system"]
    if not any(systems) or not rest:
        return True
    said = [*systems, *rest]
    # As often as it was said: a short one may stand in another message as well.
    return all(text.count(each) >= sum(other.count(each) for other in said) for each in systems if each)


def _count_of_systems(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "system" for message in messages)


def _of_known_roles(messages: Sequence[Message]) -> list[Message]:
    """OpenAI's "developer" is what others call "system"; a system's text alone is what the user says."""
    known = [{**each, "role": "system"} if each["role"] == "developer" else dict(each) for each in messages]
    if known and all(each["role"] == "system" for each in known):
        known[-1]["role"] = "user"
    return known


def _systems_joined(messages: Sequence[Message]) -> list[Message]:
    """All system messages in one, at the beginning."""
    systems = [each["content"] for each in messages if each["role"] == "system"]
    rest = [each for each in messages if each["role"] != "system"]
    return [{"role": "system", "content": _BETWEEN.join(systems)}, *rest] if systems else rest


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role in one."""

    def kind(numbered: tuple[int, Message]) -> tuple[str, int]:
        number, message = numbered
        return message["role"], number if has_tools([message]) else -1  # calls and their results stay as they are

    groups = [[message for _, message in group] for _, group in groupby(enumerate(messages), key=kind)]
    return [{**group[-1], "content": _BETWEEN.join(each["content"] for each in group)} for group in groups]


def _system_inside(messages: Sequence[Message]) -> list[Message]:
    """The system's texts before that of the first user message."""
    systems = [message["content"] for message in messages if message["role"] == "system"]
    rest = [dict(message) for message in messages if message["role"] != "system"]
    first = next((message for message in rest if message["role"] == "user"), None)
    if not systems or first is None:
        return list(messages)
    first["content"] = _BETWEEN.join([*systems, first["content"]])
    return rest
