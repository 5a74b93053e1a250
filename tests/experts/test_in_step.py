"""Passes in step: what each gives is what it gives alone, and whatever ends one ends all or itself only."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_local.experts.in_step import InStep, lane

OTHERS: ContextVar[str] = ContextVar("others", default="")
NOBODY = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)


class Layer:
    """Multiplies, and writes down how many tokens came together."""

    def __init__(self, factor: int, fails: BaseException | None = None) -> None:
        self.factor = factor
        self.fails = fails
        self.seen: list[int] = []

    def run(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        assert len(hidden) == len(index) == len(weights)
        self.seen.append(len(hidden))
        if self.fails is not None:
            raise self.fails
        return hidden * self.factor + index + weights


def through(step: InStep, layers: list[Layer], start: int, tokens: int, times: int = 1) -> Callable[[], list[float]]:
    """A pass of so many tokens that goes `times` through the layers."""

    def go() -> list[float]:
        hidden = torch.full((tokens, 2), float(start))
        index, weights = torch.arange(tokens)[:, None], torch.full((tokens, 1), 0.5)
        for _ in range(times):
            for layer in layers:
                hidden = step.through(layer, hidden, index, weights) % 101
        return hidden[:, 0].tolist()

    return go


PASSES = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=4)


@given(PASSES, st.integers(1, 4))
def test_each_gives_what_it_gives_alone(passes: list[tuple[int, int, int]], count: int) -> None:
    step, layers = InStep(), [Layer(number + 2) for number in range(count)]
    works = [through(step, layers, *each) for each in passes]
    alone = [work() for work in works]
    for layer in layers:
        layer.seen.clear()
    assert step.run(works) == alone
    longest = max(times for _, _, times in passes)
    for layer in layers:  # everybody who goes through it that often, at once
        assert layer.seen == [sum(tokens for _, tokens, times in passes if times > turn) for turn in range(longest)]
    assert lane() == 0 and step.tokens(7) == 7


def test_what_strikes_all_is_of_all() -> None:
    step, layers = InStep(), [Layer(2), Layer(3, OSError("the disk"))]
    first, second = step.run([through(step, layers, 1, 2), through(step, layers, 2, 3)])
    assert isinstance(first, OSError) and first is second
    assert layers[1].seen == [5]
    layers[1].fails = None
    assert step.run([through(step, layers, 1, 2)]) == [through(step, layers, 1, 2)()]


def test_what_strikes_one_leaves_the_others() -> None:
    step, layers = InStep(), [Layer(2), Layer(3)]

    def fail() -> list[float]:
        step.through(layers[0], torch.ones(1, 2), *NOBODY)
        raise ValueError("its own")

    found = step.run([fail, through(step, layers, 2, 3)])
    assert isinstance(found[0], ValueError)
    assert found[1] == through(step, layers, 2, 3)()
    assert [layer.seen[0] for layer in layers] == [4, 3]


@pytest.mark.parametrize("where", ["layer", "pass"])
def test_an_interrupt_ends_all_and_is_raised(where: str) -> None:
    step, layers, ended = InStep(), [Layer(2), Layer(3)], []
    if where == "layer":
        layers[1].fails = KeyboardInterrupt()

    def one(number: int) -> None:
        try:
            for layer in layers:
                step.through(layer, torch.ones(1, 2), *NOBODY)
                if where == "pass" and number == 1:
                    raise KeyboardInterrupt
        finally:
            ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        step.run([lambda: one(0), lambda: one(1), lambda: one(2)])
    assert sorted(ended) == [0, 1, 2]
    layers[1].fails = None
    assert step.run([through(step, layers, 1, 2)]) == [through(step, layers, 1, 2)()]


def test_a_pass_has_its_lane_and_what_was_set_before() -> None:
    step, layer, seen = InStep(), Layer(1), []
    OTHERS.set("before")

    def one() -> None:
        for _ in range(2):
            seen.append((lane(), OTHERS.get(), step.tokens(lane())))
            step.through(layer, torch.ones(1, 2), *NOBODY)

    step.run([one, one])
    assert seen == [(1, "before", 1), (2, "before", 3), (1, "before", 3), (2, "before", 3)]


def test_settings_of_torch_are_as_they_were() -> None:
    step, layer = InStep(), Layer(1)

    @torch.inference_mode()
    def one(times: int) -> bool:
        for _ in range(times):
            step.through(layer, torch.ones(1, 2), *NOBODY)
            assert torch.is_inference_mode_enabled()
        return torch.is_inference_mode_enabled()

    assert step.run([lambda: one(1), lambda: one(3)]) == [True, True]
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
