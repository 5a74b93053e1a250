"""What else a request may say of its next tokens, beside how they are sampled: penalties, biases, grammars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from moe_local.generation.batch.choice import Choice


class Matcher(Protocol):
    """Follows one answer, and says what may come next."""

    def mask(self, scores: Tensor) -> Tensor:
        """Scores [V] with -inf where a token may not follow. Raises MoeLocalError where the answer cannot be
        followed.
        """

    def accept(self, token: int) -> None:
        """This token came."""


class Constraint(Protocol):
    """What an answer has to be like."""

    def begin(self) -> Matcher:
        """For an answer of which there is nothing yet."""


@dataclass(frozen=True)
class Steering:
    """Penalties (OpenAI's: subtracted from the scores of tokens that the answer has, once and for each time), biases
    added to tokens' scores, the number of likeliest tokens that each choice is told with, and a constraint.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # None: not told; 0: of the chosen token alone
    constraint: Constraint | None = None

    @property
    def idle(self) -> bool:
        """Whether it changes no choice."""
        return not (self.presence_penalty or self.frequency_penalty or self.logit_bias or self.constraint)


@dataclass(frozen=True)
class TokenChoice:
    """A token of an answer with its log probability by the model, and those of the likeliest, the first first."""

    token: int
    logprob: float
    likeliest: Sequence[tuple[int, float]] = ()


class SteeredChoice:
    """Chooses by what is left of the scores."""

    def __init__(self, choice: Choice, steering: Steering) -> None:
        self._choice = choice
        self._steering = steering
        self._counts: Counter[int] = Counter()
        self._matcher = steering.constraint.begin() if steering.constraint is not None else None

    @property
    def plain(self) -> bool:
        """Whether it is the likeliest token, whatever came before."""
        return self._choice.plain and self._steering.idle

    def __call__(self, ids: Sequence[int], scores: Tensor) -> int:
        """The next token after `ids`, of logits [V] float32. Raises MoeLocalError where none may follow."""
        if self._steering.idle:
            return self._choice(ids, scores)
        only = None if self._matcher is None else self._matcher.mask
        token = self._choice(ids, self._steered(scores), only)
        self._counts[token] += 1
        if self._matcher is not None:
            self._matcher.accept(token)
        return token

    def _steered(self, scores: Tensor) -> Tensor:
        scores = scores.clone()
        asked = self._steering
        for token, bias in asked.logit_bias.items():
            scores[token] += bias
        if self._counts and (asked.presence_penalty or asked.frequency_penalty):
            tokens = torch.tensor(list(self._counts), device=scores.device)
            counts = torch.tensor(list(self._counts.values()), dtype=scores.dtype, device=scores.device)
            scores[tokens] -= asked.presence_penalty + asked.frequency_penalty * counts
        return scores


def told(token: int, scores: Tensor, count: int) -> TokenChoice:
    """A chosen token with its log probability, and those of the `count` likeliest, by logits [V] float32."""
    logprobs = scores.log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    likeliest = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenChoice(token, float(logprobs[token]), likeliest)
