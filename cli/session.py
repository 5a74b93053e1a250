"""What commands that run a model share: finding it, loading it with a progress bar, Ctrl-C, the status line."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from moe_local.errors import StorageError
from moe_local.paths import cache_dir
from moe_local.units import format_size

from .download import as_packed, asking, waiting
from .interrupts import ignored
from .output import stderr as stderr
from .output import visible
from .output import write as write
from .wrap import WordWrap, window_width

if TYPE_CHECKING:
    from moe_local.checkpoint.hub import Take
    from moe_local.engine import Engine
    from moe_local.generation.generate import Generation
    from moe_local.generation.template_settings import TemplateSettings
    from moe_local.planning.options import Options
    from moe_local.store.open import ModelFiles


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr that `report(stage, fraction)` drives; nothing where stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, fraction: bar.update(task, description=stage, completed=fraction)


def resolve(model: str | None, *, stores: bool = True, take: Take | None = None) -> Path:
    """The model to use: the one named, downloaded if need be, or the demo model, made on first use. Imports no torch.

    With `stores` a hub's model of which only a store is left is that store, which is said. A download is as `take`
    says, see `cli.download`.
    """
    if model is not None:
        from moe_local.checkpoint.hub import locate
        from moe_local.planning.known_models import shipped_names
        from moe_local.store.body import is_store
        from moe_local.store.short_names import find_model

        found = find_model(model, stores=stores, elsewhere=shipped_names)
        if isinstance(found, Path) and is_store(found):
            stderr.print(f"{model} is run from {found}", markup=False, soft_wrap=True)
        return locate(str(found), take or asking(), waiting)
    from moe_local.demo import ensure_demo

    with progress() as report:
        return ensure_demo(cache_dir(), report)


def load(
    model: str | None,
    options: Options,
    *,
    pack: bool,
    format: str | None = None,
    template: TemplateSettings | None = None,
    purpose: str | None = None,
) -> Engine:
    """Loads with a progress bar and prints the plan's notes; packs first if that is wanted and makes sense.

    With a `format` that is packed into, whatever MODEL is. An encoder-decoder is refused for a `purpose`, like
    "a chat", before either: UnsupportedError.
    """
    return load_files(files_of(model, options, pack=pack, format=format, purpose=purpose), options, template)


def files_of(
    model: str | None, options: Options, *, pack: bool, format: str | None = None, purpose: str | None = None
) -> str | Path | ModelFiles:
    """What `load_files` takes: the files of a model, packed first as `load` does; or its name, where they are not."""
    _quiet_libraries()
    packed = format is not None or (model is not None and packs(options, pack=pack))
    refuse = None if purpose is None else refusing(purpose)
    take = as_packed(format, refuse=refuse) if packed else None
    named = resolve(model, stores=packed and format is None, take=take or asking(refuse=refuse))
    if refuse is not None:
        refuse(named)
    made = take is not None and take.made == named
    return _packed(named, format, options.dtype) if packed and not made else named


def located(model: str, options: Options, refuse: Callable[[Path], None], *, pack: bool) -> str:
    """Where MODEL is before it is loaded, downloaded if need be; `refuse` sees its small files before the large."""
    packed = packs(options, pack=pack)
    take = as_packed(refuse=refuse) if packed else asking(refuse=refuse)
    return str(resolve(model, stores=packed, take=take))


def packs(options: Options, *, pack: bool) -> bool:
    """Whether a model is packed on first use: not where its own numbers are to be computed with exactly."""
    return pack and options.dtype != "float32"


def refusing(purpose: str) -> Callable[[Path], None]:
    """What refuses the folder of an encoder-decoder, by its config.json if it has one: UnsupportedError."""
    return partial(_assert_goes_on, purpose=purpose)


def _assert_goes_on(model: Path, purpose: str) -> None:
    from moe_local.checkpoint.architecture import is_encoder_decoder
    from moe_local.checkpoint.json_file import read_json
    from moe_local.checkpoint.names import named_by
    from moe_local.generation.encoder_decoder import not_for_it

    config = model / "config.json"
    if config.is_file() and is_encoder_decoder(read_json(config)):
        raise not_for_it(named_by(model), purpose)


def load_files(
    files: str | Path | ModelFiles,
    options: Options,
    template: TemplateSettings | None = None,
    report: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Engine:
    """Loads with a progress bar, also for whoever is behind `report`, and prints the plan's notes."""
    from moe_local import engine
    from moe_local.generation.template_settings import TemplateSettings

    with progress() as show:

        def both(stage: str, fraction: float) -> None:
            show(stage, fraction)
            report(stage, fraction)

        loaded = engine.load(files, options, report=both)
    for note in loaded.notes:
        tell(note)
    if loaded.speaks:
        loaded.generator.on_notice = tell
        loaded.generator.use_template(template or TemplateSettings())
    return loaded


def tell(note: str) -> None:
    """A note to the user, on stderr."""
    stderr.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def _packed(model: Path, format: str | None, dtype: str) -> Path | ModelFiles:
    """The files of the model's store, made now if need be; the model itself where there is no room for one."""
    from moe_local.checkpoint.names import named_by
    from moe_local.store.first_use import AUTO, Taken, ensure_packed

    try:
        with progress() as report:
            files, taken = ensure_packed(model, report, format or AUTO, dtype)
    except StorageError as error:
        if format is not None:
            raise
        stderr.print(f"not packed: {error.message}; the original is read", markup=False, soft_wrap=True)
        return model
    said = {
        Taken.PACKED: "packed {} once, into {}",
        Taken.OTHER_STORE: "{} was packed with other settings: {} is run",
    }
    if taken in said:
        told = said[taken].format(named_by(model), files.checkpoint.directory)
        stderr.print(f"{told}; --no-pack reads the original", markup=False, soft_wrap=True)
    return files


def _quiet_libraries() -> None:
    """transformers warns about things that our users cannot act on."""
    warnings.filterwarnings("ignore", module=r"(transformers|torch|huggingface_hub)\..*")
    logging.getLogger("transformers").setLevel(logging.ERROR)


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
