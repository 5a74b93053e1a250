"""Ctrl-C at any moment of a process, and readers of its output that go away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moe_local.cli.interrupts import was_interrupt
from tests.processes import MOE, python, run, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
PLAN = ("plan", "Qwen/Qwen3-30B-A3B")

# Sends itself SIGINT when so many functions have been called, counted from the first line of our own code.
_AT = """
import os, runpy, signal, sys, threading
left = int(sys.argv.pop(1))
def count(frame, event, argument):
    global left
    left -= 1
    if left == 0:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)
from moe_local.cli.main import main
sys.setprofile(count)
sys.argv[0] = "moe-local"
main()
"""


@pytest.mark.parametrize("calls", [100, 1000, 5000, 20_000, 50_000, 90_000, 130_000])
def test_ctrl_c_at_any_moment_is_quiet(calls: int) -> None:
    """From the first import to the last line, whatever is going on."""
    done = run([sys.executable, "-c", _AT, calls, *PLAN])
    assert (done.returncode, done.stderr) in {(130, "error: interrupted\n"), (0, "")}


def test_ctrl_c_at_the_end_is_quiet() -> None:
    """After the command, while the interpreter takes itself down."""
    code = (
        "import atexit, os, signal, sys; from moe_local.cli.main import main\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "sys.argv[1:] = ['--version']; main()"
    )
    done = run([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_who_ignores_ctrl_c_is_let_be() -> None:
    """A job in a shell's background goes on when Ctrl-C ends what is in front."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from moe_local.cli.main import main; from moe_local.cli.session import interruptible\n"
        "with interruptible() as event: os.kill(os.getpid(), signal.SIGINT)\n"
        "assert not event.is_set(); sys.argv[1:] = ['--version']; main()"
    )
    assert python(code).stdout.startswith("moe-local ")


def test_what_was_made_of_ctrl_c_is_an_interrupt() -> None:
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("torch") from None
    except RuntimeError as error:
        assert was_interrupt(error)
    assert not was_interrupt(ValueError("no"))


# Ctrl-C comes to code that takes an exception for none of its business.
_SELF = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
_LOST_IN = {
    "an import": ("import greedy", f"try:\n    {_SELF}\n    [0 for _ in range(99)]\nexcept BaseException: pass"),
    "what an import calls": (
        "import greedy",
        f"def go():\n    {_SELF}\n    [0 for _ in range(99)]\ntry: go()\nexcept: pass",
    ),
    "a destructor": (f"class Gone:\n    def __del__(self):\n        {_SELF}\nGone()\ntime.sleep(9)", ""),
    "a weak reference's callback": (
        f"import weakref\nclass Gone: pass\ndef call(_):\n    {_SELF}\n"
        "gone = Gone(); ref = weakref.ref(gone, call); del gone; time.sleep(9)",
        "",
    ),
}


@pytest.mark.parametrize("where", _LOST_IN)
def test_ctrl_c_is_not_lost(where: str, tmp_path: Path) -> None:
    """A library that catches all that comes out of an import it tries, and whatever Python itself does not raise."""
    lines, module = _LOST_IN[where]
    (tmp_path / "greedy.py").write_text(module)
    code = (
        "import sys, time\nfrom moe_local.cli.interrupts import end_quietly\nend_quietly()\n"
        "from moe_local.cli.failure import guarded\nimport typer\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"def command():\n    exec({lines!r})\n    print('went on')\n"
        "try: guarded(command)()\nexcept typer.Exit as end: sys.exit(end.exit_code)"
    )
    done = run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_what_else_a_destructor_raises_is_still_said() -> None:
    code = (
        "from moe_local.cli.interrupts import end_quietly, raising\nend_quietly()\n"
        "class Gone:\n    def __del__(self): 1 / 0\nwith raising(): Gone()"
    )
    assert "ZeroDivisionError" in python(code).stderr


@pytest.mark.parametrize("ignored", [False, True])
def test_children_of_tests_take_ctrl_c(ignored: bool, endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a runner that has it ignored."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        child = start(
            [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == -signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize(
    "command",
    [("--help",), ("--version",), PLAN, (*PLAN, "--profile", "cpu-only"), (*PLAN, "--json"), ("list",), ("doctor",),
     ("inspect", "MODEL"), ("verify", "STORE"), ("pack", "MODEL"), ("batch", "TEXT", "MODEL", "-n", "3", "--no-pack"),
     ("chat", "--help"), ("eval", "MODEL", "--text", "TEXT")],
    ids=" ".join,
)  # fmt: skip
def test_a_reader_that_is_gone(qwen: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Nobody reads any of it: no complaint, and all is well."""
    env = {**os.environ, "MOE_LOCAL_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "text").write_text("the hen and the other\n" * 9)
    places = {"MODEL": str(qwen), "TEXT": str(tmp_path / "text"), "STORE": str(tmp_path / "store")}
    if "STORE" in command:
        assert run([*MOE, "pack", qwen, "-o", tmp_path / "store"], env=env).returncode == 0
    reading, writing = os.pipe()
    os.close(reading)
    done = run([*MOE, *(places.get(word, word) for word in command)], env=env, stdout=writing)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("command", [("--help",), PLAN, ("generate", "MODEL", "-p", "x", "-n", "3", "--no-pack")])
def test_a_stdout_without_room(qwen: Path, command: tuple[str, ...]) -> None:
    words = [str(qwen) if word == "MODEL" else word for word in command]
    with Path("/dev/full").open("w") as full:
        done = run([*MOE, *words], stdout=full)
    assert done.returncode == 6
    assert "error: stdout cannot be written: No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_stdout_or_stderr(qwen: Path) -> None:
    done = run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *MOE, "inspect", qwen, "--context", "64"])
    assert done.returncode == 0
