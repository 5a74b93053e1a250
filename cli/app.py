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
from .commands import Command, Commands
from .config_command import config
from .doctor import doctor
from .eval import evaluate
from .failure import guarded, set_debug
from .generate import generate
from .inspect import inspect
from .models import list_models, rm
from .output import echo
from .pack import pack, verify
from .plan import plan
from .pull import pull
from .recommend import recommend
from .serve import serve
from .servers import ps, stop
from .spread import spread

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run Mixture-of-Experts language models that do not fit in memory.\n\n"
    "Start with `moe-local chat`: it makes a small demo model. `moe-local inspect MODEL` says what would fit.\n\n"
    "`run` is chat, or generate where there is a prompt; `ls` is list, `show` is inspect.",
)
NAMES = {list_models: "list", evaluate: "eval"}
COMMANDS = (
    chat, generate, batch, serve, ps, stop, inspect, plan, recommend, list_models, pull, rm, pack, verify, doctor,
    config, evaluate,
)  # fmt: skip
for command in COMMANDS:
    app.command(NAMES.get(command), cls=Command)(guarded(spread(command)))
app.add_typer(bench, name="bench")


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
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    set_debug(debug)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
