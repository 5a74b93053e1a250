"""An answer's text, as it comes, taken apart into what is said and what is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_local.generation.json_values import parse, written
from moe_local.generation.tools.base import (
    Said,
    Tool,
    ToolCall,
    ToolFormat,
    json_calls,
    names,
    schema_of,
    typed,
)

_SELDOM = 16  # a call is looked at for its end when it has grown by a share of 1 / _SELDOM
_LONGEST = 4 << 20  # characters of a call; a longer one is text


class CallReader:
    """Fed text in pieces, however it is cut; what is no call of a known tool stays text."""

    def __init__(self, format: ToolFormat, tools: Sequence[Tool]) -> None:
        self._format = format
        self._schemas = {name: schema_of(tool) for name, tool in zip(names(tools), tools, strict=True)}
        self._held = ""
        self._space = ""  # behind what was said: it is dropped where a call follows
        self._inside = False  # what is held begins with an opening
        self._since = 0  # of what is held, so much was looked at without an end
        self._said = False
        self.calls = 0

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """What is certain now, in order."""
        self._held += text
        while self._held:
            found = self._inner() if self._inside else self._outer()
            if found is None:
                return
            yield from found

    @property
    def marks(self) -> dict[int, str]:
        """Tokens whose texts are needed, though they are special ones, by id."""
        return self._format.special_tokens

    def region(self, text: str) -> Iterator[str | ToolCall]:
        """What stands where nothing but calls stand; text, where it is none."""
        opening = self._format.openings[0]
        for read in (_of_json, lambda text: self._format.finish(f"{opening}{text}")):
            try:
                yield from self._called(read(text))
                return
            except ValueError:
                continue
        yield text

    def end(self) -> Iterator[str | ToolCall]:
        """No more text: all of it."""
        while self._held:
            if self._inside:
                self._since = 0
                yield from self._inner() or self._unended()
            else:
                found = self._outer(last=True)
                yield from found or ()
        if self._space and not self.calls:
            yield self._space
        self._space = ""

    def _outer(self, *, last: bool = False) -> list[str | ToolCall] | None:
        """Text up to an opening, or to what may become one; None where that is nothing."""
        if self._format.first_only and (self._said or self.calls) and not self._held.isspace():
            return self._text(len(self._held))
        begin = self._opening()
        if begin is not None:
            said = self._text(begin)
            self._inside, self._since = True, 0
            return said
        certain = len(self._held) if last else self._certain()
        return self._text(certain) if certain else None

    def _opening(self) -> int | None:
        """Where one is."""
        if self._format.first_only:
            begin = len(self._held) - len(self._held.lstrip())
            return begin if self._held[begin:].startswith(self._format.openings) else None
        places = [at for each in self._format.openings if (at := self._held.find(each)) >= 0]
        return min(places, default=None)

    def _certain(self) -> int:
        """How much of what is held is no beginning of an opening."""
        longest = max(map(len, self._format.openings))
        for at in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(each.startswith(self._held[at:]) for each in self._format.openings):
                return at
        return len(self._held)

    def _inner(self) -> list[str | ToolCall] | None:
        """The calls that what is held begins with; None where they have no end yet."""
        if len(self._held) - self._since < self._since // _SELDOM:
            return None  # a long one is looked at as often as makes no difference
        try:
            found = self._format.read(self._held, self._since)
            if found is None:
                self._since = len(self._held)
                if self._since > _LONGEST:
                    raise ValueError("too long")
                return None
            calls, end = found
            made: list[str | ToolCall] = [*self._called(calls)]
        except ValueError:
            return self._not_a_call()
        self._held, self._inside = self._held[end:], False
        return made

    def _unended(self) -> list[str | ToolCall]:
        """The calls of what is held, which ends without what should end them; else its opening is text."""
        if not self._inside:
            return []
        try:
            made: list[str | ToolCall] = [*self._called(self._format.finish(self._held))]
        except ValueError:
            return self._not_a_call()
        self._held, self._inside = "", False
        return made

    def _not_a_call(self) -> list[str | ToolCall]:
        """The opening is text; what follows it is looked at again."""
        self._inside = False
        return self._text(self._format.opening_of(self._held))

    def _text(self, length: int) -> list[str | ToolCall]:
        """So much of what is held is said, but for white space at its end, which a call may follow."""
        text, self._held = self._space + self._held[:length], self._held[length:]
        bare = text.rstrip()
        self._space = text[len(bare) :]
        self._said |= bool(bare)
        return [bare] if bare else []

    def _called(self, said: Sequence[Said]) -> list[ToolCall]:
        """Raises ValueError where one of them is none of the tools."""
        made = [self._call(each) for each in said]
        self.calls += len(made)
        self._space = ""
        return made

    def _call(self, said: Said) -> ToolCall:
        if said.name not in self._schemas:
            raise ValueError("no such tool")
        given = said.arguments
        if said.untyped:
            properties = self._schemas[said.name].get("properties")
            known = properties if isinstance(properties, dict) else {}
            given = {key: typed(value, known.get(key)) for key, value in given.items()}
        return ToolCall(said.name, written(given))


def _of_json(text: str) -> list[Said]:
    """Raises ValueError where it is no call, and no list of calls."""
    return json_calls(parse(text))
