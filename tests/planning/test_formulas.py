"""What forward passes take, by hand and in general."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from moe_local.model.buffers import SCORES, columns
from moe_local.planning.formulas import (
    LONGEST_CHUNK,
    ForwardPass,
    decoding_bytes,
    kv_cache_bytes,
    longest_chunk,
    program_bytes,
)
from moe_local.units import MIB

# DeepSeek-V3 at 4,096 tokens: 128 heads whose keys and values of 192 and 128 numbers are expanded from 576.
DEEPSEEK = ForwardPass(
    context=4096, itemsize=2, layers=61, hidden=7168, vocabulary=129_280, heads=128, top_k=8,
    inner=2048, kv_bytes=61 * 576 * 4096 * 2, expanded=128 * (192 + 128),
)  # fmt: skip


def test_a_token_by_hand() -> None:
    """Of the attention's part, 768 MiB were measured on a CPU: latents expanded, keys joined, and both copied."""
    latents, expanded = 576 * 4096 * 2, 128 * 320 * 4096 * 2
    attention = 2 * latents + 2 * expanded + 4096 * 3 + 16 * 128 * 4096
    rest = 64 * MIB + 12 * 7168 * 4 + 8 * (7168 + 2048) * 2 + 8 * 129_280 * 4
    assert DEEPSEEK.workspace(1) == attention + rest
    assert DEEPSEEK.workspace(1) > 700 * MIB


def test_a_chunk_by_hand() -> None:
    grouped = replace(DEEPSEEK, expanded=0, kv_bytes=61 * 1000, heads_per_kv=4)
    assert grouped.workspace(512) == (
        64 * MIB + 2 * 1000 + 2 * 4 * 1000 + 512 * 4096 * 3 + 16 * SCORES + 512 * 12 * 7168 * 4
        + 512 * 8 * (7168 + 2048) * 2 + 8 * 129_280 * 4
    )  # fmt: skip


def test_experts_one_by_one_take_more_and_no_more_than_so_much() -> None:
    """Rows of as many as are multiplied at once."""
    each = replace(DEEPSEEK, one_by_one=True)
    more = [each.workspace(tokens) - DEEPSEEK.workspace(tokens) for tokens in (1, 512, 1024, 4096)]
    assert more[:2] == [8 * (2 * 7168 + 3 * 2048) * 2, 4096 * (2 * 7168 + 3 * 2048) * 2]
    assert more[1:] == [more[1]] * 3


passes = st.builds(
    ForwardPass,
    context=st.integers(1, 1 << 17),
    itemsize=st.sampled_from([2, 4]),
    layers=st.integers(1, 100),
    hidden=st.integers(1, 1 << 14),
    vocabulary=st.integers(1, 1 << 18),
    heads=st.integers(1, 128),
    top_k=st.integers(1, 16),
    inner=st.integers(1, 1 << 14),
    one_by_one=st.booleans(),
    kv_bytes=st.integers(0, 1 << 36),
    heads_per_kv=st.integers(1, 16),
    expanded=st.sampled_from([0, 40_960]),
    eager_heads=st.sampled_from([0, 64]),
    logits=st.integers(1, 8),
    programs=st.integers(0, 160 * MIB),
)


@given(passes, st.integers(2, 1024), st.integers(2, 1024))
def test_more_tokens_take_no_less(of: ForwardPass, one: int, other: int) -> None:
    less, more = sorted((one, other))
    assert 0 < of.workspace(less) <= of.workspace(more) <= of.workspace(of.context + 1024)


@given(passes)
def test_passes_up_to_the_longest_are_planned_for(of: ForwardPass) -> None:
    planned = of.workspaces(7)
    assert planned[-1][0] == of.longest
    assert all(size == of.workspace(tokens) + 7 for tokens, size in planned)
    assert [tokens for tokens, _ in planned] == sorted({tokens for tokens, _ in planned})
    assert of.longest <= 512 or of.longest < 2 * of.context


@given(st.integers(0, 256), st.integers(1, 1 << 20), st.sampled_from([2, 4]))
def test_chunks_halve_until_their_scores_fit(heads: int, context: int, itemsize: int) -> None:
    chunk = longest_chunk(heads, context, itemsize)
    assert chunk in (32, 64, 128, 256, 512, 1024, 2048, 4096)
    assert chunk == 32 or chunk * context * heads * (8 + 4 * itemsize) <= 1 << 30
    assert chunk == LONGEST_CHUNK or 2 * chunk * context * heads * (8 + 4 * itemsize) > 1 << 30


@given(st.integers(0, 8), st.integers(1, 10_000), st.integers(1, 5000))
def test_windows_keep_the_last_tokens(sliding: int, tokens: int, window: int) -> None:
    everything = kv_cache_bytes(1024, 8, tokens, 2)
    assert everything == 1024 * 8 * tokens * 2
    kept = kv_cache_bytes(1024, 8, tokens, 2, sliding=sliding, window=window)
    assert kept == 1024 * 2 * ((8 - sliding) * tokens + sliding * min(tokens, window - 1))
    assert kept <= everything


@given(st.integers(1, 1 << 20))
def test_buffers_are_a_little_longer_than_what_is_in_them(length: int) -> None:
    assert length <= columns(length) < length + max(64, length // 8 + 1)
    assert columns(columns(length)) == columns(length)


def test_the_largest_matrix_counts() -> None:
    assert (program_bytes([]), program_bytes([MIB, 2 * MIB]), program_bytes([1 << 30])) == (0, 20 * MIB, 160 * MIB)
    assert (decoding_bytes([], 2), decoding_bytes([(8, 4), (16, 4)], 2)) == (0, 640)
