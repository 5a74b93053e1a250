"""In which order the parts of a store can be written, and how much of the checkpoint must be there meanwhile."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from moe_local.store import first_use
from moe_local.store.parts import Part, most_bytes, needed, parts
from moe_local.testing import architecture, write_tiny_checkpoint

FILES = [Path(f"model-{number}.safetensors") for number in range(5)]
Sizes = st.fixed_dictionaries({file: st.integers(0, 100) for file in FILES})
Parts = st.lists(
    st.builds(Part, st.just("x"), st.integers(0, 50), st.frozensets(st.sampled_from(FILES), min_size=1)), max_size=8
)


@given(Parts, Sizes)
def test_the_most_at_once(found: list[Part], sizes: dict[Path, int]) -> None:
    """Against every file's first and last use."""
    uses = {file: [number for number, part in enumerate(found) if file in part.sources] for file in FILES}
    alive = [
        sum(sizes[file] for file, numbers in uses.items() if numbers and numbers[0] <= moment <= numbers[-1])
        + sum(part.size for part in found[: moment + 1])
        for moment in range(len(found))
    ]
    assert most_bytes(found, sizes) == max(alive, default=0)
    assert needed(found) == {file for file, numbers in uses.items() if numbers}


def test_a_file_is_given_up_soon(tmp_path: Path) -> None:
    """Layers are published one after the other: all files of a checkpoint are never needed at once."""
    source = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "source", max_shard_bytes=100_000)
    job = first_use.plan(source, first_use.choose())
    found = parts(job)
    sizes = {file: file.stat().st_size for file in job.checkpoint.files}
    assert len(sizes) > 5
    assert sum(part.size for part in found) == job.total
    assert needed(found) == set(sizes)
    whole = job.total + sum(sizes.values())
    assert most_bytes(found, sizes) < 0.8 * whole
    assert most_bytes(found, dict.fromkeys(sizes, 0)) == job.total
