"""What hands know from other programs: options by several names, `run`, a prompt after the model; else one line."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import typer

from moe_local.cli.commands import has_prompt, is_prompt
from moe_local.cli.habits import ALIASES, COMMANDS, OPTIONS
from moe_local.cli.main import app
from moe_local.demo import VERSION
from tests.processes import MOE, Terminal

from .conftest import Run, expect_error

OURS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
QUICK = ("--max-tokens", "4", "--temp", "0", "-c", "128", "-t", "1")
KNOWN = {"-m": True, "--model": True, "-p": True, "-f": True, "-n": True, "--fold": False}


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in OURS), ("run",), ("ls",), ("bench", "live")], ids=" ".join
)
def test_every_command_knows_h(run: Run, command: tuple[str, ...]) -> None:
    short, long = run(*command, "-h"), run(*command, "--help")
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "Usage: " in short.stdout


def test_v(run: Run) -> None:
    assert run("-V").stdout == run("--version").stdout


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_another_program_is_told_ours(run: Run, option: str) -> None:
    command = next(name for name in ("chat", "generate", "pack", "eval") if not _has(name, option))
    expect_error(run(command, "/no/such", option, "1"), f"there is no {option} here; {OPTIONS[option]}", code=2)


def _has(command: str, option: str) -> bool:
    return any(option in parameter.opts for parameter in OURS[command].params)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_another_program_is_told_ours(run: Run, command: str) -> None:
    assert command not in OURS
    expect_error(run(command, "x", "--y"), f"there is no command {command} here; {COMMANDS[command]}", code=2)


def test_what_the_table_names_is_ours() -> None:
    said = "\n".join((*OPTIONS.values(), *COMMANDS.values()))
    assert set(re.findall(r"`moe-local (\w+)", said)) <= set(OURS)
    ours = {option for command in OURS.values() for parameter in command.params for option in parameter.opts}
    ours |= {option for command in OURS["bench"].commands.values() for p in command.params for option in p.opts}
    theirs = {"-U", "--debug"}  # pip's; every command's
    assert set(re.findall(r"(?<![\w-])--?[A-Za-z][a-z-]*", said)) <= ours | theirs
    assert set(ALIASES.values()) <= set(OURS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("chat", "--contxt", "5"), "no such option: --contxt"),
        (("chat", "--seed", "x"), "invalid value for '--seed'"),
        (("chta",), "no such command 'chta'"),
        (("chat", "a", "b"), "see `"),
        (("-m", "x"), "-m is an option of a command, which comes first"),
        (("pack",), "there is no MODEL"),
        (("inspect", "a", "-m", "b"), "both a and --model b"),
        (("eval", "x"), "--text"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    expect_error(result, said, code=2)
    assert len(result.stderr.splitlines()) == 1


def test_values_are_no_habits(run: Run, tmp_path: Path) -> None:
    """A prompt, or what follows `--`, may look like an option."""
    expect_error(run("generate", tmp_path / "absent", "-p", "-ngl"), "does not exist", code=3)
    expect_error(run("generate", tmp_path / "absent", "--", "--mlock"), "does not exist", code=3)


def test_debug_stands_anywhere(run: Run, tmp_path: Path) -> None:
    for arguments in (("--debug", "inspect", "/no"), ("inspect", "--debug", "/no"), ("inspect", "/no", "--debug")):
        assert "Traceback" in run(*arguments).stderr
    assert "Traceback" not in run("inspect", "/no").stderr
    assert "Traceback" not in run("generate", "/no", "-p", "--debug").stderr


def test_a_model_and_a_prompt_in_every_order(run: Run, qwen: Path) -> None:
    answers = {
        run("generate", *arguments, *QUICK, "--no-pack").stdout
        for arguments in (
            (qwen, "why so"), (qwen, "why", "so"), ("-m", qwen, "why so"), ("--model", qwen, "why", "so"),
            (qwen, "-p", "why so"), ("-p", "why so", "-m", qwen),
        )
    }  # fmt: skip
    answers |= {run("run", qwen, "why so", *QUICK, "--no-pack").stdout}
    answers |= {run("run", "-m", qwen, *QUICK, "--no-pack", stdin="why so").stdout}
    assert len(answers) == 1 and answers != {""}
    expect_error(run("generate", qwen, "why", "-p", "so"), "both PROMPT and --prompt")
    expect_error(run("generate", qwen, "why", "-f", "so"), "both a prompt and --file")
    expect_error(run("inspect", "-m", qwen, "--ram", "32"), "did you mean 32GiB?")


def test_a_prompt_alone_is_for_the_demo_model(run: Run, qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen, tmp_path / "home" / "demo" / VERSION)
    for command in ("generate", "run"):
        result = run(command, "why so blue", *QUICK, "--json")
        assert json.loads(result.stdout)["new_tokens"] == 4
    assert [each["kind"] for each in json.loads(run("list", "--json").stdout)] == ["demo"]
    assert "removed smollm2" in run("rm", "smol", "--yes").stdout
    assert run("list", "--json").stdout == "[]\n"


def test_what_is_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my models").mkdir()
    Path("my notes").write_text("")
    prompts = ("why so", "What is a b/c?", " is it? ")
    others = ("why", "owner/name", "my models", "my notes", " owner/name ", "")
    assert [is_prompt(word) for word in (*prompts, *others)] == [True] * 3 + [False] * 6


@pytest.mark.parametrize(
    ("arguments", "prompted"),
    [
        ((), False), (("m",), False), (("m", "hi"), True), (("a b",), True), (("-m", "m"), False),
        (("-m", "m", "hi"), True),
        (("m", "-n", "5"), False), (("m", "--fold"), False), (("m", "-p", "x"), True), (("m", "--", "-x"), True),
    ],
)  # fmt: skip
def test_run_chats_without_a_prompt(
    arguments: tuple[str, ...], prompted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", open(os.devnull, encoding="utf-8"))  # noqa: SIM115, PTH123 - closed by the end
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert has_prompt(arguments, KNOWN) == prompted


AT_A_TERMINAL = (
    (("-V",), r"moe-local \d", 0),
    (("chat", "-ngl", "99"), "there is no -ngl here; what fits goes to the GPU by itself", 2),
    (("server",), "there is no command server here; use `moe-local serve MODEL`", 2),
    (("ls",), "no models here yet", 0),
    (("show", "/no/such", "--debug"), "Traceback", 3),
    (("run", "QWEN", "hello", *QUICK), r"tokens/s", 0),
)


@pytest.mark.parametrize(("command", "said", "code"), AT_A_TERMINAL)
def test_habits_at_a_terminal(command: tuple[str, ...], said: str, code: int, qwen: Path, tmp_path: Path) -> None:
    words = [str(qwen) if word == "QWEN" else word for word in command]
    places = {"MOE_LOCAL_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "COLUMNS": "300"}
    terminal = Terminal([*MOE, *words], env=places)
    terminal.wait_for(said)
    assert terminal.finish() == code


def test_run_at_a_terminal_chats(qwen: Path, tmp_path: Path) -> None:
    places = {"MOE_LOCAL_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1"}
    terminal = Terminal([*MOE, "run", qwen, *QUICK, "--no-pack"], env=places)
    terminal.wait_for(r"\x1b\[\?2004h")  # it takes what is typed
    terminal.type("\x04")
    assert terminal.finish() == 0
