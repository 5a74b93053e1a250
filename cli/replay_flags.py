"""What `bench replay` is asked about a trace, as typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.policies import POLICIES
from moe_local.prediction import PREDICTORS
from moe_local.units import parse_share

from .workload import assert_some

if TYPE_CHECKING:
    from moe_local.bench.replay_report import Question


@dataclass(frozen=True)
class ReplayFlags:
    """Which tiers, policies and predictors are tried, on which machine."""

    capacity: Annotated[str, typer.Option(help="Shares of the experts that the fastest tier holds.")] = (
        "12.5%,25%,50%,75%"
    )
    policy: Annotated[
        str, typer.Option(help=f"A list of {', '.join(POLICIES)}, or all; Belady's optimum is always there.")
    ] = "all"
    scope: Annotated[str, typer.Option(help="layer: each layer has its share; global: all share one; or both.")] = (
        "layer"
    )
    host: Annotated[str | None, typer.Option(help="Share of the experts in a RAM tier below, like 80%.")] = None
    limit: Annotated[int | None, typer.Option(help="Use the first so many prompts.")] = None
    predictor: Annotated[
        str | None,
        typer.Option(
            help="Also how right these were about the next layer's experts:"
            f" a list of {', '.join(PREDICTORS)}, or all."
        ),
    ] = None
    profile: Annotated[
        str | None, typer.Option(help="Predict tokens/s on this machine (`moe-local doctor` lists them).")
    ] = None
    model: Annotated[
        str | None,
        typer.Option(help="Whose sizes to predict with, as in `moe-local plan`. Default: the trace's model."),
    ] = None

    def question(self) -> Question:
        """What was typed, understood. Raises MoeLocalError naming what is wrong."""
        from moe_local.bench.replay_report import Question

        question = Question(
            capacities=tuple(parse_share(share.strip()) for share in self.capacity.split(",")),
            policies=tuple(name.strip() for name in self.policy.split(",")),
            scopes=("layer", "global") if self.scope == "both" else (self.scope,),
            host=None if self.host is None else parse_share(self.host),
            predictors=() if self.predictor is None else tuple(name.strip() for name in self.predictor.split(",")),
            profile=self.profile,
            model=self.model,
        )
        assert_some(self.limit)
        return question
