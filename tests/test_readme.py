"""README and docs/ say only what is run: every command in a `sh` block is run by `.ci/run`, and exists; links lead
somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from moe_local.cli.commands import RUN
from moe_local.cli.habits import ALIASES
from moe_local.cli.main import app
from moe_local.planning.machines import profiles

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in zip(NAMES, PAGES, strict=True)}


def _blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[name], re.MULTILINE | re.DOTALL)


PYTHON = [(name, number) for name in NAMES for number in range(len(_blocks(name, "python")))]


def test_the_first_command_chats_and_the_second_tests() -> None:
    chats, tests = _blocks("README.md", "sh")[:2]
    assert re.search(r"pip install .* && moe-local chat$", chats.strip())
    assert re.search(r"pip install .* && pytest -n 2$", tests.strip())


def test_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 130


@pytest.mark.parametrize("name", NAMES)
def test_every_command_named_exists(name: str) -> None:
    known = {*typer.main.get_command(app).commands, *ALIASES, RUN}  # type: ignore[attr-defined]
    assert set(re.findall(r"(?:`|\$ |```sh\n|&& )moe-local ([a-z]+)", TEXTS[name])) <= known


def test_every_command_is_named() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = {command for text in TEXTS.values() for command in re.findall(r"`moe-local ([a-z]+)", text)}
    assert named >= known


def test_every_profile_is_listed() -> None:
    assert all(any(f"`{profile}`" in text for text in TEXTS.values()) for profile in profiles())


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        if heading:
            assert heading in _anchors(target.read_text(encoding="utf-8")), link


def _anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("name", "number"), PYTHON)
def test_python_runs(name: str, number: int, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "monday.txt").write_text("All is well.")
    program = _blocks(name, "python")[number].replace("path/to/checkpoint", str(qwen))
    exec(compile(program, name, "exec"), {"__name__": "example"})
    if "reports" in program:
        assert (tmp_path / "reports" / "monday.summary").read_text()
