"""What is typed while a chat's model is being loaded, on a real terminal."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from moe_local.errors import CheckpointError
from tests.cli.screen import STATUS, Open, quick

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")

LOADED = "to leave"  # of the line that a model which is loaded greets with
TIDY = "\x1b[?2004l"  # what prompt_toolkit leaves a terminal with


def test_a_message_is_said_once_the_model_is_there(qwen: Path, open_chat: Open) -> None:
    screen = open_chat(*quick(qwen))
    assert LOADED not in screen.prompt()
    screen.type("first\rsecond\r")
    before = screen.until(LOADED)
    assert "first" in before and "tokens/s" not in before
    screen.until(STATUS)
    screen.until(STATUS)
    screen.prompt()
    assert screen.said() == ["first", "second"]


def test_half_a_message_is_still_there(qwen: Path, open_chat: Open) -> None:
    screen = open_chat(*quick(qwen))
    screen.prompt()
    screen.type("not this\x03half of")
    screen.until("half of")
    assert "half of" in screen.loaded() + screen.until("half of")
    screen.say(" a message")
    assert screen.said() == ["half of a message"]


def test_how_far_loading_is_stands_below_the_prompt(qwen: Path, open_chat: Open) -> None:
    screen = open_chat(*quick(qwen), PROMPT_TOOLKIT_NO_CPR="")
    screen.until(re.escape("\x1b[6n"))
    screen.type("\x1b[1;1R")  # where the cursor is: without it there is nothing below the prompt
    assert screen.until(f"loading {re.escape(str(qwen))} ...")
    screen.until(LOADED)
    screen.type("\x04")
    assert screen.end() == 0


def test_what_loading_says_is_above_the_prompt(qwen: Path, open_chat: Open) -> None:
    screen = open_chat(qwen, "-n", "3", "--context", "512", "--ram", "99TiB")
    screen.prompt()
    screen.type("half of")
    before = screen.until(LOADED)
    assert "packed" in before and "more than this machine" in before
    screen.until("half of")
    screen.say(" it")
    assert screen.said() == ["half of it"]


@pytest.mark.parametrize(("key", "code"), [("\x04", 0), ("\x03", 130), ("\r/bye\r", 0)])
def test_it_can_be_left_while_it_loads(qwen: Path, open_chat: Open, key: str, code: int) -> None:
    screen = open_chat(*quick(qwen))
    screen.prompt()
    screen.type(key)
    assert screen.end() == code
    assert LOADED not in screen.child.before and "Traceback" not in screen.child.before
    assert TIDY in screen.child.before


def test_an_interrupt_from_elsewhere(qwen: Path, open_chat: Open) -> None:
    screen = open_chat(*quick(qwen))
    screen.prompt()
    os.kill(screen.child.pid, signal.SIGINT)
    assert screen.end() == 130
    assert TIDY in screen.child.before
    screen = open_chat(*quick(qwen))
    screen.loaded()
    time.sleep(0.5)  # the prompt was there before
    os.kill(screen.child.pid, signal.SIGINT)
    assert "/bye leaves" in screen.prompt()
    screen.type("\x04")
    assert screen.end() == 0


def test_a_model_that_cannot_be_loaded_ends_the_prompt(mixtral: Path, open_chat: Open, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(mixtral, tmp_path / "broken"))
    for shard in broken.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-100])
    screen = open_chat(*quick(broken))
    screen.prompt()
    screen.type("half of")
    assert screen.end() == CheckpointError.exit_code
    assert "error: " in screen.child.before and TIDY in screen.child.before
