"""How often the host waits for a device, and how much it launches: what a token takes, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moe_local.engine import Engine, load
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.options import Options
from moe_local.testing.pretend_cuda import PretendCuda, Tally, can_pretend, pretend_cuda

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")


@pytest.fixture
def gpu() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


def _token(gpu: PretendCuda, engine: Engine) -> Tally:
    """A token's forward pass after some others."""
    token = torch.tensor([[8]], device="cuda")
    with torch.inference_mode():
        out = engine.model(torch.tensor([[5, 6, 7]], device="cuda"))
        out = engine.model(token, **{CACHE: kv_cache(out)})
        with gpu.watch() as seen:
            engine.model(token, **{CACHE: kv_cache(out)})
    return seen


def _warm(engine: Engine) -> None:
    for layer, experts in enumerate(engine.cache.experts):
        engine.cache.warm(layer, range(experts))


def test_a_layer_waits_once_for_its_router(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(device="cuda", context=128)) as engine:
        _warm(engine)
        seen = _token(gpu, engine)
        layers = engine.model.config.num_hidden_layers
    assert [line.partition(":")[0] for line, _ in seen.by_sync] == ["experts/routing.py"], seen.told()
    assert seen.syncs == layers


def test_what_a_layer_launches(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(device="cuda", context=128)) as engine:
        _warm(engine)
        seen = _token(gpu, engine)
        config = engine.model.config
    # Four norms are 24 of them, rotary embeddings 10; an expert that is not decoded 2, and all together 6.
    each = 53 + 2 * config.num_experts_per_tok
    assert seen.launches <= config.num_hidden_layers * each + 15, seen.told()


def test_misses_are_not_waited_for_on_the_host(gpu: PretendCuda, qwen: Path) -> None:
    """Beside the router's choice, what is read from the disk and uploaded costs no sync of the device."""
    with load(qwen, Options(device="cuda", context=128, experts=0.25, host_experts=0.5, prefetch="off")) as engine:
        before = engine.stats()["bytes_uploaded"]
        seen = _token(gpu, engine)
        assert engine.stats()["bytes_uploaded"] > before
        layers = engine.model.config.num_hidden_layers
    assert seen.syncs == layers, seen.told()
