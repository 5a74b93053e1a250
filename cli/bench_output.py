"""Where a bench's report goes: the terminal, JSON, a table, a page, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as opt
from .output import echo_json

OUTPUT = "Output"


@dataclass(frozen=True)
class OutputFlags:
    """What becomes of a report, as typed."""

    plot: Annotated[
        Path | None, typer.Option(help="Draw pictures (PNG and SVG) into this folder.", rich_help_panel=OUTPUT)
    ] = None
    html: Annotated[
        Path | None, typer.Option(help="Write one page with all tables and pictures.", rich_help_panel=OUTPUT)
    ] = None
    md: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.", rich_help_panel=OUTPUT)] = None
    csv: Annotated[Path | None, typer.Option(help="Write a table of the results.", rich_help_panel=OUTPUT)] = None
    as_json: opt.Json = False

    def tell(self, report: Mapping[str, Any]) -> None:
        """Writes the files that were asked for, then prints it."""
        self._write(report)
        if self.as_json:
            echo_json(report)
        else:
            from .bench_tables import show

            show(report)

    def _write(self, report: Mapping[str, Any]) -> None:
        from .output import stderr

        if self.csv is not None:
            from moe_local.bench.report import write_csv

            write_csv(report, self.csv)
        if self.html is not None:
            from moe_local.bench.page import html as page
            from moe_local.bench.report import write_text

            write_text(self.html, page(report))
        if self.md is not None:
            from moe_local.bench.markdown import markdown
            from moe_local.bench.report import write_text

            write_text(self.md, markdown(report))
        if self.plot is not None:
            from moe_local.bench.pictures import draw

            drawn = draw(report, self.plot)
            stderr.print(f"{len(drawn)} pictures in {self.plot}", markup=False)
