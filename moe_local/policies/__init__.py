"""Eviction policies: pure bookkeeping over keys. A new one is a file and a line in `POLICIES`."""

from __future__ import annotations

from collections.abc import Callable

from moe_local.policies.base import EvictionPolicy, Key
from moe_local.policies.lru import LRU

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "lru": LRU,
}

__all__ = ["LRU", "POLICIES", "EvictionPolicy", "Key"]
