"""How often a cache of a given size has the expert that is asked for: measured curves, and which fits a model."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.planning.machines import LOCALITIES
from moe_local.registry import named

UNIFORM = "uniform"


@dataclass(frozen=True)
class Locality:
    """Hit rates `hits` at the capacity shares `shares` of a model with `experts` a layer, `top_k` of them a token.

    Both rise, within 0 and 1. Raises MoeLocalError where they do not.
    """

    name: str
    experts: int
    top_k: int
    shares: tuple[float, ...]
    hits: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        points = [(0.0, 0.0), *zip(self.shares, self.hits, strict=False), (1.0, 1.0)]
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
        if not rising or len(self.shares) != len(self.hits) or not 0 < self.top_k <= self.experts:
            raise MoeLocalError(f"locality {self.name} is no curve of hit rates that rises from (0, 0) to (1, 1)")

    def hit_rate(self, share: float) -> float:
        """The share of requests that a cache of `share` of each layer's experts has: straight between points."""
        points = [(0.0, 0.0), *zip(self.shares, self.hits, strict=True), (1.0, 1.0)]
        for (x0, y0), (x1, y1) in pairwise(points):
            if share <= x1:
                return y0 + (y1 - y0) * max(0.0, share - x0) / (x1 - x0)
        return 1.0


_UNIFORM = Locality(UNIFORM, 1, 1, (), (), "every expert as likely as any other: what a cache gains by size alone")


@cache
def localities() -> dict[str, Locality]:
    """The shipped curves by name, and the pessimistic one, on which the hit rate is the capacity share."""
    text = (files("moe_local.hardware") / LOCALITIES).read_text(encoding="utf-8")
    curves: Mapping[str, Mapping[str, Any]] = tomllib.loads(text)
    measured = {name: _parse(name, curve) for name, curve in curves.items()}
    return {**measured, UNIFORM: _UNIFORM}


def _parse(name: str, curve: Mapping[str, Any]) -> Locality:
    try:
        return Locality(name, **{**curve, "shares": tuple(curve["shares"]), "hits": tuple(curve["hits"])})
    except (TypeError, KeyError) as error:
        raise MoeLocalError(f"locality {name} of {LOCALITIES} does not have the fields of a locality") from error


def get_locality(name: str) -> Locality:
    """Raises MoeLocalError naming the known ones."""
    return named(localities(), name, "locality", others=("auto",))


def nearest(experts: int, top_k: int) -> Locality:
    """The measured curve of the most similar model: by the share of experts that a token needs, then by count."""

    def distance(curve: Locality) -> tuple[float, float]:
        ratio = (top_k / experts) / (curve.top_k / curve.experts)
        return abs(math.log(ratio)), abs(math.log(experts / curve.experts))

    return min((curve for curve in localities().values() if curve.name != UNIFORM), key=distance)
