"""`/stats`: what an engine counts, in a dozen lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moe_local.units import format_size


def stats_lines(stats: Mapping[str, Any], *, context: str) -> Iterator[str]:
    """One line a subject; `stats` are those of `Engine.stats`, and `context` what is used of it."""
    for name, text in _subjects(stats):
        yield f"{name:<11} {text}"
    yield f"{'context':<11} {context}"


def _subjects(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    lookups = stats["hits"] + stats["misses"]
    yield "experts", f"{stats['experts_in_device_tier']:,} of {stats['experts']:,} fit in the fastest memory"
    yield "needed", f"{lookups:,} times, {stats['hit_rate']:.1%} of them there"
    if stats["host_hits"]:
        yield "from RAM", f"{stats['host_hits']:,} experts, {format_size(stats['bytes_uploaded'])}"
    yield "from disk", f"{format_size(stats['bytes_read'])} in {stats['reading_seconds']:.1f} s of reading"
    yield "waited", f"{stats['stall_seconds']:.1f} s for experts"
    wasted = format_size(stats["bytes_wasted"])
    yield (
        "read ahead",
        f"{stats['prefetched']:,} experts, {stats['prefetch_hits']:,} of them needed; {wasted} in vain",
    )
    if ahead := stats["uploaded_ahead"]:
        yield "sent ahead", f"{ahead:,} experts to the device, {stats['uploaded_ahead_hits']:,} of them needed"
    if stats["foreseeable"]:
        yield "foreseen", f"{stats['predicted_right'] / stats['foreseeable']:.0%} of the experts needed"
    yield "RAM", f"{_of(stats['memory'], stats['ram_budget'])}, {format_size(stats['peak_memory'])} at most so far"
    if stats["vram_budget"]:
        yield "VRAM", f"a budget of {format_size(stats['vram_budget'])}"
    yield "loaded in", f"{stats['load_seconds']:.1f} s"


def _of(used: int, budget: int) -> str:
    return f"{format_size(used)} of {format_size(budget)}"
