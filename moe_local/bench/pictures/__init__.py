"""Pictures of a report, in a light and a dark theme. matplotlib is imported when one is asked for, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_local.bench.report_reader import Report
from moe_local.errors import MoeLocalError, StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .theme import Theme


@dataclass(frozen=True)
class Picture:
    """One picture of a report: `reading` says in a sentence how to read it, `build` makes it in a theme."""

    name: str  # of its files
    title: str
    reading: str
    build: Callable[[Theme], Figure]


def pictures(report: Report) -> list[Picture]:
    """Those for which the report has the figures. Raises MoeLocalError where matplotlib is not installed."""
    need_matplotlib()
    from . import hits, routes, speed, strategies

    return [
        *hits.by_capacity(report),
        *speed.sweep(report),
        *strategies.by_strategy(report),
        *hits.by_layer(report),
        *routes.heat_maps(report),
        *routes.reuse(report),
        *speed.timelines(report),
    ]


def draw(report: Report, directory: str | Path) -> list[Path]:
    """Writes `name.png`, `name.svg`, `name-dark.png` and `name-dark.svg` of every picture; returns the files.

    Raises StorageError naming the directory where that cannot be written.
    """
    drawn = pictures(report)
    directory = Path(directory)
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        return [file for picture in drawn for file in _write(picture, directory)]


def _write(picture: Picture, directory: Path) -> Iterator[Path]:
    from . import theme as look

    for theme in look.THEMES:
        with look.settings():
            figure = picture.build(theme)
            contents = {"png": look.png(figure), "svg": look.svg(figure).encode()}
        for suffix, content in contents.items():
            file = directory / f"{picture.name}{theme.suffix}.{suffix}"
            partial = file.with_name(f".{file.name}.partial")
            partial.write_bytes(content)
            partial.replace(file)
            yield file


def inline(picture: Picture) -> dict[str, str]:
    """An SVG element for each theme's name, without its title: that is the page's to write."""
    from . import theme as look

    elements = {}
    with look.settings():
        for theme in look.THEMES:
            figure = picture.build(theme)
            figure.suptitle("")
            elements[theme.name] = look.svg(figure)
    return elements


def need_matplotlib() -> None:
    """Raises MoeLocalError with the remedy where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MoeLocalError(
            "pictures need matplotlib", remedy="install it with pip install 'moe-local[bench]'"
        ) from error


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write pictures into {directory}: {error.strerror or error}",
            remedy="name a directory that can be written to",
        ) from error
