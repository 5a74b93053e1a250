"""A chat's model and what was said to it: answers as they come, and another model in the place of the first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moe_local.checkpoint.names import named_by
from moe_local.errors import CheckpointError, MoeLocalError

from .load import Bars, files_of, load, load_files, tell
from .output import stderr, write
from .session import interruptible, show_reasoning, status
from .wrap import wrapped

if TYPE_CHECKING:
    from moe_local.engine import Engine
    from moe_local.generation.chat import ChatSession, Watching
    from moe_local.generation.generate import Generation
    from moe_local.generation.template_settings import TemplateSettings
    from moe_local.planning.options import Options


@dataclass(frozen=True)
class Setup:
    """How a chat loads its models, and shows what they say."""

    options: Options
    pack: bool
    wrap: bool  # words whole at the edge of the window, at a terminal


class Conversation:
    """A session with a loaded model, whose answers are shown as they come. Frees the model when it is closed."""

    def __init__(
        self, model: str | None, engine: Engine, session: ChatSession, setup: Setup, *, folded: bool
    ) -> None:
        self._model = model  # as it was asked for
        self._setup = setup
        self.engine = engine
        self.session = session
        self.folded = folded  # of what a model reasons only the length is shown
        self.last: Generation | None = None  # answer

    @property
    def banner(self) -> str:
        """The model's name, and how much of it fits."""
        name = named_by(self.engine.load_plan.checkpoint.directory)
        return f"{name}: {self.engine.plan.share:.0%} of its experts fit."

    @property
    def context(self) -> str:
        """How many tokens the last answer ended with, of how many there is room for."""
        used = 0 if self.last is None else self.last.prompt_tokens + self.last.new_tokens
        return f"{used:,} of {self.engine.generator.context:,} tokens"

    def say(self, text: str) -> None:
        """Says something to the model, and shows its answer."""
        with self._shown() as watching:
            answer = self.session.send(text, **watching)
        self._finish(answer)

    def regenerate(self) -> None:
        """Has the last answer given again."""
        with self._shown() as watching:
            answer = self.session.regenerate(**watching)
        self._finish(answer)

    @contextmanager
    def _shown(self) -> Iterator[Watching]:
        """What an answer is made with so that it is written as it comes, and Ctrl-C ends it."""
        wrap = self._setup.wrap and sys.stdout.isatty()
        with (
            interruptible() as interrupt,
            wrapped(write, wanted=wrap) as written,
            show_reasoning(folded=self.folded, wrap=wrap) as reasoning,
        ):
            yield {"on_text": reasoning.then(written), "on_reasoning": reasoning.piece, "interrupt": interrupt}

    def _finish(self, answer: Generation) -> None:
        """Ends the answer's line, and says what it took."""
        write("\n")
        self.last = answer
        context = self.engine.generator.context
        if answer.finish_reason == "length" and answer.prompt_tokens + answer.new_tokens >= context:
            tell(f"the answer ends here: the context of {context} tokens is full")
        if stderr.is_terminal and sys.stdin.isatty():
            stderr.print(status(self.engine, answer), style="dim", soft_wrap=True)

    def change_model(self, model: str) -> None:
        """Loads another model, which takes the conversation up; its memory is the one that the present one had.

        On an error the present model goes on, loaded again if it had to make room. CheckpointError where even that
        fails.
        """
        from moe_local.store.open import ModelFiles, open_model

        options = self._setup.options
        try:
            files = files_of(model, options, pack=self._setup.pack, purpose="a chat")
            files = files if isinstance(files, ModelFiles) else open_model(files, options.dtype)
        except MoeLocalError as error:
            raise self._stays(model, error) from error
        template = self.engine.generator.template.settings
        self.engine.close()
        try:
            # A template that was given in place of the model's is of that model.
            self._take_up(load_files(files, options, replace(template, source=None), Bars()))
        except (MoeLocalError, KeyboardInterrupt) as error:
            self._load_again(model, template)
            if isinstance(error, MoeLocalError):
                raise self._stays(model, error) from error
            raise
        self._model = model

    def _take_up(self, engine: Engine) -> None:
        """Goes on with an engine. Raises MoeLocalError for one that does not chat, which is closed."""
        try:
            session = engine.chat(self.session.sampling)
        except MoeLocalError:
            engine.close()
            raise
        session.messages, session.context_shift = self.session.messages, self.session.context_shift
        self.engine, self.session = engine, session

    def _load_again(self, other: str, template: TemplateSettings) -> None:
        try:
            self._take_up(load(self._model, self._setup.options, pack=self._setup.pack, template=template))
        except MoeLocalError as error:
            raise CheckpointError(
                f"{other} was not loaded, and {self._name} not again ({error.message})", remedy="begin a new chat"
            ) from error

    @property
    def _name(self) -> str:
        return self._model or "the demo model"

    def _stays(self, model: str, error: MoeLocalError) -> MoeLocalError:
        return MoeLocalError(f"{model} was not loaded, {self._name} goes on: {error.message}", remedy=error.remedy)

    def close(self) -> None:
        self.engine.close()
