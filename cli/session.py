"""What commands that run a model share: Ctrl-C, what it reasons, the status line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING

from moe_local.units import format_size

from .interrupts import ignored
from .output import stderr as stderr
from .output import visible
from .output import write as write
from .wrap import WordWrap, window_width

if TYPE_CHECKING:
    from moe_local.engine import Engine
    from moe_local.generation.generate import Generation


@contextmanager
def interruptible(also: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """Ctrl-C sets the event, and does something else as well; a second one raises KeyboardInterrupt as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread() or ignored():
        yield event
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        also()

    former = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, former)


class Reasoning:
    """Shows what a model reasons, dimmed and on stderr, where that is a terminal; or a line of its length, folded."""

    def __init__(self, *, shown: bool, folded: bool = False, wrap: bool = False) -> None:
        self._shown = shown and stderr.is_terminal
        self._folded = folded
        self._wraps = wrap
        self._words: WordWrap | None = None
        self._begun: float | None = None
        self._length = 0

    def piece(self, text: str) -> None:
        if not self._shown:
            return
        if self._begun is None:
            self._begun = perf_counter()
            self._words = WordWrap(window_width) if self._wraps and not self._folded else None
            stderr.print("reasoning ... " if self._folded else "", style="dim", end="")
        self._length += len(text)
        if not self._folded:
            self._write(text if self._words is None else self._words.feed(visible(text)))

    def then(self, write: Callable[[str], None]) -> Callable[[str], None]:
        """`write`, for the answer, after what was reasoned has ended its line."""

        def answer(text: str) -> None:
            self.end()
            write(text)

        return answer

    def end(self) -> None:
        if self._begun is not None:
            seconds = perf_counter() - self._begun
            self._write("" if self._words is None else self._words.end())
            stderr.print(f"{self._length} characters, {seconds:.0f} s" if self._folded else "\n", style="dim")
            self._begun, self._length = None, 0

    def _write(self, text: str) -> None:
        stderr.print(text, style="dim", end="", markup=False, soft_wrap=True)


@contextmanager
def show_reasoning(*, shown: bool = True, folded: bool = False, wrap: bool = False) -> Iterator[Reasoning]:
    """What is to be told the reasoning; its line has ended afterwards. `wrap` keeps its words whole."""
    reasoning = Reasoning(shown=shown, folded=folded, wrap=wrap)
    try:
        yield reasoning
    finally:
        reasoning.end()


def status(engine: Engine, result: Generation) -> str:
    """One line about a generation, as much of it as fits the window: speed, hits, context, memory of the budget."""
    from moe_local.memory.limits import process_memory

    used = result.prompt_tokens + result.new_tokens
    parts = [  # as they are shown, each with its place among those that are left out last
        (6, f"{result.new_tokens} tokens"),
        (1, f"{result.tokens_per_second:.1f} tokens/s"),
        (5, f"first after {result.time_to_first_token:.2f} s"),
        (3, f"hits {result.counters.hit_rate:.1%}"),
        (7, f"{format_size(result.counters.bytes_read)} read"),
        (2, f"context {used} of {engine.generator.context}"),
        (4, f"{format_size(process_memory())} of {format_size(engine.plan.ram)}"),
    ]
    return fitted(parts, stderr.width)


def fitted(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Parts of a line in their order, without those of the highest numbers that make it wider than `width` columns.

    The part of the lowest number is there however wide it is.
    """
    kept = set(parts)
    while len(kept) > 1 and len(_joined(parts, kept)) > width:
        kept.remove(max(kept))
    return _joined(parts, kept)


def _joined(parts: Sequence[tuple[int, str]], kept: Collection[tuple[int, str]]) -> str:
    return " · ".join(text for number, text in parts if (number, text) in kept)
