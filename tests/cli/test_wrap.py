"""Words kept whole at the edge of a window."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from moe_local.cli.wrap import WordWrap, wrapped

WIDE = 1 << 20
words = st.text("abcdefg,.'", min_size=1, max_size=12)
prose = st.lists(st.tuples(words, st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n", "\t"])), max_size=40).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)
mixed = st.text("ab ,。《》「」中文字あー한글é\u0301👩\u200d💻🇩🇪👍🏽\n", max_size=80)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
widths = st.integers(2, 40)


def wrap(text: str, width: int, cuts: list[int] = []) -> str:  # noqa: B006 - never changed
    """The text wrapped, in pieces that end at the cuts."""
    words = WordWrap(lambda: width)
    ends = sorted(cut % (len(text) + 1) for cut in cuts)
    pieces = [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return "".join(map(words.feed, pieces)) + words.end()


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(anything | mixed, st.integers(1, 40))
def test_nothing_is_lost_or_made_up(text: str, width: int) -> None:
    assert bare(wrap(text, width)) == bare(text)


@given(anything | mixed)
def test_a_wide_window_changes_nothing(text: str) -> None:
    assert wrap(text, WIDE) == text


@given(prose | mixed, widths, st.lists(st.integers(0, 1000), max_size=10))
def test_pieces_do_not_matter(text: str, width: int, cuts: list[int]) -> None:
    assert wrap(text, width, cuts) == wrap(text, width)


@given(prose, widths)
def test_lines_fit_and_words_stay_whole(text: str, width: int) -> None:
    shown = wrap(text, width)
    assert shown.split() == text.split()
    for line in shown.split("\n"):
        assert columns(line) <= width or any(len(word) > width for word in line.split()) or line[0].isspace()


@given(mixed.map(lambda text: re.sub(r"[ab]", "中", text)), st.integers(12, 40))
def test_wide_characters_fit(text: str, width: int) -> None:
    """Where the longest run that cannot be broken, of a few signs of punctuation, fits a line."""
    longest = max(map(cell_len, re.findall(r"[^中文字あ한글\s]+", text)), default=0) + 4
    if longest <= width:
        assert all(cell_len(line) <= width for line in wrap(text, width).split("\n"))


@given(prose, widths)
def test_no_line_is_broken_early(text: str, width: int) -> None:
    """Each break of ours is where the next word had no room."""
    rest = text
    lines = wrap(text, width).split("\n")
    for line, after in pairwise(lines):
        taken = re.match(re.escape(line) + r"([ \t]*)(\n?)", rest)
        assert taken is not None
        rest = rest[taken.end() :]
        if not taken[2]:
            row = (columns(line) - 1) % width + 1
            assert row + columns(line + taken[1]) - columns(line) + columns(after.split()[0]) > width


def columns(line: str) -> int:
    return cell_len(line.expandtabs(8))


def test_punctuation_stays_with_its_neighbour() -> None:
    assert wrap("中文中文。中文", 8) == "中文中\n文。中文"
    assert wrap("中文中《文》", 8) == "中文中\n《文》"
    assert wrap("don\u2019t don\u2019t", 8) == "don\u2019t\ndon\u2019t"


def test_parts_of_one_emoji_stay_together() -> None:
    assert wrap("ab👩\u200d💻", 3) == "ab\n👩\u200d💻"
    assert wrap("中🇩🇪", 3) == "中\n🇩🇪"


def test_code_is_left_alone() -> None:
    code = "```python\nfor number in range(1000): print(number, 'and more')\n```\n"
    assert wrap(code, 20) == code
    inside = f"1. See:\n   {code}that is a longer line of text"
    assert wrap(inside, 20) == f"1. See:\n   {code}that is a longer\nline of text"
    unended = code.removesuffix("```\n") + "~~~\nall of this is still the code"
    assert wrap(unended, 20) == unended
    assert wrap("```x``` is in a line of text", 20) == "```x``` is in a line\nof text"


def test_a_word_longer_than_a_line_is_the_terminals() -> None:
    """What is copied of it has no line break."""
    link = "https://example.com/" + "a" * 30
    assert wrap(f"See {link} for more", 24) == f"See\n{link} for more"
    assert wrap(f"{'a' * 30} and so", 16) == f"{'a' * 30}\nand so"


def test_the_window_is_asked_as_it_changes() -> None:
    width = 40
    words = WordWrap(lambda: width)
    shown = words.feed("one two three four five six ")
    width = 10
    shown += words.feed("seven eight nine ten ") + words.end()
    # The terminal has broken the 28 columns that were there into rows of ten.
    assert shown == "one two three four five six\nseven\neight nine\nten "


def test_only_where_it_is_wanted() -> None:
    said: list[str] = []
    with wrapped(said.append, wanted=False) as write:
        write("a word")
    assert said == ["a word"]
    with wrapped(said.append, wanted=True) as write:
        write("a wo")
        write("rd\r\n\x1b[2J")
    assert "".join(said[1:]) == "a word\n\\x1b[2J"
