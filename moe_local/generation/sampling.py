"""How the next token is chosen, in transformers' terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe_local.errors import MoeLocalError

_SMALLEST, _HOTTEST = 1e-4, 1e4


@dataclass(frozen=True)
class Sampling:
    """Options of one generation. None leaves the model's own default (its `generation_config.json`).

    `temperature` 0 is greedy. `seed` makes sampling repeatable. Generation ends before any of `stop` appears.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _within("--max-new-tokens", self.max_new_tokens, 1, None)
        _within("--temperature", self.temperature, 0, _HOTTEST)
        _within("--top-p", self.top_p, 0, 1)
        _within("--top-k", self.top_k, 0, None)
        _within("--min-p", self.min_p, 0, 1)
        _within("--repetition-penalty", self.repetition_penalty, _SMALLEST, None)
        _within("--seed", self.seed, -(2**63), 2**63 - 1)
        if "" in self.stop:
            raise MoeLocalError("an empty stop string would stop at once", remedy="leave it out")

    def for_transformers(self) -> dict[str, Any]:
        """Keyword arguments for `GenerationMixin.generate`."""
        chosen = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        given = {name: value for name, value in chosen.items() if value is not None}
        if self.temperature is not None and self.temperature < _SMALLEST:  # dividing by it would overflow
            greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "min_p": None}
            return {**greedy, **({"repetition_penalty": p} if (p := self.repetition_penalty) else {})}
        if given.keys() - {"repetition_penalty"}:
            given["do_sample"] = True
        return given


def _within(option: str, value: float | None, low: float, high: float | None) -> None:
    if value is not None and not (low <= value and (high is None or value <= high)):
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise MoeLocalError(f"{option} {value} is not {span}")
