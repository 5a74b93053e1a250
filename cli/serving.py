"""What `moe-local serve` runs, once everything that was typed is understood."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_local.engine import Engine, Report
from moe_local.generation.template_settings import TemplateSettings
from moe_local.planning.options import Options
from moe_local.serve.app import make_app
from moe_local.serve.process import Server, listen, url_of
from moe_local.serve.running import Announcement
from moe_local.serve.service import Service
from moe_local.serve.settings import Names, ServeSettings

from .load import Bars, files_of, load_files
from .output import echo, stderr

_DEMO = "demo"


def run(
    model: str | None,
    options: Options,
    template: TemplateSettings,
    settings: ServeSettings,
    *,
    pack: bool,
    ready_file: Path | None,
) -> None:
    """Serves until it is told to end. Raises MoeLocalError where the model cannot be loaded or nobody can listen."""
    sock = listen(settings)
    files = files_of(model, options, pack=pack, purpose="serving")

    def load(report: Report) -> Engine:
        return load_files(files, options, template, _Told(report))

    names = Names(_DEMO if model is None else public_name(model), settings.aliases)
    service = Service(load, settings)
    service.on_error = _tell_error
    server = Server(make_app(service, names, settings), settings, service.end, service.cut)
    announcement = Announcement(url_of(sock), names.name, ready_file)

    def ready() -> None:
        announcement.make()
        _greet(url_of(sock), names.name, settings)

    def fail() -> None:
        server.should_exit = True

    service.on_ready, service.on_failed = ready, fail
    service.start()
    try:
        server.run(sockets=[sock])
    finally:
        service.close()
        announcement.withdraw()
        sock.close()
    if service.error is not None:
        raise service.error


class _Told(Bars):
    """Progress that somebody else is told of too."""

    def __init__(self, other: Report) -> None:
        self._other = other

    @contextmanager
    def progress(self) -> Iterator[Report]:
        with super().progress() as show:

            def both(stage: str, fraction: float) -> None:
                show(stage, fraction)
                self._other(stage, fraction)

            yield both


def public_name(model: str) -> str:
    """By which clients ask for MODEL: a folder's or a file's own name, without where it lies; a hub's id as it is."""
    path = Path(model)
    return path.resolve().name if path.exists() else model


def _greet(url: str, model: str, settings: ServeSettings) -> None:
    key = "any API key" if settings.api_key is None else f"API key {settings.api_key}"
    lines = (
        f"{model} is served at {url}",
        f"  OpenAI clients     base URL {url}/v1, {key}",
        f"  Anthropic clients  base URL {url}, {key}",
        f"  a page to look at  {url}/",
        "Ctrl-C ends it after the answers under way.",
    )
    for line in lines:
        stderr.print(line, markup=False, soft_wrap=True, highlight=False)


def _tell_error(error: Exception) -> None:
    """For whoever looks at the server's terminal or log: clients are not told."""
    echo("".join(traceback.format_exception(error)).rstrip(), err=True)
