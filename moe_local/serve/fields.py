"""What requests of several protocols have in common: strict bodies, sampling, messages.

A field that is not known is refused by its name, and so is a value that would have to be ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from moe_local.errors import MoeLocalError
from moe_local.generation.batch.steering import Steering
from moe_local.generation.json_values import assert_json
from moe_local.generation.sampling import Sampling
from moe_local.generation.template_settings import EFFORTS, thinking
from moe_local.serve.errors import NOT_FOUND, RefusedError
from moe_local.serve.settings import Names

MOST_STOPS = 16
_LOWEST = 5e-3  # a temperature below is greedy


class Strict(BaseModel):
    """A body, or a part of one, that has nothing but what is named."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        """Clients send fields that are not known here as null: that says nothing."""
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: each for key, each in value.items() if each is not None or key in known}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    assert_json(value)
    return value


Json = Annotated[dict[str, Any], AfterValidator(_shallow)]  # whose fields are not ours
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]], BeforeValidator(_listed), Field(max_length=MOST_STOPS)
]
Tokens = Annotated[int, Field(ge=1, le=1 << 40)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class SamplingFields(Strict):
    """How tokens are chosen: OpenAI's names, and those that local servers add."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    top_k: Annotated[int, Field(ge=0, le=1 << 30)] | None = Field(None, description="Of local servers.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Of local servers.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(None, description="Of local servers.")

    def sampling(self, most: int | None) -> Sampling:
        """Of at `most` so many tokens."""
        return sampling(
            max_new_tokens=most,
            temperature=steady(self.temperature),
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop or ()),
        )

    def steering(self, vocabulary: int, logprobs: int | None) -> Steering:
        """Of a model with so many tokens. Raises RefusedError for a bias of what is no token."""
        return Steering(
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self._biases(vocabulary),
            logprobs=logprobs,
        )

    def _biases(self, vocabulary: int) -> dict[int, float]:
        """Token -> bias. Raises RefusedError for what is no token."""
        found = {}
        for key, bias in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocabulary):
                raise RefusedError(
                    400, f"{key!r} is no token of the model, which has {vocabulary}", param="logit_bias"
                )
            found[int(key)] = bias
        return found


def steady(temperature: float | None) -> float | None:
    """Greedy where it is so low that it is meant to be."""
    return 0.0 if temperature is not None and temperature < _LOWEST else temperature


def sampling(**given: Any) -> Sampling:
    """Raises RefusedError for what makes no sense."""
    try:
        return Sampling(**given)
    except MoeLocalError as error:
        raise RefusedError(400, str(error)) from error


class StreamOptions(Strict):
    """What is said in a stream beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="Nothing is padded here, and nothing has to be.")


class Unused(Strict):
    """Fields that clients send and that change nothing about an answer."""

    user: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = Field(None, description="What was computed is found by its tokens.")


def assert_named(names: Names, asked: str | None) -> None:
    """Raises RefusedError for a model that is not the one that is here."""
    if asked is not None and not names.known(asked):
        raise RefusedError(
            404,
            f"the model {asked[:200]!r} is not here: {', '.join(names.listed)} is (--alias gives it another name)",
            kind=NOT_FOUND,
            param="model",
            code="model_not_found",
        )


def template_variables(effort: str | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the chat template is told of how much to reason, and whatever else a client says."""
    levels = {"none": "off", "minimal": "low", "xhigh": "high", "max": "high", **{each: each for each in EFFORTS}}
    return {**(thinking(levels[effort]) if effort is not None else {}), **(given or {})}
