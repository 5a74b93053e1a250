"""Every format, declared once: packing, planning, the command line and the choice of the nearest format read this.

A new format is a file and a line in `FORMATS`. Nothing here needs torch: a format's own file is imported when numbers
are first encoded or decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moe_local.checkpoint.encoding import Encoding
from moe_local.errors import MoeLocalError
from moe_local.registry import choice, load

if TYPE_CHECKING:
    from moe_local.formats.base import Format, Packable

Options = Mapping[str, int | str]
Size = Callable[[int, int, Options], int | None]  # a matrix's rows, columns and options -> bytes; None: does not fit
Become = Callable[[Options], "tuple[str, int] | None"]  # a packed format and its group; None: as if never quantised

GROUP_SIZES = (32, 64, 128)
EMBEDDING = Encoding("int8", (("layout", "rows"),))  # what embeddings are held in: looked up row by row
_ITSELF = ("", 0)
_OWN_OPTIONS = {"group", "block", "divides"}  # with others, a format is read and cannot be written
_GGUF = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q4_K", "Q3_K", "Q2_K", "TQ1_0", "TQ2_0"), ("int4", 32)),
    **dict.fromkeys(
        ("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"), ("int4", 32)
    ),
    "MXFP4": ("mxfp4", 32),
    "NVFP4": ("nvfp4", 32),
}


def _by_bits(options: Options) -> tuple[str, int] | None:
    """Integers in groups: `int4` where it has the group, `int8` for those of more than 4 bits."""
    if int(options.get("bits", 4)) > 4:
        return ("int8", 0)
    group = options.get("group")
    return ("int4", int(group)) if group in GROUP_SIZES else None


def _itself(options: Options) -> tuple[str, int] | None:
    return _by_bits(options) if options.keys() - _OWN_OPTIONS else _ITSELF


@dataclass(frozen=True)
class Declaration:
    """One format: where it is written, what a matrix takes in it, and what becomes of it when it is packed.

    `home` is a module of `moe_local.formats` and what in it makes the format of an encoding's options. A format with
    a `size` can be packed into, with the options that `packed` gives for a group size; linear layers outside the
    experts where it is `dense`.
    """

    name: str
    home: str
    size: Size | None = None
    packed: Callable[[int], Options] = lambda group: {}
    dense: bool = False
    becomes: Become = _by_bits

    def load(self) -> Callable[..., Format]:
        made: Callable[..., Format] = load("moe_local.formats", self.home)
        return made


def _plain(size: int) -> Size:
    return lambda out, width, options: size * out * width


def _int4(out: int, width: int, options: Options) -> int | None:
    group = int(options["group"])
    return None if out % 16 or width % group else out * width // 2 + out * width // group * 4


def _int8(out: int, width: int, options: Options) -> int:
    if options.get("layout") == "rows":
        return out * width + 2 * out
    return -(-out // 16) * (16 * (width + -width % 64) + 64)


def _fp8(out: int, width: int, options: Options) -> int | None:
    down = int(options.get("block", 0))
    across = int(options.get("columns", down))
    scales = -(-out // down) * -(-width // across) if down else out
    return out * width + 4 * scales if min(out, width) else None


def _nf4(out: int, width: int, options: Options) -> int | None:
    block, numbers = int(options.get("block", 64)), out * width
    return None if numbers % block or options.get("nested") else numbers // 2 + numbers // block * 4


def _blocks(columns: int, more_a_row: int = 0) -> Size:
    """4-bit numbers with a byte of scale for so many columns."""

    def size(out: int, width: int, options: Options) -> int | None:
        return None if width % columns else out * width // 2 + out * width // columns + more_a_row * out

    return size


_LINES = (
    Declaration("int4", "int4.Int4", _int4, lambda group: {"group": group}, dense=True, becomes=_itself),
    Declaration("int8", "int8.int8", _int8, dense=True, becomes=_itself),
    Declaration("nf4", "nf4.Nf4", _nf4, becomes=_itself),
    Declaration("mxfp4", "mxfp4.Mxfp4", _blocks(32), becomes=_itself),
    Declaration("nvfp4", "nvfp4.Nvfp4", _blocks(16, more_a_row=4), becomes=_itself),
    Declaration("fp8", "fp8.Fp8", _fp8, lambda group: {"block": 128}, becomes=_itself),
    Declaration("bf16", "plain.Bf16", _plain(2), becomes=lambda options: None),
    Declaration("fp16", "plain.Fp16", _plain(2), becomes=lambda options: None),
    Declaration("fp32", "plain.Fp32", _plain(4), becomes=lambda options: None),
    Declaration("absmax-int8", "signed.AbsmaxInt8", becomes=lambda options: ("int8", 0)),
    Declaration("signed-int8", "signed.SignedInt8", becomes=lambda options: ("int8", 0)),
    Declaration("awq", "awq.Awq"),
    Declaration("gptq", "gptq.Gptq"),
    Declaration("mlx", "mlx.Mlx"),
    Declaration("packed", "compressed_tensors.Packed"),
    Declaration("gguf", "gguf.Gguf", becomes=lambda options: _GGUF.get(str(options["type"]), ("int8", 0))),
    Declaration("gguf-changed", "gguf.Changed", becomes=lambda options: None),
)
FORMATS = {declared.name: declared for declared in _LINES}


@lru_cache(maxsize=256)
def format_of(encoding: Encoding) -> Format:
    """The format of an encoding. Raises KeyError for an unknown one."""
    return FORMATS[encoding.format].load()(**dict(encoding.options))


def packable(encoding: Encoding) -> Packable:
    """The format of an encoding that matrices can be put into."""
    from moe_local.formats.base import Packable

    found = format_of(encoding)
    assert isinstance(found, Packable), encoding
    return found


def packable_names() -> list[str]:
    """The formats that experts can be packed into, as users type them."""
    return [name for name, declared in FORMATS.items() if declared.size is not None]


def dense_names() -> list[str]:
    """The formats that linear layers outside the experts can be packed into."""
    return [name for name, declared in FORMATS.items() if declared.dense]


def packed_encoding(name: str, group: int = 64) -> Encoding:
    """The encoding to pack into. Raises MoeLocalError for an unknown name or group size."""
    if name not in packable_names():
        raise MoeLocalError(f"there is no format {name!r}", remedy=choice(name, packable_names()))
    if group not in GROUP_SIZES:
        raise MoeLocalError(f"a group of {group} is not supported", remedy=f"use {', '.join(map(str, GROUP_SIZES))}")
    return Encoding(name, tuple(FORMATS[name].packed(group).items()))


def packed_bytes(name: str, shape: tuple[int, int], group: int = 64) -> int | None:
    """Bytes of a matrix [out, in] packed into a format, scales included; None where it cannot be held."""
    return _size(name, shape, FORMATS[name].packed(group))


def bytes_in(encoding: Encoding, shape: tuple[int, int]) -> int | None:
    """Bytes of a matrix [out, in] in an encoding; None where it cannot be held."""
    return _size(encoding.format, shape, dict(encoding.options))


def fits(encoding: Encoding, shape: tuple[int, int]) -> bool:
    """Whether a matrix [out, in] can be put into an encoding."""
    return bytes_in(encoding, shape) is not None


def _size(name: str, shape: tuple[int, int], options: Options) -> int | None:
    size = FORMATS[name].size
    return None if size is None else size(*shape, options)


def nearest(encoding: Encoding, otherwise: Encoding) -> Encoding:
    """The encoding to pack into that holds the numbers of `encoding`, all of them or with the least loss.

    4-bit integers in groups stay the very same integers. `otherwise` for numbers that are not quantised, and for
    4-bit integers in groups that `int4` does not have.
    """
    found = FORMATS[encoding.format].becomes(dict(encoding.options)) if encoding.format in FORMATS else None
    if found is None:
        return otherwise
    return encoding if found is _ITSELF else packed_encoding(found[0], found[1] or GROUP_SIZES[0])


def supports(encodings: Any) -> bool:
    """Whether all of some encodings are of known formats."""
    return all(encoding.format in FORMATS for encoding in encodings)
