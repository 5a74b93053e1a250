"""Names of devices, right and wrong."""

from __future__ import annotations

import pytest
import torch

from moe_local.errors import MoeLocalError
from moe_local.memory import accelerator
from moe_local.memory.accelerator import Accelerator, find


def _two(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [Accelerator(torch.device("cuda", number)) for number in range(2)]
    monkeypatch.setattr(accelerator, "gpus", lambda: there)
    monkeypatch.setattr(Accelerator, "name", property(lambda self: "a GPU"))


def test_the_cpu() -> None:
    found = find("cpu")
    assert (found.kind, found.is_cpu, found.has_own_memory) == ("cpu", True, False)
    assert found.capability == torch.backends.cpu.get_cpu_capability()
    assert found.copy_stream() is None
    assert not found.pin(0, 4096)
    found.synchronize()
    found.free_cache()


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_one_of_several(monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> None:
    _two(monkeypatch)
    found = find(name)
    assert (found.kind, found.device.index, found.has_own_memory) == ("cuda", index, True)


def test_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "gpus", list)
    assert find("auto") == find("cpu")
    with pytest.raises(MoeLocalError, match="torch sees no CUDA device"):
        find("cuda:1")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:²", "cuda1", "cuda:1:2", "CUDA"])
def test_no_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _two(monkeypatch)
    with pytest.raises(MoeLocalError, match="is unknown"):
        find(name)


def test_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _two(monkeypatch)
    with pytest.raises(MoeLocalError, match="there is no device cuda:2") as refused:
        find("cuda:2")
    assert "cuda:0 (a GPU), cuda:1 (a GPU)" in str(refused.value)


@pytest.mark.parametrize("name", ["mps", "mps:0", "mps:1"])
def test_metal_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: name == "mps:1")
    with pytest.raises(MoeLocalError, match=f"there is no device {name}"):
        find(name)
