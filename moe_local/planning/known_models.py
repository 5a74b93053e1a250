"""Where a model's configuration is on this machine, or comes from with moe-local: nothing is fetched."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from moe_local.checkpoint.json_file import read_json
from moe_local.checkpoint.names import HubName, parse_hub_name
from moe_local.errors import CheckpointError, UnsupportedError
from moe_local.planning.config_fields import short
from moe_local.planning.families import model_sizes
from moe_local.planning.sizes import ModelSizes
from moe_local.registry import choice
from moe_local.store.known import known_models
from moe_local.store.short_names import find_model, matching

_LARGEST_FILE = 1 << 24  # bytes: the longest published config.json has some thousands


def find_sizes(model: str) -> ModelSizes:
    """The sizes of a model by name, without network: a directory (checkpoint or store), a config.json, a hub id
    whose config.json is in the Hugging Face cache, or one of `shipped()`.

    Raises CheckpointError for what is not here or damaged, UnsupportedError for other architectures.
    """
    if (file := _local(model)) is not None:
        return model_sizes(read_config(file), model, str(file))
    if (described := _shipped(model)) is not None:
        return model_sizes(described["config"], described["name"], f"{described['name']}'s configuration")
    if parse_hub_name(model) is None and (here := matching(model, known_models())):
        return find_sizes(str(find_model(model) if len(here) > 1 else here[0].where))
    names = shipped_names()
    raise CheckpointError(
        f"{short(model)} is not here",
        remedy=choice(model, names, "`moe-local pull` downloads a model; or give a config.json, or one of"),
    )


def shipped_names() -> list[str]:
    """Hub ids of the models whose configurations come with moe-local."""
    return [known["name"] for known in shipped().values()]


def _shipped(model: str) -> dict[str, Any] | None:
    """What comes with moe-local of a hub's model; also by its name without an owner, or by the beginning of that.

    Raises CheckpointError where several begin so.
    """
    name, known = parse_hub_name(model), shipped()
    if name is not None:
        return known.get(name.repo.lower())
    begun = model.lower()
    called = [each for each in known if each.rpartition("/")[2] == begun]
    found = called or [each for each in known if begun and each.rpartition("/")[2].startswith(begun)]
    if len(found) > 1:
        raise CheckpointError(
            f"{model} may be {' or '.join(known[each]['name'] for each in found)}", remedy="write more of the name"
        )
    return known[found[0]] if found else None


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
    name = parse_hub_name(model)
    return _cached(name) if name else None


def _cached(name: HubName) -> Path | None:
    """A hub model's config.json in the Hugging Face cache, of the revision asked for, else of main, else of any; or
    a GGUF file of it."""
    from huggingface_hub import constants, try_to_load_from_cache

    if name.quant is None and not name.path:
        found = try_to_load_from_cache(name.repo, "config.json", revision=name.revision)
        if isinstance(found, str):
            return Path(found)
    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}" / "snapshots"
    candidates = [*sorted(snapshots.glob("*/config.json")), *sorted(snapshots.glob("*/**/*.gguf"))]
    return next((file for file in candidates if name.revision is None and file.is_file()), None)


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
