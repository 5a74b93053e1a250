"""The commands of `moe-local`, all together."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from moe_local import __version__

from .batch import batch
from .bench import app as bench
from .chat import chat
from .doctor import doctor
from .eval import evaluate
from .failure import guarded, set_debug
from .generate import generate
from .inspect import inspect
from .options import spread
from .output import echo
from .pack import pack, stores, verify
from .plan import plan
from .pull import pull
from .recommend import recommend

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run Mixture-of-Experts language models that do not fit in memory.\n\n"
    "Start with `moe-local chat`: it makes a small demo model. `moe-local inspect MODEL` says what would fit.",
)
for command in (chat, generate, batch, inspect, plan, recommend, pack, verify, stores, pull, doctor):
    app.command()(guarded(spread(command)))
app.add_typer(bench, name="bench")
app.command("eval")(guarded(spread(evaluate)))


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"moe-local {__version__}")
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
    set_debug(debug)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
