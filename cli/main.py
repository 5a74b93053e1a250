"""`moe-local`: the commands, and what happens when one fails."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from moe_local import __version__
from moe_local.errors import MoeLocalError

from .chat import chat
from .doctor import doctor
from .generate import generate
from .inspect import inspect
from .pull import pull

INTERRUPTED = 130
INTERNAL_ERROR = 70


class _Commands(TyperGroup):
    """Turns every failure into one line on stderr and an exit code; `--debug` shows where it came from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.exceptions.Abort, click.ClickException):
            raise
        except MoeLocalError as error:
            self._fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            self._fail(ctx, "interrupted", INTERRUPTED)
        except BrokenPipeError:  # the reader of our output went away: `moe-local ... | head`
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the interpreter's last flush
            ctx.exit(0)
        except Exception as error:
            reason = " ".join(str(error).split()) or "no message"
            self._fail(
                ctx, f"internal error: {type(error).__name__}: {reason}; run with --debug and report it", INTERNAL_ERROR
            )

    @staticmethod
    def _fail(ctx: click.Context, message: str, code: int) -> None:
        if ctx.params.get("debug"):
            traceback.print_exc()
        typer.echo(f"error: {message}", err=True)
        ctx.exit(code)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run Mixture-of-Experts language models that do not fit in memory.\n\n"
    "Start with `moe-local chat`: it makes a small demo model. `moe-local inspect MODEL` says what would fit.",
)
app.command()(chat)
app.command()(generate)
app.command()(inspect)
app.command()(pull)
app.command()(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moe-local {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="MOE_LOCAL_DEBUG", help="Show a traceback when something fails.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
