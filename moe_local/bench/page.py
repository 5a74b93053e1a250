"""A report as one HTML page that needs nothing else: no network, no script, no file beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from itertools import groupby

from moe_local.bench.about import facts, lead, title
from moe_local.bench.figures import Table
from moe_local.bench.pictures import Picture, inline, pictures
from moe_local.bench.report_reader import Report
from moe_local.bench.tables import details, headline

# Even if something hostile came through, a browser would neither run nor fetch it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --muted: #57606a;
  --line: #d8dee4; --band: #f5f7f9; }
.dark { display: none; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --text: #e6e9ed; --muted: #9aa4af; --line: #333b45; --band: #1b2027; }
  .dark { display: block; }
  .light { display: none; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; color: var(--muted); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 1.25rem 0; }
dt { color: var(--muted); }
dd { margin: 0; }
figure { margin: 0; }
svg { width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; font-weight: normal; position: sticky; left: 0;
  background: var(--page); }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 4.5rem; }
.words th, .words td { text-align: left; white-space: normal; }
tbody tr:hover { background: var(--band); }
summary { cursor: pointer; color: var(--muted); }
@media (max-width: 40rem) {
  body { padding: 1rem .6rem 3rem; }
  table { font-size: .8rem; }
  th, td { padding: .3rem .45rem; white-space: normal; }
  th:first-child { max-width: 7.5rem; }
  thead th { min-width: 3.2rem; }
  figure { overflow-x: auto; }
  svg { min-width: 38rem; }
}
"""


def html(report: Report) -> str:
    """The page: what was measured on what, the pictures, the tables.

    Raises MoeLocalError where matplotlib is not installed.
    """
    body = [
        *_head(report),
        *map(_table, headline(report)),
        *_pictures(pictures(report)),
        *map(_table, details(report)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title(report))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _head(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(title(report))}</h1>"
    yield f"<p>{escape(lead(report))}</p>"
    if told := facts(report):
        yield (
            "<dl>" + "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in told) + "</dl>"
        )


def _pictures(drawn: list[Picture]) -> Iterator[str]:
    """A section for each kind of picture, with one picture for each run."""
    for kind, alike in groupby(drawn, key=lambda picture: picture.title):
        group = list(alike)
        heading = f"<h2>{escape(kind)}</h2><p>{escape(group[0].reading)}</p>"
        yield f"<section>{heading}{''.join(map(_picture, group))}</section>"


def _picture(picture: Picture) -> str:
    label = escape(picture.title)
    drawn = "".join(
        f'<div class="{theme}" role="img" aria-label="{label}">{own_ids(svg, f"{picture.name}-{theme}-")}</div>'
        for theme, svg in inline(picture).items()
    )
    return f"<figure>{drawn}</figure>"


def own_ids(svg: str, prefix: str) -> str:
    """An SVG element whose ids and references to them begin with `prefix`, and without a style for the whole page.

    matplotlib names glyphs and clip paths alike in all pictures: side by side on a page the first would win.
    """
    svg = re.sub(r"<defs>\s*<style\b.*?</style>\s*</defs>\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<=\s)id="', f'id="{prefix}', svg)
    svg = re.sub(r'(?<=\s)(xlink:href|href)="#', rf'\1="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in table.lines
    )
    kind = ' class="words"' if table.words else ""
    content = f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
    if table.long:
        content = f"<details><summary>{len(table.lines)} rows</summary>{content}</details>"
    return f"<section><h2>{escape(table.title)}</h2><p>{escape(table.note)}</p>{content}</section>"
