"""No damaged file does harm: a few of each kind always, ten thousand with --slow."""

from __future__ import annotations

import sys
from random import Random

import pytest

from tests.fuzz.mutate import damaged, early, spoilt_json, spoilt_lines
from tests.fuzz.run import fuzz, plan_of
from tests.fuzz.targets import TARGETS

SHARES = {name: target.share for name, target in TARGETS.items()}
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is watched through /proc")


def test_the_same_seed_gives_the_same_damage() -> None:
    data = b'{"a": [1, {"b": "c"}]}\n' * 3
    for mutate in (damaged, early, spoilt_lines):
        assert [mutate(Random(n), data) for n in range(50)] == [mutate(Random(n), data) for n in range(50)]
    one = data.splitlines()[0]
    assert [spoilt_json(Random(n), one) for n in range(50)] == [spoilt_json(Random(n), one) for n in range(50)]
    assert len({spoilt_json(Random(n), one) for n in range(50)}) > 20


@linux
def test_a_few_of_each_kind() -> None:
    """Another seed than the slow test's: two runs see more."""
    shares = {name: share for name, share in SHARES.items() if name != "bombs"}
    figures = fuzz(plan_of(150, shares), seed=1)
    assert not figures.failures, "\n".join(figures.failures)
    assert {target for target, _ in figures.outcomes} == shares.keys()


@linux
@pytest.mark.slow
def test_ten_thousand() -> None:
    figures = fuzz(plan_of(10_000, SHARES), report=True)
    print(figures.text())
    assert not figures.failures, "\n".join(figures.failures)
