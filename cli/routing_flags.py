"""What `bench routing` is asked, as typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.bench.strategies import STRATEGIES
from moe_local.errors import MoeLocalError
from moe_local.units import parse_share

from .bench_output import OUTPUT

if TYPE_CHECKING:
    from moe_local.bench.routing_report import RoutingQuestion


@dataclass(frozen=True)
class RoutingFlags:
    """Which strategies are compared, on which text."""

    text: Annotated[
        Path | None, typer.Option("--text", "-f", help="A UTF-8 text to route. Default: eight prompts of ours.")
    ] = None
    tokens: Annotated[int, typer.Option(help="Use so many tokens of it.")] = 1024
    strategy: Annotated[str, typer.Option(help=f"A list of {', '.join(STRATEGIES)}, or all.")] = "all"
    batch: Annotated[
        int, typer.Option(help="Tokens that are routed together, where a strategy looks at several.")
    ] = 64
    capacity: Annotated[str, typer.Option(help="Shares of the experts that the fastest tier holds.")] = (
        "12.5%,25%,50%"
    )
    save: Annotated[
        Path | None, typer.Option(help="Keep the scores in this file, for another time.", rich_help_panel=OUTPUT)
    ] = None

    def question(self, policy: str) -> RoutingQuestion:
        """What was typed, understood, with the hits under one `policy`. Raises MoeLocalError naming what is wrong."""
        from moe_local.bench.routing_report import RoutingQuestion

        if self.tokens < 2:
            raise MoeLocalError(f"--tokens {self.tokens} are too few to route", remedy="give at least 2")
        question = RoutingQuestion(
            strategies=_list(self.strategy),
            batch=self.batch,
            capacities=tuple(parse_share(share) for share in _list(self.capacity)),
            policies=(policy,),
        )
        assert question.chosen
        return question


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))
