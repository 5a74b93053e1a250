"""What commands that run a model share: the line below an answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_local.cli.session import fitted

PARTS = [(3, "5 tokens"), (1, "25.1 tokens/s"), (2, "context 812 of 4096"), (4, "656 MiB of 20.9 GiB")]


def test_parts_are_left_out_as_the_window_narrows() -> None:
    assert fitted(PARTS, 100) == "5 tokens · 25.1 tokens/s · context 812 of 4096 · 656 MiB of 20.9 GiB"
    assert fitted(PARTS, 60) == "5 tokens · 25.1 tokens/s · context 812 of 4096"
    assert fitted(PARTS, 40) == "25.1 tokens/s · context 812 of 4096"
    assert fitted(PARTS, 20) == fitted(PARTS, 1) == "25.1 tokens/s"


@given(st.permutations(range(6)), st.lists(st.text("abc", min_size=1), min_size=6, max_size=6), st.integers(0, 60))
def test_a_line_fits_and_holds_what_matters_most(numbers: list[int], texts: list[str], width: int) -> None:
    parts = list(zip(numbers, texts, strict=True))
    line = fitted(parts, width)
    kept = line.split(" · ")
    assert len(line) <= width or len(kept) == 1
    most = sorted(parts)[: len(kept)]
    assert kept == [text for number, text in parts if (number, text) in most]
