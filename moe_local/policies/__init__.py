"""Eviction policies: arithmetic over keys. A new one is a file and a line in `POLICIES`."""

from __future__ import annotations

from moe_local.errors import MoeLocalError
from moe_local.policies.base import Keys, Policy, State
from moe_local.policies.belady import BELADY
from moe_local.policies.lfru import LFRU
from moe_local.policies.lfu import LFU
from moe_local.policies.lru import LRU
from moe_local.policies.successor import SUCCESSOR

POLICIES = {policy.name: policy for policy in (LRU, LFU, LFRU, SUCCESSOR)}
DEFAULT_POLICY = LFRU.name  # the most tokens/s under real routing

__all__ = ["BELADY", "DEFAULT_POLICY", "LRU", "POLICIES", "Keys", "Policy", "State", "get_policy"]


def get_policy(name: str) -> Policy:
    """Raises MoeLocalError naming the known policies."""
    if name not in POLICIES:
        raise MoeLocalError(f"there is no policy {name!r}", remedy=f"choose one of {', '.join(POLICIES)}")
    return POLICIES[name]
