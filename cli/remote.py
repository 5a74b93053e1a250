"""`moe-local chat --server`: the same chat, answered by a server that runs already."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moe_local.errors import MoeLocalError
from moe_local.generation.sampling import Sampling
from moe_local.generation.template_settings import TemplateSettings

from .chat_commands import COMMANDS, SharedCommands
from .chat_settings import shown
from .config import option_of
from .failure import UsageError
from .interrupts import raising
from .lines import Lines
from .load import tell
from .output import stderr, write
from .remote_server import RemoteServer, address
from .remote_session import RemoteAnswer, RemoteSession
from .session import fitted, show_reasoning
from .wrap import wrapped

if TYPE_CHECKING:
    from .remote_session import OnText

_OF_ITS_OWN = ("model", "stats", "vram")  # commands about a model that is loaded here
# Parameters of `chat` that a server does not hear of.
_ASKED = frozenset(
    {"server", "api_key", "system", "fold", "wrap", "think", "template_var", "debug"} | vars(Sampling()).keys()
)


def assert_only_asked(context: Any) -> None:
    """Raises UsageError naming what was typed beside --server that is about a model loaded here."""
    typed = [each for each in context.command.params if _is_typed(context, each) and each.name not in _ASKED]
    if typed:
        names = ", ".join(f"--{name}" if (name := option_of(each)) else "MODEL" for each in typed)
        raise UsageError(
            f"{names} and --server were given", remedy="the server was begun with its own: leave one of them out"
        )


def _is_typed(context: Any, parameter: Any) -> bool:
    source = context.get_parameter_source(parameter.name)
    return source is not None and source.name == "COMMANDLINE"


def conversation_with(
    url: str,
    api_key: str | None,
    sampling: Sampling,
    template: TemplateSettings,
    *,
    system: str | None,
    folded: bool,
    wrap: bool,
) -> RemoteConversation:
    """A conversation with the first model of a server. Raises MoeLocalError where there is none."""
    server = RemoteServer(address(url), api_key)
    session = RemoteSession(server, server.first_model(), sampling, template, system)
    return RemoteConversation(session, f"{session.model} at {server.url}.", folded=folded, wrap=wrap)


class RemoteConversation:
    """A session with a server, whose answers are shown as they come."""

    def __init__(self, session: RemoteSession, banner: str, *, folded: bool, wrap: bool) -> None:
        self.session = session
        self.banner = banner
        self.folded = folded  # of what a model reasons only the length is shown
        self.last: RemoteAnswer | None = None
        self._wrap = wrap

    def say(self, text: str) -> None:
        """Says something to the model, and shows its answer."""
        with self._shown() as (on_text, on_reasoning):
            answer = self.session.send(text, on_text=on_text, on_reasoning=on_reasoning)
        self._finish(answer)

    def regenerate(self) -> None:
        """Has the last answer given again."""
        with self._shown() as (on_text, on_reasoning):
            answer = self.session.regenerate(on_text=on_text, on_reasoning=on_reasoning)
        self._finish(answer)

    @contextmanager
    def _shown(self) -> Iterator[tuple[OnText, OnText]]:
        """What writes an answer, and what was reasoned before it, as they come; Ctrl-C raises KeyboardInterrupt."""
        wrap = self._wrap and sys.stdout.isatty()
        with (
            raising(),
            wrapped(write, wanted=wrap) as written,
            show_reasoning(folded=self.folded, wrap=wrap) as reasoning,
        ):
            yield reasoning.then(written), reasoning.piece

    def _finish(self, answer: RemoteAnswer) -> None:
        """Ends the answer's line, and says what it took."""
        write("\n")
        self.last = answer
        if answer.finish_reason == "length" and answer.new_tokens != self.session.sampling.max_new_tokens:
            tell("the answer ends here: the server's context, or its own limit, is reached")
        if stderr.is_terminal and sys.stdin.isatty() and (line := status(answer, stderr.width)):
            stderr.print(line, style="dim", soft_wrap=True)


def status(answer: RemoteAnswer, width: int) -> str:
    """One line about an answer, as much of it as fits: what is not known is not in it."""
    used = None if answer.prompt_tokens is None else answer.prompt_tokens + (answer.new_tokens or 0)
    known = [
        (4, f"{answer.new_tokens} tokens", answer.new_tokens is not None),
        (1, f"{answer.tokens_per_second:.1f} tokens/s", answer.tokens_per_second > 0),
        (3, f"first after {answer.time_to_first_token:.2f} s", answer.time_to_first_token > 0),
        (2, f"context {used}", used is not None),
        (5, f"{answer.cached_tokens} of them computed before", answer.cached_tokens > 0),
    ]
    parts = [(number, text) for number, text, is_known in known if is_known]
    return fitted(parts, width) if parts else ""


class RemoteCommands(SharedCommands):
    """The commands that make sense where the model is a server's."""

    entries = tuple(entry for entry in COMMANDS if entry.name not in _OF_ITS_OWN)

    def __init__(self, conversation: RemoteConversation, lines: Lines) -> None:
        super().__init__(conversation, lines)
        self._session = conversation.session

    def shown(self, name: str) -> str:
        """A setting for people."""
        sampling = self._session.sampling
        is_set = name == "stop" or getattr(sampling, name) is not None
        return shown(sampling, name, None) if is_set else "(the server's)"

    def think(self, level: str | None) -> None:
        self._session.template = replace(self._session.template, level=level)

    def do_model(self, argument: str) -> None:
        raise self._not_here("model")

    def do_stats(self, argument: str) -> None:
        raise self._not_here("stats")

    def do_vram(self, argument: str) -> None:
        raise self._not_here("vram")

    def _not_here(self, name: str) -> MoeLocalError:
        return MoeLocalError(
            f"/{name} is about a model that is loaded here", remedy="the server's page and /metrics tell of its own"
        )
