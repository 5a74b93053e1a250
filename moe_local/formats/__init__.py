"""How a record's numbers are held and multiplied: one file a format, and the registry of them."""

from moe_local.formats.base import Format, Multiply, Packable
from moe_local.formats.expert import Expert, decode_bias, decode_projection, decode_tensor, open_expert, views
from moe_local.formats.registry import FORMATS, format_of, packable, packed_encoding, supports

__all__ = [
    "FORMATS",
    "Expert",
    "Format",
    "Multiply",
    "Packable",
    "decode_bias",
    "decode_projection",
    "decode_tensor",
    "format_of",
    "open_expert",
    "packable",
    "packed_encoding",
    "supports",
    "views",
]
