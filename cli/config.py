"""Settings that hold for every run: a TOML file, and an environment variable for every option.

What is typed goes before the environment, that before the file's part for the model, that before its defaults.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_local.registry import meant

from .failure import UsageError

VARIABLE = "MOE_LOCAL_CONFIG"  # names another file
_MOST = 1 << 20  # bytes
_DEFAULTS, _MODELS = "defaults", "models"
_LISTED = "`moe-local config --all` lists what can be set"
_NOT_SET = frozenset({"help", "version", "debug", "json", "yes", "model"})  # options that are of one command line


@dataclass(frozen=True)
class Setting:
    """A value that holds unless another is typed, and where it comes from."""

    name: str  # of the option, like max-new-tokens
    value: Any
    source: str


def config_file() -> Path:
    """Where the settings are, or would be."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    from platformdirs import user_config_path

    return user_config_path("moe-local", appauthor=False) / "config.toml"


def variable(option: str) -> str:
    """The environment variable of an option."""
    return "MOE_LOCAL_" + option.replace("-", "_").upper()


def option_of(parameter: Any) -> str | None:
    """An option's own name without its hyphens; None for what is no option, or cannot be set beforehand."""
    if parameter.param_type_name != "option":
        return None
    own = f"--{parameter.name.replace('_', '-')}"
    name = (own if own in parameter.opts else max(parameter.opts, key=len)).lstrip("-")
    return None if name in _NOT_SET else name


def from_file(model: str | None, known: Iterable[str]) -> list[Setting]:
    """What the file says for a model; of two for one option the later holds. `known` are all options that there are.

    Raises UsageError naming the file for one that cannot be read, or says what nobody understands.
    """
    file = config_file()
    content = _read(file)
    if strange := next((name for name in content if name not in (_DEFAULTS, _MODELS)), None):
        raise UsageError(f"{file} has a part {strange!r}", remedy=f"it has [{_DEFAULTS}] and [{_MODELS}.NAME]")
    found = _settings(content.get(_DEFAULTS, {}), f"{file} [{_DEFAULTS}]", known)
    models = content.get(_MODELS, {})
    if not isinstance(models, Mapping):
        raise UsageError(f"{file}: {_MODELS} is no table", remedy=f"write [{_MODELS}.NAME] and settings below it")
    for name, table in models.items():
        settings = _settings(table, f'{file} [{_MODELS}."{name}"]', known)
        if model is not None and model.lower() in (name.lower(), name.lower().rpartition("/")[2]):
            found += settings
    return found


def from_environment(options: Iterable[str]) -> list[Setting]:
    """The options that have an environment variable."""
    names = {name: variable(name) for name in options}
    return [Setting(name, os.environ[held], held) for name, held in names.items() if held in os.environ]


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MOST:
            raise UsageError(f"{file} is too large for settings", remedy="check its name")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if os.environ.get(VARIABLE):
            raise UsageError(f"{file}, which {VARIABLE} names, is not there", remedy=f"unset {VARIABLE}") from None
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", remedy="check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not TOML ({error})", remedy="correct it") from error


def _settings(table: Any, source: str, known: Iterable[str]) -> list[Setting]:
    if not isinstance(table, Mapping):
        raise UsageError(f"{source} is no table", remedy="write settings below it, like context = 8192")
    found = []
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in known:
            raise UsageError(f"{source} sets {key}, which no command has", remedy=meant(name, known) or _LISTED)
        if isinstance(value, Mapping):
            raise UsageError(f"{source} gives {key} a table", remedy=f"write {key} = VALUE")
        found.append(Setting(name, value, source))
    return found
