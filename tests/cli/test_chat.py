"""`moe-local chat`, line by line from a pipe and at a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import MOE, Terminal, python

from .conftest import Run, expect_error

READS = re.escape("\x1b[?2004h")  # prompt_toolkit, as it begins to
QUICK = ("-n", "6", "--temperature", "0", "--context", "256")


def test_a_conversation_from_a_pipe(run: Run, qwen: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [
        "/help",
        "Hello",
        "",
        "And?",
        "/regenerate",
        "/system Be kind.",
        "/system",
        f"/save {saved}",
        "/reset",
        f"/load {saved}",
        "/stats",
        "/stats json",
        "/undo",
        "/exit",
        "never said",
    ]
    result = run("chat", qwen, *QUICK, stdin="\n".join(lines))
    assert result.exit_code == 0, result.output
    roles = [message["role"] for message in json.loads(saved.read_text())]
    assert roles == ["system", *["user", "assistant"] * 2]
    assert "/regenerate" in result.stdout
    assert "Be kind." in result.stdout
    assert "(5 messages loaded)" in result.stdout
    assert '"hit_rate"' in result.stdout
    assert re.search(r"^needed +[\d,]+ times, [\d.]+% of them there$", result.stdout, re.MULTILINE)
    assert re.search(r"^context +\d+ of 256 tokens$", result.stdout, re.MULTILINE)
    assert "are forgotten" in result.stdout
    assert "never" not in result.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/dance", "there is no command /dance"),
        ("/regenrate", "did you mean /regenerate? /help lists all"),
        ("/set temprature 1", "there is no setting temprature; did you mean temperature?"),
        ("/set dance", "there are max_new_tokens, temperature"),
        ("/set seed 1.5", "seed 1.5 is not a whole number"),
        ("/set top-p 3", "top-p 3.0 is not between 0 and 1"),
        ('/set stop "', "is no text in quotes"),
        ("/think hard", "use on, off, low"),
        ("/undo", "nothing to undo"),
        ("/edit", "an editor needs a terminal"),
        ("/model /no/such", "/no/such was not loaded"),
        ("/vram", "there is no GPU here"),
        ("/vram 8GiB", "no memory of a device's own"),
        ("/vram much", "is not a size"),
        ("/save", "which file"),
        ("/load /no/such", "/no/such"),
        ("/regenerate", "no answer"),
    ],
)
def test_bad_commands_end_a_script(run: Run, qwen: Path, line: str, said: str) -> None:
    result = run("chat", qwen, *QUICK, stdin=f"{line}\n")
    expect_error(result, said)


def test_memory_of_the_device_is_given_back_and_taken_again(run: Run, qwen: Path) -> None:
    given = ("--vram", "512MiB", "--experts", "50%", "--no-pack")
    out = run("chat", qwen, *QUICK, *given, stdin="/vram\nhello\n/vram 400MiB\nhello\n/vram 50%\n").stdout
    assert re.findall(r"\((\d+ MiB) of device memory: 50% of the experts fit\)", out) == [
        "512 MiB", "400 MiB", "200 MiB",
    ]  # fmt: skip


def test_the_end_of_input_leaves(run: Run, qwen: Path) -> None:
    assert run("chat", qwen, *QUICK, stdin="").exit_code == 0


def test_settings(run: Run, qwen: Path) -> None:
    lines = [
        "/set",
        "/set temperature 0.5",
        "/set max-new-tokens 3",
        '/set stop "\\n\\n"',
        "/set seed 7",
        "Hello",
        "/regen",
        "/set temperature default",
        "/set",
    ]
    shown = run("chat", qwen, "-n", "6", "--context", "256", stdin="\n".join(lines)).stdout
    assert re.findall(r"^temperature +(.*)$", shown, re.MULTILINE) == [
        "(the model's: greedy)", "0.5", "(the model's: greedy)", "(the model's: greedy)",
    ]  # fmt: skip
    assert re.findall(r"^max_new_tokens +(.*)$", shown, re.MULTILINE) == ["6", "3", "3"]
    assert re.findall(r"^stop +(.*)$", shown, re.MULTILINE) == ["(none)", r'"\n\n"', r'"\n\n"']


def test_another_model_takes_the_conversation_up(run: Run, qwen: Path, mixtral: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = ["Hello", f"/model {mixtral}", "And?", "/model", f"/save {saved}"]
    result = run("chat", qwen, *QUICK, "--no-pack", stdin="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert result.stdout.count("mixtral: 100% of its experts fit.") == 2
    assert [message["role"] for message in json.loads(saved.read_text())] == ["user", "assistant"] * 2


def test_a_full_context_ends_a_chat_that_does_not_shift(run: Run, qwen: Path) -> None:
    lines = [f"{turn} the hen and the other one" for turn in range(30)]
    shifted = run("chat", qwen, *QUICK, stdin="\n".join(lines))
    assert shifted.exit_code == 0 and "oldest" in shifted.stderr
    ended = run("chat", qwen, *QUICK, "--context-shift", "off", stdin="\n".join(lines))
    assert ended.exit_code == 1
    assert "oldest" not in ended.stderr
    assert "longer than the context of 256 tokens; /clear forgets it and /undo" in ended.stderr


def test_an_answer_that_the_context_ends_says_so(run: Run, qwen: Path) -> None:
    result = run("chat", qwen, "--temperature", "0", "--context", "64", stdin="Hello")
    assert "the answer ends here: the context of 64 tokens is full" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_at_a_terminal(endless: Path, mixtral: Path, tmp_path: Path) -> None:
    """A status line; Ctrl-C stops the answer and not the chat; errors do not end it, a model that fails neither."""
    broken = Path(shutil.copytree(mixtral, tmp_path / "broken"))
    (broken / "generation_config.json").write_text("{")  # which is seen when the other model has made room
    terminal = Terminal(
        [*MOE, "chat", endless, "--no-pack", "--context", "100000"],
        env={"MOE_LOCAL_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1"},
    )
    terminal.wait_for(r"/help for help.*\n")
    terminal.wait_for(READS)
    terminal.type("/dance\n")
    terminal.wait_for("error: there is no command /dance")
    terminal.wait_for(READS)
    terminal.type(f"/model {broken}\n")
    terminal.wait_for("broken was not loaded.*endless goes on: ")
    terminal.wait_for(READS)
    terminal.type("Hello\n")
    terminal.wait_for(re.escape("\x1b[?2004l") + ".")  # it reads no more, and the answer has begun
    os.kill(terminal.pid, signal.SIGINT)
    seen = terminal.wait_for(r"tokens/s .* hits .* context .*\n")
    assert "Traceback" not in seen
    terminal.wait_for(READS)
    os.kill(terminal.pid, signal.SIGINT)
    terminal.wait_for("/bye leaves")
    terminal.wait_for(READS)
    terminal.type("/exit\n")
    assert terminal.finish() == 0
    assert "/dance" in (tmp_path / "chat_history").read_text()


def test_a_pipe_is_read_without_what_edits_lines(qwen: Path) -> None:
    code = (
        "import sys; from moe_local.cli.main import app; app(sys.argv[1:], standalone_mode=False);"
        "assert 'prompt_toolkit' not in sys.modules"
    )
    done = python(code, "chat", qwen, "--no-pack", *QUICK, input="Hello\n")
    assert done.stdout.count("\n") >= 1
