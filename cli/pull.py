"""`moe-local pull`: a model from the hub, packed as it comes or as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moe_local.errors import CheckpointError, DownloadError, MoeLocalError
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
    keep_original: Annotated[
        bool,
        typer.Option("--keep-original", help="Download the whole model and pack nothing: `chat` packs it then."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Get a model from the hub ready to run, and print where it is.

    What `chat` would pack is packed while it comes, and each file is deleted once it is packed: that takes the disk
    of the packed model and of a file or two. Everything else is downloaded as it is: what is quantised already, or
    one GGUF model, where the repository holds nothing else or a quantisation is named, like owner/name:Q4_K_M.

    Run it again after an interruption: it goes on. Set HF_TOKEN for gated models.
    """
    from moe_local.checkpoint.hub import pull as pull_model
    from moe_local.checkpoint.names import EXAMPLE, parse_hub_name
    from moe_local.store.short_names import find_left_store

    from .download import as_packed, asking, waiting
    from .output import stderr

    name = parse_hub_name(model)
    if name is None and Path(model).exists():
        raise CheckpointError(f"{model} is here already", remedy="name it as it is: chat and the others take paths")
    if name is None:
        raise CheckpointError(f"{model} is not the name of a hub's model", remedy=f"name it like {EXAMPLE}")
    if revision is not None and name.revision not in (None, revision):
        raise MoeLocalError(f"{model} and --revision {revision} disagree", remedy="give one of them")
    name = replace(name, revision=revision or name.revision)
    take = asking(yes=yes) if keep_original else as_packed(yes=yes)
    try:
        found = pull_model(name, take, waiting)
    except DownloadError as error:
        store = None if keep_original else find_left_store(name)
        if store is None:
            raise
        stderr.print(f"note: {error.message}; this store of it is here", markup=False, soft_wrap=True)
        echo(store)
        return
    if found.files:
        size = sum(file.stat().st_size for file in found.files)
        stderr.print(f"{name}: {len(found.files)} files, {format_size(size)}", markup=False, soft_wrap=True)
    if found.unasked:
        note = f"note: the hub did not answer ({found.unasked}); this is the copy that was here"
        stderr.print(note, markup=False, soft_wrap=True)
    echo(found.path)
