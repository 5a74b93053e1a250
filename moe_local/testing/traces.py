"""Small random traces, as hypothesis draws them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from moe_local.bench.trace import Trace


@st.composite
def small_traces(draw: st.DrawFn, *, longest_pass: int = 3) -> Trace:
    """A few prompts through a few layers, some passes of several tokens, some ids that stand for no expert."""
    layers, k = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    experts = draw(st.integers(k, 7))
    prompts = draw(st.lists(st.lists(st.integers(1, longest_pass), min_size=1, max_size=8), min_size=1, max_size=3))
    forwards = np.array([tokens for prompt in prompts for tokens in prompt], dtype=np.int32)
    tokens = int(forwards.sum())
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    ids = np.array(
        [[rng.permutation(experts + draw(st.integers(0, 1)))[:k] for _ in range(layers)] for _ in range(tokens)],
        dtype=np.uint8,
    )
    weights = rng.random(ids.shape).astype(np.float16)
    lens = np.array([sum(prompt) for prompt in prompts], dtype=np.int32)
    names = tuple(f"prompt {number}" for number in range(len(lens)))
    return Trace(ids, lens, names, experts, weights, forwards, {"model": "random", "experts": experts})
