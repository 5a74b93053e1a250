"""Which encoding of ours is nearest to one that somebody else chose."""

from __future__ import annotations

from moe_local.checkpoint.record import PLAIN, Encoding
from moe_local.formats import packed_encoding
from moe_local.formats.registry import GROUP_SIZES

_OWN = ("int8", "int4", "nf4", "mxfp4", "nvfp4", "fp8")  # held as they are
_BYTES = ("signed-int8", "absmax-int8")
_GGUF = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K"), ("int4", 32)),
    **dict.fromkeys(("Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"), ("int8", 32)),
    "MXFP4": ("mxfp4", 32),
}


def nearest(encoding: Encoding, otherwise: Encoding) -> Encoding:
    """The encoding of ours that holds the numbers of `encoding`, all of them or with the least loss.

    4-bit integers in groups stay the very same integers. `otherwise` for numbers that are not quantised, and for
    4-bit integers in groups that `int4` does not have.
    """
    options = dict(encoding.options)
    if encoding in PLAIN.values():
        return otherwise
    if encoding.format in _OWN and not options.keys() - {"group", "rows", "block", "divides"}:
        return encoding
    if encoding.format in _BYTES or int(options.get("bits", 4)) > 4:
        return packed_encoding("int8")
    if encoding.format == "gguf":
        return packed_encoding(*_GGUF.get(str(options["type"]), ("int8", 32)))
    group = options.get("group")
    return packed_encoding("int4", int(group)) if group in GROUP_SIZES else otherwise
