"""What is typed in a chat, understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from moe_local.cli.typed import Command, goes_on, is_open, read_line, read_typed

KNOWN = ("system", "save", "help")
texts = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("hello", "hello"),
        ("  hello \n", "hello"),
        ("/help", Command("help", "")),
        ("/", Command("", "")),
        ("/save  my talk.json ", Command("save", "my talk.json")),
        ("//etc/hosts is what?", "/etc/hosts is what?"),
        ('"""hello"""', "hello"),
        ('"""\n  one\ntwo\n"""', "  one\ntwo"),
        ('""""""', ""),
        ('"""/help"""', "/help"),
        ('/system """\nBe\nbrief.\n"""', Command("system", "Be\nbrief.")),
        ("/system Be\nbrief.", Command("system", "Be\nbrief.")),
        ("/usr/bin/python: not found\nWhat is it?", "/usr/bin/python: not found\nWhat is it?"),
        ("//save\nis a command", "/save\nis a command"),
        ("\n\n    return 1\nwhy?\n", "    return 1\nwhy?"),
        ('"""Doc."""\nx = """y"""', '"""Doc."""\nx = """y"""'),
    ],
)
def test_messages_and_commands(typed: str, means: Command | str) -> None:
    assert read_typed(typed, KNOWN) == means


def test_a_pipe_knows_no_quotes() -> None:
    assert read_line('"""hello"""\n') == '"""hello"""'
    assert read_line("//x\n") == "/x"
    assert read_line("/save x\n") == Command("save", "x")


@pytest.mark.parametrize(
    ("typed", "opened"),
    [('"""', True), ('"""a\nb', True), ('"""a"""', False), ('/system """a', True), ('say """a', False), ("", False)],
)
def test_quotes_that_are_open(typed: str, opened: bool) -> None:
    assert is_open(typed) == opened


@pytest.mark.parametrize(
    ("typed", "on"),
    [("a\\", True), ("a\\\\", False), ("a", False), ("", False), ("/save C:\\", False), ("//a\\", True)],
)
def test_a_backslash_at_the_end(typed: str, on: bool) -> None:
    assert goes_on(typed) == on


@given(texts.filter(lambda text: '"""' not in text and not text.startswith('"') and not text.endswith('"')))
def test_quotes_say_anything(text: str) -> None:
    quoted = f'"""\n{text}\n"""'
    assert not is_open(quoted) and is_open(quoted[:-3].rstrip('"'))
    assert read_typed(quoted, KNOWN) == text.strip("\n")


@given(texts)
def test_two_slashes_say_one(text: str) -> None:
    said = read_typed(f"//{text}", KNOWN)
    assert isinstance(said, str)
    assert said == f"/{text}".rstrip() or said == f"/{text}".strip()


@given(texts)
def test_anything_is_understood(text: str) -> None:
    understood = read_typed(text, KNOWN)
    if isinstance(understood, Command):
        assert text.strip().startswith("/")


def test_names_of_models_and_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_local.cli import prompt

    monkeypatch.chdir(tmp_path)
    Path("mixtral.gguf").touch()
    monkeypatch.setattr(prompt, "complete_model", lambda typed: [typed + "xtral-8x7B"])

    def offered(text: str) -> list[str]:
        found = prompt._Completer().get_completions(Document(text), CompleteEvent())
        return [text[: len(text) + each.start_position] + each.text for each in found]

    assert offered("/model mi") == ["/model mixtral-8x7B", "/model mixtral.gguf"]
    assert offered("/load mi") == ["/load mixtral.gguf"]
    assert offered("/thi") == ["/think "]
    assert offered("model mi") == []
