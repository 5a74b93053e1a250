"""The pretend Metal device says and refuses what Metal's would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from moe_local.memory.accelerator import find, is_out_of_memory, out_of_memory
from moe_local.testing.pretend_mps import PretendMps, can_pretend, pretend_mps
from moe_local.units import MIB

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has devices of its own")


@pytest.fixture
def gpu() -> Iterator[PretendMps]:
    with pretend_mps(memory=64 * MIB, largest=40 * MIB) as device:
        yield device


def test_it_says_that_it_is_one_and_computes_as_the_cpu_does(gpu: PretendMps) -> None:
    layer, x = torch.nn.Linear(8, 8), torch.randn(4, 8)
    wanted = layer(x).softmax(-1)
    found = layer.to("mps")(x.to("mps")).softmax(-1)
    assert {found.device, torch.zeros(2, device="mps").device} == {torch.device("mps", 0)}
    assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.float8_e8m0fnu])
def test_it_does_not_know_every_type(gpu: PretendMps, dtype: torch.dtype) -> None:
    numbers = torch.ones(4).to(dtype)
    with pytest.raises(TypeError, match="no numbers of"):
        numbers.to("mps")
    there = torch.zeros(32, dtype=torch.uint8, device="mps").view(dtype)
    with pytest.raises(TypeError, match="no numbers of"):
        there.to(torch.float32)


def test_it_gives_no_buffer_that_is_too_large_and_no_more_than_there_is(gpu: PretendMps) -> None:
    with pytest.raises(RuntimeError, match="Invalid buffer size"):
        torch.empty(41 * MIB, dtype=torch.uint8, device="mps")
    held = torch.empty(40 * MIB, dtype=torch.uint8, device="mps")
    assert find("mps").memory() == (24 * MIB, 64 * MIB)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(32 * MIB, dtype=torch.uint8, device="mps")
    assert is_out_of_memory(caught.value)
    said = out_of_memory(caught.value)
    assert said.minimum == held.nbytes and "mps: 24 MiB of 64 MiB free" in str(said)


@pytest.mark.parametrize(("macos", "known"), [(13, False), (14, True)])
def test_bfloat16_came_with_a_release_of_macos(macos: int, known: bool) -> None:
    with pretend_mps(macos=macos):
        assert find("mps").computes_bfloat16 == known
