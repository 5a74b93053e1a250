"""From MODEL to an engine, for commands: finding it, packing it, loading it with a progress bar."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from moe_local.errors import StorageError
from moe_local.paths import cache_dir

from .download import as_packed, asking, waiting
from .output import stderr

if TYPE_CHECKING:
    from moe_local.checkpoint.hub import Take
    from moe_local.engine import Engine
    from moe_local.generation.template_settings import TemplateSettings
    from moe_local.planning.options import Options
    from moe_local.store.first_use import Taken
    from moe_local.store.open import ModelFiles


Report = Callable[[str, float], None]  # (stage, fraction done)


class Shown(Protocol):
    """Where a terminal shows how far loading is, and what is said of it."""

    def progress(self) -> AbstractContextManager[Report]: ...

    def aside(self) -> AbstractContextManager[None]:
        """The terminal is free to be written to."""


class Bars:
    """Progress bars, and lines between them."""

    def progress(self) -> AbstractContextManager[Report]:
        return progress()

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def progress() -> Iterator[Report]:
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
    found = find(model, options, pack=pack, format=format, purpose=purpose)
    return load_found(found, options, template, Bars())


@dataclass(frozen=True)
class Found:
    """A model that is here, and whether its store is run, packed into a `format` or the one that suits it."""

    path: Path
    packed: bool
    format: str | None
    purpose: str | None  # of the command, for which not every model will do


def load_found(found: Found, options: Options, template: TemplateSettings | None, shown: Shown) -> Engine:
    """Loads a model that is here, as `load` does."""
    return load_files(packed_files(found, options.dtype, shown), options, template, shown)


def files_of(
    model: str | None, options: Options, *, pack: bool, format: str | None = None, purpose: str | None = None
) -> Path | ModelFiles:
    """What `load_files` takes: the files of a model, packed first as `load` does."""
    return packed_files(find(model, options, pack=pack, format=format, purpose=purpose), options.dtype, Bars())


def find(
    model: str | None, options: Options, *, pack: bool, format: str | None = None, purpose: str | None = None
) -> Found:
    """The model to load as `load` does, downloaded if need be. Imports no torch where it is here already."""
    _quiet_libraries()
    packed = format is not None or (model is not None and packs(options, pack=pack))
    refuse = None if purpose is None else refusing(purpose)
    take = as_packed(format, refuse=refuse) if packed else None
    path = resolve(model, stores=packed and format is None, take=take or asking(refuse=refuse))
    made = take is not None and take.made == path
    return Found(path, packed and not made, format, purpose)


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


def load_files(files: Path | ModelFiles, options: Options, template: TemplateSettings | None, shown: Shown) -> Engine:
    """Loads with progress `shown`, and prints the plan's notes."""
    from moe_local import engine
    from moe_local.generation.template_settings import TemplateSettings

    with shown.progress() as report:
        loaded = engine.load(files, options, report=report)
    if loaded.notes:
        with shown.aside():
            for note in loaded.notes:
                tell(note)
    if loaded.speaks:
        loaded.generator.on_notice = tell
        loaded.generator.use_template(template or TemplateSettings())
    return loaded


def tell(note: str) -> None:
    """A note to the user, on stderr."""
    stderr.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def packed_files(found: Found, dtype: str, shown: Shown) -> Path | ModelFiles:
    """The files of the model's store, made now if need be; the model itself where it is run as it is, or where there
    is no room for a store. UnsupportedError for one that does not do for its purpose.
    """
    if found.purpose is not None:
        refusing(found.purpose)(found.path)
    if not found.packed:
        return found.path
    from moe_local.store.first_use import AUTO, ensure_packed

    try:
        with shown.progress() as report:
            files, taken = ensure_packed(found.path, report, found.format or AUTO, dtype)
    except StorageError as error:
        if found.format is not None:
            raise
        with shown.aside():
            _say(f"not packed: {error.message}; the original is read")
        return found.path
    _tell_taken(found.path, files, taken, shown)
    return files


def _tell_taken(model: Path, files: ModelFiles, taken: Taken, shown: Shown) -> None:
    from moe_local.checkpoint.names import named_by
    from moe_local.store.first_use import Taken

    said = {
        Taken.PACKED: "packed {} once, into {}",
        Taken.OTHER_STORE: "{} was packed with other settings: {} is run",
    }
    if taken in said:
        with shown.aside():
            _say(f"{said[taken].format(named_by(model), files.checkpoint.directory)}; --no-pack reads the original")


def _say(line: str) -> None:
    stderr.print(line, markup=False, soft_wrap=True)


def _quiet_libraries() -> None:
    """transformers warns about things that our users cannot act on."""
    warnings.filterwarnings("ignore", module=r"(transformers|torch|huggingface_hub)\..*")
    logging.getLogger("transformers").setLevel(logging.ERROR)
