"""Our own packed copy of a checkpoint: one aligned extent for each expert, in a chosen format.

    DIR/moe-local.json             the manifest: what is where, checksums, where it came from; written last
    DIR/experts-00003.safetensors  the records of layer 3, each a uint8 tensor, each at a multiple of 4096 bytes
    DIR/dense-00000.safetensors    everything else of the checkpoint's first file; encoded matrices as `NAME::ARRAY`
    DIR/config.json, tokenizer ... copies from the checkpoint

While it is being made it is called DIR.partial and has a journal in place of the manifest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_local.store.body import MANIFEST, is_store
    from moe_local.store.finding import cached_store
    from moe_local.store.job import Packing
    from moe_local.store.packer import pack
    from moe_local.store.read import open_store
    from moe_local.store.store_index import Stored, stores
    from moe_local.store.verification import verify

__all__ = ["MANIFEST", "Packing", "Stored", "cached_store", "is_store", "open_store", "pack", "stores", "verify"]

_HOMES = {
    "MANIFEST": "body",
    "is_store": "body",
    "cached_store": "finding",
    "Packing": "job",
    "pack": "packer",
    "open_store": "read",
    "Stored": "store_index",
    "stores": "store_index",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    """Imports torch and transformers only when something that needs them is asked for."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
