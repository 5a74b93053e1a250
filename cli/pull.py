"""`moe-local pull`: a model from the hub into the local cache."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    repo: Annotated[str, typer.Argument(help="A hub id like Qwen/Qwen3-30B-A3B.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit. Default: the newest.")] = None,
) -> None:
    """Download what is needed to run a model, and print where it is.

    Takes safetensors, configuration and tokenizer only. Run it again after an interruption: it resumes. Set HF_TOKEN
    for gated models.
    """
    from moe_local.checkpoint.hub import pull as pull_model

    typer.echo(pull_model(repo, revision=revision))
