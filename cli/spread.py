"""A command's parameters as typer wants them: classes of flags spread out, MODEL also as an option."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from .failure import UsageError
from .options import ModelOption

_OPTION, _WORDS = "named_model", "words"  # parameters: --model, and the words of a prompt


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a class of flags replaced by an option for each of its fields.

    One that takes a MODEL takes it as --model, too.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    typed = inspect.signature(command).parameters
    parameters = [
        parameter
        for name, given in typed.items()
        for parameter in (_fields(groups[name]) if name in groups else [given.replace(annotation=hints[name])])
    ]
    takes_model = "model" in typed
    if takes_model:
        parameters = _with_model_option(parameters)

    def run(**given: Any) -> None:
        if takes_model:
            _take_model(given, needed=typed["model"].default is inspect.Parameter.empty)
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run


def _with_model_option(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """The parameters with a MODEL that may be left out, and --model."""
    option = inspect.Parameter(_OPTION, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ModelOption)
    optional = [each.replace(default=None) if each.name == "model" else each for each in parameters]
    return [*(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in optional), option]


def _take_model(given: dict[str, Any], *, needed: bool) -> None:
    """Puts what --model says into MODEL's place; what stood there is then the first word of a prompt.

    Raises UsageError where there are two, or none though one is `needed`.
    """
    named, word = given.pop(_OPTION), given["model"]
    if named is not None:
        given["model"] = named
        if word is not None and _WORDS not in given:
            raise UsageError(f"both {word} and --model {named} were given", remedy="give one of them")
        if word is not None:
            given[_WORDS] = [word, *(given[_WORDS] or [])]
    if needed and given["model"] is None:
        raise UsageError("there is no MODEL", remedy="name one; `moe-local list` shows those that are here")


def _fields(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(kind)
    ]
