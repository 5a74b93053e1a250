"""RAM that is page-locked for a device: our own mapping, in pieces, as far as the system goes along."""

from __future__ import annotations

import pytest
import torch

from moe_local.memory import slab as slabs
from moe_local.memory.accelerator import Accelerator
from moe_local.memory.pinned import host_slab
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
GPU = Accelerator(torch.device("cuda", 0))
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_PIECE", 4 * MIB)


def _is_pinned(gpu, tensor: torch.Tensor) -> bool:
    return gpu.streams.is_pinned((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes))


@pytest.mark.parametrize("slot_size", [4096, 3 * MIB, 12345, MIB // 2 + 512])
def test_all_of_it_and_no_byte_more(slot_size: int) -> None:
    said: list[str] = []
    with pretend_cuda() as gpu:
        slab = host_slab(20, slot_size, GPU, said.append)
        assert not said
        assert gpu.pinned_bytes == slab.nbytes == 20 * slot_size
        assert all(_is_pinned(gpu, slab[slot]) for slot in range(20))
        assert all(address % 4096 == 0 for address in gpu.streams.pinned)
        assert slab.is_pinned
        with gpu.watch() as seen:
            slab.close()
        assert seen.syncs == 1  # kernels may be reading it
        assert not gpu.streams.pinned and not slab.is_pinned


def test_it_stops_where_the_system_refuses() -> None:
    said: list[str] = []
    with pretend_cuda(pinnable=9 * MIB) as gpu:
        slab = host_slab(20, MIB, GPU, said.append)
        assert gpu.pinned_bytes == 8 * MIB
        assert [_is_pinned(gpu, slab[slot]) for slot in range(20)] == [True] * 8 + [False] * 12
        assert not slab.is_pinned
        assert "8 MiB of 20 MiB" in said[0] and "slower" in said[0]
        torch.ones(1, device="cuda")  # the refusal was not left to whoever computes next
        slab.close()
        assert not gpu.streams.pinned


def test_a_machine_that_locks_nothing() -> None:
    said: list[str] = []
    with pretend_cuda(pinnable=0) as gpu:
        slab = host_slab(4, MIB, GPU, said.append)
        assert gpu.pinned_bytes == 0 and len(said) == 1
        slab.memory(3)[:] = bytes(MIB)
        slab.close()


def test_a_cpu_needs_none() -> None:
    said: list[str] = []
    host_slab(4, MIB, Accelerator(torch.device("cpu")), said.append).close()
    assert not said
