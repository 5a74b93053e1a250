"""Our own packed copy of a checkpoint: one aligned extent for each expert, in a chosen format.

    DIR/moe-local.json             the manifest: what is where, checksums, where it came from; written last
    DIR/experts-00003.safetensors  the records of layer 3, each a uint8 tensor, each at a multiple of 4096 bytes
    DIR/dense.safetensors          everything else; encoded matrices as `NAME::ARRAY`
    DIR/config.json, tokenizer ... copies from the checkpoint

While it is being made it is called DIR.partial and has a journal in place of the manifest.
"""

from moe_local.store.job import Packing
from moe_local.store.manifest import MANIFEST, is_store
from moe_local.store.packer import pack
from moe_local.store.read import open_store
from moe_local.store.store_index import Stored, cached_store, stores
from moe_local.store.verify import verify

__all__ = ["MANIFEST", "Packing", "Stored", "cached_store", "is_store", "open_store", "pack", "stores", "verify"]
