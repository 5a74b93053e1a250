"""Attention by products, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from moe_local.model.attention import _OURS, _in_blocks, attend, use_products
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 2),
    st.sampled_from([(4, 4), (8, 2), (6, 1)]),
    st.integers(1, 300),
    st.sampled_from([1, 2, 17, 130, None]),
    st.integers(0, 9),
)
def test_it_attends_as_torch_does(
    batch: int, heads: tuple[int, int], length: int, queries: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    queries = min(queries or length, length)
    query = torch.randn(batch, heads[0], queries, 16)
    key, value = torch.randn(batch, heads[1], length, 16), torch.randn(batch, heads[1], length, 8)
    seen = torch.rand(batch, 1, queries, length) < 0.7
    seen[..., -1] = True
    ours, torchs = nn.Module(), nn.Module()
    use_products(ours)
    torchs.num_key_value_groups = ours.num_key_value_groups = heads[0] // heads[1]
    added = torch.zeros(batch, heads[0], queries, length).masked_fill(~seen, -1e9)
    for mask in (None, seen, added):
        for causal in (True, False):
            wanted, _ = sdpa_attention_forward(torchs, query, key, value, mask, scaling=0.3, is_causal=causal)
            if not (causal and mask is None and 1 < queries < length):
                whole = causal and mask is None and queries > 1
                got = _in_blocks(query, key, value, mask, 0.3, causal=whole)
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
            half = (x.to(torch.bfloat16) for x in (query, key, value))
            got, _ = attend(ours, *half, mask, scaling=0.3, is_causal=causal)
            torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.05)


def test_long_contexts_go_in_small_blocks() -> None:
    query, key = torch.randn(1, 64, 40, 8), torch.randn(1, 64, 3000, 8)
    seen = torch.ones(40, 3000, dtype=torch.bool).tril(2960)[None, None]
    wanted, _ = sdpa_attention_forward(nn.Module(), query, key, key, seen)
    got = _in_blocks(query, key, key, seen, 8**-0.5, causal=False)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
@given(st.sampled_from([(4, 4), (8, 2)]), st.integers(1, 40), st.integers(0, 9), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_masked_token_on_a_device(heads: tuple[int, int], length: int, seed: int, large: bool) -> None:
    """In float16, also where products that are not scaled first are beyond its numbers."""
    torch.manual_seed(seed)
    query, key = torch.randn(1, heads[0], 1, 64).half(), torch.randn(1, heads[1], length, 64).half()
    value = torch.randn(1, heads[1], length, 8).half()
    if large:
        query, key = torch.full_like(query, 60), torch.full_like(key, 60)
        assert (query[:, :1] @ key[:, :1].transpose(2, 3)).isinf().all()
    mask = torch.rand(1, 1, 1, length) < 0.7
    mask[..., -1] = True
    module = nn.Module()
    vars(module)[_OURS] = True
    module.num_key_value_groups = heads[0] // heads[1]
    wanted, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask)
    with pretend_cuda() as gpu:
        on_device = [each.to("cuda") for each in (query, key, value, mask)]
        with gpu.watch() as seen:
            got, _ = attend(module, *on_device)
        assert "scaled_dot_product_attention" not in {name for _, name in seen.by_launch}
        torch.testing.assert_close(got.cpu().float(), wanted, rtol=0.01, atol=0.01)
