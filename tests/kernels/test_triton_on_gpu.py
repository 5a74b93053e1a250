"""The Triton kernels on a GPU: what its own compiler and its memory make of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_local.formats.registry import packable
from moe_local.kernels import triton_matrix
from moe_local.kernels.expert import ExpertKernel
from moe_local.kernels.gating import Gating
from moe_local.kernels.matrix import bind, kernel_for
from moe_local.kernels.triton_dense import TRITON
from moe_local.kernels.triton_experts import TritonExperts
from moe_local.kernels.triton_probe import reads_ram
from tests.kernels.triton_layers import ENCODINGS, Layer, check, check_in_ram, clamped, experts_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(triton_matrix.missing() is not None, reason="triton is not installed"),
]
TOKENS = (1, 2, 7, 40, 600)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ENCODINGS)
def test_a_layer(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for gating in (Gating("silu"), clamped(interleaved=True)):
        layer = Layer(ENCODINGS[name], gating, 256, 384, count=12, bias=torch.bfloat16, device="cuda")
        for tokens in TOKENS:
            check(layer, tokens, 3, dtype, waves=2)


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name not in ("bf16", "fp16", "fp32")])
def test_a_matrix(name: str) -> None:
    torch.manual_seed(0)
    form, shape = packable(ENCODINGS[name]), (384, 512)
    arrays = {key: each.cuda() for key, each in form.encode(torch.randn(shape) / 512**0.5).items()}
    assert kernel_for(ENCODINGS[name], torch.device("cuda"), shape) is TRITON
    for rows in (1, 4, 16, 17, 200):
        x = torch.randn(rows, 512, dtype=torch.float16, device="cuda")
        wanted = x.float() @ form.decode(arrays, shape, torch.float32).T
        torch.testing.assert_close(bind(ENCODINGS[name], arrays, shape)(x).float(), wanted, rtol=2e-2, atol=2e-2)


def test_experts_on_a_gpu_are_multiplied_at_once() -> None:
    layer = Layer(ENCODINGS["int4-64"], device="cuda")
    assert isinstance(ExpertKernel(layer.slab).all_at_once([layer.layout], layer.gating), TritonExperts)


@pytest.mark.parametrize("tokens", [1, 600])
def test_a_pass_from_a_table_never_waits(tokens: int) -> None:
    layer = Layer(ENCODINGS["int4-64"], device="cuda")
    kernels, inputs, table = experts_of(layer), layer.inputs(tokens, 3), layer.table()
    kernels.run(*inputs, table)  # compiles
    _without_waiting(lambda: kernels.run(*inputs, table))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ENCODINGS)
def test_experts_are_read_in_ram(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert reads_ram(torch.device("cuda", 0))
    for gating in (Gating("silu"), clamped(interleaved=True)):
        layer = Layer(ENCODINGS[name], gating, 256, 384, count=12, bias=torch.bfloat16, device="cuda")
        check_in_ram(layer, 4, dtype)


def test_a_pass_from_a_table_can_be_recorded() -> None:
    layer = Layer(ENCODINGS["int4-64"], device="cuda")
    kernels, table = experts_of(layer), layer.table()
    hidden, index, weights = layer.inputs(1, 3)
    kernels.run(hidden, index, weights, table)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = kernels.run(hidden, index, weights, table)
    for _ in range(3):
        others = layer.inputs(1, 3)
        for kept, other in zip((hidden, index, weights), others, strict=True):
            kept.copy_(other)
        graph.replay()
        torch.testing.assert_close(found.cpu(), layer.wanted(*others), rtol=2e-5, atol=2e-5)


def _without_waiting(run: Callable[[], Tensor]) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
