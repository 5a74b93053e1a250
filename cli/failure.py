"""Every failure of a command is one line on stderr and an exit code; `--debug` shows where it came from."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from moe_local.errors import MoeLocalError

from .interrupts import INTERRUPTED, raising, was_interrupt
from .output import echo, forget

USAGE = 2
INTERNAL_ERROR = 70

P = ParamSpec("P")


class UsageError(MoeLocalError):
    """A command line that makes no sense."""

    exit_code = USAGE


class _Settings:
    debug = False


def set_debug(wanted: bool) -> None:
    _Settings.debug = wanted


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """The command, ending in a message and `typer.Exit` where it would have ended in an exception."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with raising():
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except MoeLocalError as error:
            _end(str(error), error.exit_code)
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED)
        except BrokenPipeError:  # whoever read stderr, or the bytes that went past stdout's text
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    forget(stream)
            raise typer.Exit(0) from None
        except Exception as error:
            if was_interrupt(error):
                _end("interrupted", INTERRUPTED)
            if (memory := _out_of_memory(error)) is not None:
                _end(str(memory), memory.exit_code)
            reason = " ".join(str(error).split()) or "no message"
            _end(
                f"internal error: {type(error).__name__}: {reason}; run with --debug and report it",
                INTERNAL_ERROR,
            )

    return run


def _out_of_memory(error: Exception) -> MoeLocalError | None:
    """What a device says that has no memory left, as an error of ours; None for other errors."""
    if "torch" not in sys.modules:  # who has not imported it has no device
        return None
    from moe_local.memory.accelerator import is_out_of_memory, out_of_memory

    return out_of_memory(error) if is_out_of_memory(error) else None


def _end(message: str, code: int) -> None:
    if _Settings.debug:
        echo(traceback.format_exc().rstrip(), err=True)
    echo(f"error: {' '.join(message.splitlines())}", err=True)
    raise typer.Exit(code)
