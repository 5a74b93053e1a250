"""Where a model's configuration is on this machine, or comes from with moe-local: nothing is fetched."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from moe_local.bench.sizes import ModelSizes, model_sizes, short
from moe_local.checkpoint.json_file import read_json
from moe_local.errors import CheckpointError, UnsupportedError

_LARGEST_FILE = 1 << 24  # bytes: the longest published config.json has some thousands
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def find_sizes(model: str) -> ModelSizes:
    """The sizes of a model by name, without network: a directory (checkpoint or store), a config.json, a hub id
    whose config.json is in the Hugging Face cache, or one of `shipped()`.

    Raises CheckpointError for what is not here or damaged, UnsupportedError for other architectures.
    """
    if (file := _local(model)) is not None:
        return model_sizes(read_config(file), model, str(file))
    described = shipped().get(model.lower())
    if described is not None:
        return model_sizes(described["config"], described["name"], f"{described['name']}'s configuration")
    raise CheckpointError(
        f"{short(model)} is not here",
        remedy="`moe-local pull` downloads a model; or give a config.json, or one of"
        f" {', '.join(known['name'] for known in shipped().values())}",
    )


def _local(model: str) -> Path | None:
    """The config.json that a model's name leads to; None if there is none on this machine."""
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path / "config.json"
        if path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):  # no name that a file could have
        return None
    return _cached(model) if _REPO.fullmatch(model) else None


def _cached(repo: str) -> Path | None:
    """A hub id's config.json in the Hugging Face cache, of its main branch or else of any revision."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    main = folder / "refs" / "main"
    revision = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    candidates = [folder / "snapshots" / revision / "config.json"] if _REPO.fullmatch(f"x/{revision}") else []
    candidates += sorted(folder.glob("snapshots/*/config.json"))
    return next((file for file in candidates if file.is_file()), None)


def read_config(file: Path) -> dict[str, Any]:
    """The object in a config.json. Raises CheckpointError naming the file."""
    if file.suffix == ".gguf":
        raise UnsupportedError(
            f"{file} is a GGUF file", remedy="`moe-local inspect` plans those; or give a config.json"
        )
    if file.is_file() and file.stat().st_size > _LARGEST_FILE:
        raise CheckpointError(f"{file} is too large for a configuration", remedy="give a config.json")
    return read_json(file)


def shipped() -> dict[str, dict[str, Any]]:
    """The configurations that come with moe-local, by hub id in lower case: name, sources, config (only the fields
    that sizes follow from), billions (of parameters, as published)."""
    folder = files("moe_local.hardware") / "models"
    found = [
        json.loads(entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if entry.name.endswith(".json")
    ]
    return {content["name"].lower(): content for content in sorted(found, key=lambda content: str(content["name"]))}
