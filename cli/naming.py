"""Help pages that say what there is to choose from, as the registries have it when a page is shown.

Policies and predictors need numpy: a help text has a placeholder for their names, and other commands never import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand

POLICIES = "{policies}"
PREDICTORS = "{predictors}"


class NamingCommand(TyperCommand):
    """A command whose options' help may have placeholders for names."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for option in self.params:
            text = getattr(option, "help", None) or ""
            for placeholder, names in _NAMES.items():
                if placeholder in text:
                    text = text.replace(placeholder, ", ".join(names()))
                    vars(option)["help"] = text
        super().format_help(ctx, formatter)


def _policies() -> list[str]:
    from moe_local.policies import POLICIES

    return list(POLICIES)


def _predictors() -> list[str]:
    from moe_local.prediction import PREDICTORS

    return list(PREDICTORS)


_NAMES: dict[str, Callable[[], list[str]]] = {POLICIES: _policies, PREDICTORS: _predictors}
