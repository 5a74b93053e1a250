"""Every architecture of GGUF files that is read, by llama.cpp's name. A new one is a line here or in its family."""

from __future__ import annotations

from moe_local.checkpoint.gguf_architecture import GgufArchitecture
from moe_local.checkpoint.gguf_hybrid import HYBRID
from moe_local.checkpoint.gguf_latent import LATENT
from moe_local.checkpoint.gguf_outside import OUTSIDE_INTERFACE
from moe_local.checkpoint.gguf_plain import PLAIN
from moe_local.checkpoint.gguf_qwen import QWEN
from moe_local.checkpoint.gguf_shared import SHARED
from moe_local.checkpoint.gguf_sliding import SLIDING

KNOWN: dict[str, GgufArchitecture] = {**QWEN, **PLAIN, **SHARED, **SLIDING, **LATENT, **HYBRID, **OUTSIDE_INTERFACE}
