"""What transformers' `generate` is handed, so that an answer comes out as it is made.

`TokenStream` takes each token, and `Halt` ends it at a stop string or an interrupt, which ends reading a prompt too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from moe_local.experts.layer import ExpertLayer
from moe_local.generation.stream import AnswerStream
from moe_local.telemetry import Counting


class TokenStream(BaseStreamer):  # type: ignore[misc]
    """What `generate` hands its tokens to: the prompt first, then one at a time."""

    def __init__(self, answer: AnswerStream, counters: Counting) -> None:
        self.answer = answer
        self._prompt_seen = False
        self._counters = counters
        self.counters_before = self.counters_at_first_token = counters.snapshot()
        self.token_times: list[float] = []  # seconds of `perf_counter`, as all times here
        self.began = perf_counter()
        self.on_first: Callable[[], None] = lambda: None  # called at the answer's first token

    @property
    def first_token_at(self) -> float:
        """When the answer's first token came; when it began, where none did."""
        return self.token_times[0] if self.token_times else self.began

    def put(self, value: Tensor) -> None:
        """Called by `generate`: the prompt [1, T] the first time, then each token [1] of the answer."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.token_times.append(perf_counter())
        if len(self.token_times) == 1:
            self.on_first()
            self.counters_at_first_token = self._counters.snapshot()
        self.answer.add(int(value))

    def end(self) -> None:
        """Called by `generate` at its end."""
        self.answer.end()


class ReadingInterruptedError(Exception):
    """The user asked for an end while the prompt was being read."""


class Halt(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation at a stop string or when the user asks."""

    def __init__(self, answer: AnswerStream, event: threading.Event) -> None:
        self.answer = answer
        self._event = event
        self.interrupted = False

    @contextmanager
    def ends_reading(self, model: nn.Module, stream: TokenStream) -> Iterator[None]:
        """Inside, until the first token, each layer's experts raise ReadingInterruptedError where the user asks."""

        def look(*_: Any) -> None:
            if self._event.is_set():
                self.interrupted = True
                raise ReadingInterruptedError

        hooks = [
            module.register_forward_pre_hook(look) for module in model.modules() if isinstance(module, ExpertLayer)
        ]

        def forget() -> None:
            while hooks:
                hooks.pop().remove()

        stream.on_first = forget
        try:
            yield
        finally:
            forget()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.interrupted = self._event.is_set()
        done = self.interrupted or self.answer.pending_stop()
        return torch.full((input_ids.shape[0],), done, device=input_ids.device)
