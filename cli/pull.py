"""`moe-local pull`: a model from the hub into the local cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.units import format_size

from .completion import complete_model
from .output import echo


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A hub id like Qwen/Qwen3-30B-A3B, with @REVISION or :QUANT if you like, or a link to a model.",
            autocompletion=complete_model,
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit. Default: the newest.")] = None,
) -> None:
    """Download what is needed to run a model, and print where it is.

    Takes safetensors, configuration and tokenizer only; or one GGUF model, where the repository holds nothing else or
    a quantisation is named: `moe-local pull owner/name:Q4_K_M`. Run it again after an interruption: it resumes. Set
    HF_TOKEN for gated models.
    """
    from moe_local.checkpoint.hub import pull as pull_model
    from moe_local.checkpoint.names import EXAMPLE, parse_hub_name

    from .session import stderr

    name = parse_hub_name(model)
    if name is None and Path(model).exists():
        raise CheckpointError(f"{model} is here already", remedy="name it as it is: chat and the others take paths")
    if name is None:
        raise CheckpointError(f"{model} is not the name of a hub's model", remedy=f"name it like {EXAMPLE}")
    if revision is not None and name.revision not in (None, revision):
        raise MoeLocalError(f"{model} and --revision {revision} disagree", remedy="give one of them")
    found = pull_model(replace(name, revision=revision or name.revision))
    size = sum(file.stat().st_size for file in found.files)
    stderr.print(f"{name}: {len(found.files)} files, {format_size(size)}", markup=False, soft_wrap=True)
    if found.unasked:
        note = f"note: the hub did not answer ({found.unasked}); this is the copy that was here"
        stderr.print(note, markup=False, soft_wrap=True)
    echo(found.path)
