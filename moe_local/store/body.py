"""A store's manifest as far as every reader needs it: there, sound and of this version. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_local.checkpoint.json_file import read_json
from moe_local.errors import CheckpointError

MANIFEST = "moe-local.json"
VERSION = 3
FIELDS = ("source", "made_by", "formats", "layers", "layer_of", "matrices", "dense", "headers", "files")


def is_store(directory: Path) -> bool:
    return (directory / MANIFEST).exists()


def again(directory: Path) -> str:
    """The remedy for a damaged store."""
    return f"delete {directory} and pack it again"


def read_body(directory: Path) -> dict[str, Any]:
    """What the manifest says. Raises CheckpointError when it is damaged, OutdatedError for one of another version."""
    file = directory / MANIFEST
    try:
        body = read_json(file)
    except CheckpointError as error:
        raise CheckpointError(error.message, remedy=again(directory)) from error
    if body.pop("digest", None) != digest(body):
        raise CheckpointError(f"{file} is damaged: its digest does not match", remedy=again(directory))
    if body.get("version") != VERSION:
        raise _of_another_version(directory, body)
    return body


def digest(body: Mapping[str, Any]) -> str:
    """64 hex digits that change when anything in the manifest does."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class OutdatedError(CheckpointError):
    """A store that another version of moe-local packed."""


def _of_another_version(directory: Path, body: Mapping[str, Any]) -> OutdatedError:
    source = body.get("source")
    name = source.get("name") if isinstance(source, dict) else None
    return OutdatedError(
        f"{directory} was packed by another version of moe-local (layout {body.get('version')!r}, not {VERSION})",
        remedy=f"pack it again: moe-local pack {shlex.quote(str(name or 'MODEL'))} -o {shlex.quote(str(directory))}",
    )
