"""Attention of one token, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from moe_local.runtime.attention import attend, use_fast_decoding


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2), st.sampled_from([(4, 4), (8, 2), (6, 1)]), st.integers(1, 300), st.integers(0, 9))
def test_one_token_attends_as_torch_does(batch: int, heads: tuple[int, int], length: int, seed: int) -> None:
    torch.manual_seed(seed)
    query = torch.randn(batch, heads[0], 1, 16)
    key, value = torch.randn(batch, heads[1], length, 16), torch.randn(batch, heads[1], length, 8)
    seen = torch.rand(batch, 1, 1, length) < 0.7
    seen[..., -1] = True
    module = nn.Module()
    use_fast_decoding(module)
    module.num_key_value_groups = heads[0] // heads[1]
    added = torch.zeros(batch, heads[0], 1, length).masked_fill(~seen, -1e9)
    for mask in (None, seen, added):
        wanted, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
        got, _ = attend(module, query, key, value, mask, scaling=0.3)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", [2, 7])
def test_many_tokens_are_torchs_work(queries: int) -> None:
    query, key = torch.randn(1, 4, queries, 8), torch.randn(1, 4, queries, 8)
    module = nn.Module()
    use_fast_decoding(module)
    module.is_causal = True
    wanted, _ = sdpa_attention_forward(module, query, key, key, None)
    assert torch.equal(attend(module, query, key, key, None)[0], wanted)
