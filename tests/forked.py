"""`moe-local` in processes that are forked of one that has torch already: importing it takes most of a short command.

Everything that reads the environment as it is imported (transformers, huggingface-hub, accelerate, our own code) is
imported by each process itself. What is about the beginning of a process (Ctrl-C, memory, warnings) is no test's to
run here: `tests.processes` starts whole ones.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from tests.processes import MOE, PATIENCE
from tests.processes import run as run_whole

IMPORTED = (
    *("torch", "torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo", "torch.export"),
    *("numpy", "sympy", "jinja2", "yaml", "httpx", "safetensors.torch", "tokenizers"),
)


def run(arguments: Sequence[object], *, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs `moe-local` with such arguments to its end, without input; what it wrote, and its exit code."""
    words = [str(argument) for argument in arguments]
    if sys.platform != "linux":
        return run_whole([*MOE, *words], env=dict(env))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = _context().Process(target=_Command(words, dict(env), out.fileno(), err.fileno()))
        child.start()
        try:
            child.join(PATIENCE)
            assert child.exitcode is not None, f"it did not end within {PATIENCE:.0f} s"
        finally:
            _end(child)
        return subprocess.CompletedProcess([*MOE, *words], child.exitcode, _text(out), _text(err))


def _context() -> ForkServerContext:
    """The runner has one fork server. One that somebody else began has imported other things, and is replaced."""
    context = get_context("forkserver")
    if forkserver._forkserver._preload_modules != list(IMPORTED):
        forkserver._forkserver._stop()
        context.set_forkserver_preload(list(IMPORTED))
    return context


def _end(child: Any) -> None:
    """Kills what is left of it, with what it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.join(PATIENCE)


def _text(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read().decode())


class _Command:
    """What the forked process does."""

    def __init__(self, words: list[str], env: dict[str, str], out: int, err: int) -> None:
        self.words, self.env, self.folder = words, env, str(Path.cwd())
        self.streams = {1: out, 2: err}

    def __getstate__(self) -> dict[str, Any]:
        """For a process on its way: its own descriptors of the two files."""
        return {**self.__dict__, "streams": {number: DupFd(fd) for number, fd in self.streams.items()}}

    def __call__(self) -> None:
        assert "huggingface_hub" not in sys.modules, "it has read another command's environment"
        os.setsid()
        for number, fd in self.streams.items():
            os.dup2(fd.detach(), number)  # type: ignore[attr-defined]  # what DupFd became on the way
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.folder)
        sys.path.insert(0, self.folder)
        sys.argv = ["moe-local", *self.words]
        try:
            runpy.run_module("moe_local.cli.main", run_name="__main__", alter_sys=True)
        finally:
            atexit._run_exitfuncs()  # multiprocessing's processes leave them out
