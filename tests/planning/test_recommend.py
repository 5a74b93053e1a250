"""Which models suit a machine: in order, within what was measured, and with sizes that are the published ones."""

from __future__ import annotations

import pytest

from moe_local.planning.estimate import Estimate, estimate
from moe_local.planning.families import model_sizes
from moe_local.planning.known_models import find_sizes, shipped
from moe_local.planning.locality import get_locality
from moe_local.planning.machines import SYSTEM, Machine, get_profile, profiles
from moe_local.planning.recommend import READING, Verdict, published_bytes, recommend
from moe_local.planning.weights import Formats
from moe_local.units import GIB

CONTEXT = 4096


@pytest.mark.parametrize("name", list(profiles()))
def test_the_largest_that_are_fast_enough_come_first(name: str) -> None:
    found = recommend(Machine.of(get_profile(name)), CONTEXT)
    assert {each.sizes.name for each in found} == {known["name"] for known in shipped().values()}
    assert [each.verdict for each in found] == sorted(each.verdict for each in found)
    for verdict in Verdict:
        alike = [each.sizes.parameters for each in found if each.verdict is verdict]
        assert alike == sorted(alike, reverse=True)
    for each in found:
        if isinstance(each.outcome, Estimate):
            low, high = each.outcome.tokens_per_second
            assert (low >= READING) == (each.verdict is Verdict.FLUENT)
            assert (high < READING) == (each.verdict is Verdict.SLOW)
        else:
            assert each.verdict is Verdict.TOO_LARGE and each.outcome.remedy


def test_more_memory_makes_nothing_worse() -> None:
    small = Machine.of(get_profile("cpu-only"), ram=16 * GIB)
    verdicts = {each.sizes.name: each.verdict for each in recommend(small, CONTEXT)}
    for each in recommend(small.with_memory(ram=256 * GIB), CONTEXT):
        assert each.verdict <= verdicts[each.sizes.name]


def test_a_download_is_as_large_as_published() -> None:
    """`total_size` of each repository's model.safetensors.index.json, in 10^9 bytes."""
    for name, size in {
        "Qwen/Qwen3-30B-A3B": 61.1,
        "openai/gpt-oss-20b": 13.8,
        "openai/gpt-oss-120b": 65.3,
        "mistralai/Mixtral-8x7B-Instruct-v0.1": 93.4,
        "deepseek-ai/DeepSeek-V3": 688.6,
    }.items():
        assert published_bytes(find_sizes(name)) / 1e9 == pytest.approx(size, rel=0.03), name


# RAM held to a share of 4.62 GiB (None: everything fits), and tokens/s; see docs/measured.md.
MEASURED = [(None, 35.7), (0.75, 23.0), (0.5, 18.0), (0.35, 12.9)]


@pytest.mark.parametrize(("share", "speed"), MEASURED)
def test_its_range_holds_what_was_measured(share: float | None, speed: float) -> None:
    """12 layers of Qwen3-30B-A3B on two cores: 32 GB/s of memory, a disk of 1.5 to 2.4 GB/s."""
    config = {**shipped()["qwen/qwen3-30b-a3b"]["config"], "num_hidden_layers": 12}
    process = 0.45 * GIB  # the system is outside the control group, and not counted in it
    ram = 24 * GIB if share is None else int(4.62 * GIB * share - process) + SYSTEM
    machine = Machine("measured", "", ram, None, memory_bandwidth=32, pcie_bandwidth=0, disk_bandwidth=2.0)
    sizes = model_sizes(config, "12 layers", "config.json")
    low, high = estimate(
        sizes, machine, Formats(dense="int4"), 1024, get_locality("deepseek-v2-lite")
    ).tokens_per_second
    assert low <= speed <= high
