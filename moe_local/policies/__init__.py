"""Eviction policies: arithmetic over keys. A new one is a file and a line in `POLICIES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_local.registry import Registry

if TYPE_CHECKING:
    from moe_local.policies.base import Policy

POLICIES: Registry[Policy] = Registry(
    "policy",
    __name__,
    {
        "lru": "lru.LRU",
        "lfu": "lfu.LFU",
        "lfru": "lfru.LFRU",
        "successor": "successor.SUCCESSOR",
    },
)
DEFAULT_POLICY = "lfru"  # the most tokens/s under real routing
