"""Bytes of a model's parts by the formats that they are held in, and so what a store of it takes: from its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_local.errors import MoeLocalError
from moe_local.formats.registry import EMBEDDING, GROUP_SIZES, bytes_in, dense_names, packable_names, packed_bytes
from moe_local.model.buffers import columns, rows_decoded
from moe_local.planning.formulas import ForwardPass, decoding_bytes, kv_cache_bytes, program_bytes, router_copy_bytes
from moe_local.planning.needs import Needs
from moe_local.planning.sizes import Matrices, ModelSizes
from moe_local.registry import choice

EXPERT_FORMATS = tuple(packable_names())
DENSE_FORMATS = ("keep", *dense_names())
_LEAST = 1 << 12  # numbers: smaller dense matrices stay bf16
_PAGE = 4096  # bytes: what records are aligned to
_PLAIN = ("bf16", "fp16", "fp32")  # multiplied as they are
# A CPU multiplies by these as they lie, where rows and columns are multiples of so many; all others are decoded.
_NATIVE = {"int4": (1, 1), "int8": (1, 1), "mxfp4": (16, 32), "nvfp4": (16, 32), "nf4": (16, 64), "fp8": (16, 64)}
# Bytes that decoding to bf16 and multiplying moves for each number, where no kernel reads a format as it lies:
# reckoned for int4 and int8 from the operations that decoding is, and taken to be the same for others of their width.
_MOVED = {"int4": 21, "mxfp4": 21, "nvfp4": 21, "nf4": 21, "int8": 9, "fp8": 9}
_DIVISIBLE = ("int4", "int8")  # that can tell rows apart, so that a large matrix is decoded in parts
_ITEMSIZE = 2  # bytes: activations and the KV cache are in bf16


@dataclass(frozen=True)
class Formats:
    """How weights are held; `group` is int4's. Raises MoeLocalError for what does not exist."""

    experts: str = "int4"
    group: int = 64
    dense: str = "int8"

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--format", self.experts, EXPERT_FORMATS),
            ("--group-size", self.group, GROUP_SIZES),
            ("--dense-format", self.dense, DENSE_FORMATS),
        ):
            if value not in known:
                raise MoeLocalError(
                    f"{option} {value} is unknown", remedy=choice(str(value), map(str, known), "use one of")
                )


def encoded_bytes(matrices: Matrices, format: str, group: int = 64) -> int:
    """Bytes of matrices with their scales; int8 for those that a format cannot hold, as packing does it."""
    each = packed_bytes(fitted(matrices, format, group), (matrices.out, matrices.width), group)
    assert each is not None, matrices  # int8 holds every shape
    return each * matrices.count


def fitted(matrices: Matrices, format: str, group: int) -> str:
    """The format, or int8 where it cannot hold matrices of this shape."""
    return "int8" if packed_bytes(format, (matrices.out, matrices.width), group) is None else format


def record_bytes(sizes: ModelSizes, formats: Formats) -> int:
    """Bytes of one expert, in whole pages; biases are bf16."""
    matrices = sum(encoded_bytes(matrix, formats.experts, formats.group) for matrix in sizes.expert)
    return -(-(matrices + 2 * sizes.expert_biases) // _PAGE) * _PAGE


def dense_bytes(sizes: ModelSizes, formats: Formats) -> tuple[int, int]:
    """Bytes of the dense part in memory: held, and read for every token. With encoded linear layers, embeddings are
    int8. Tables of positions, some hundred bytes, are left out.
    """

    def held(matrix: Matrices, format: str) -> int:
        return encoded_bytes(matrix, "bf16" if _stays_plain(matrix, formats) else format, formats.group)

    embedding = embedding_bytes(sizes, formats)
    read = sum(held(matrix, formats.dense) for matrix in sizes.linear) + 2 * (sizes.plain + sizes.wide)
    read += sizes.buffers
    return read + embedding, read + (embedding if sizes.tied else 0)


def needs_of(sizes: ModelSizes, formats: Formats, context: int, *, gpu: bool = False) -> Needs:
    """What a store of the model takes at `context` tokens, computing in bf16: in RAM, or with a GPU on it.

    In RAM one key serves all heads that share it, and embeddings can stay on the disk.
    """
    attention, itemsize = sizes.attention, _ITEMSIZE
    kv_bytes = kv_cache_bytes(
        attention.cached, sizes.layers, columns(context), itemsize, sliding=attention.sliding, window=attention.window
    )
    passes = ForwardPass(
        context=context,
        itemsize=itemsize,
        layers=sizes.layers,
        hidden=sizes.hidden,
        vocabulary=sizes.embedding.out,
        heads=attention.heads,
        top_k=sizes.top_k,
        inner=sizes.expert[-1].width,
        one_by_one=any(
            formats.experts in _PLAIN or _is_decoded(matrix, formats.experts, formats.group, gpu=gpu)
            for matrix in sizes.expert
        ),
        kv_bytes=kv_bytes,
        heads_per_kv=attention.heads_per_kv if gpu else 1,
        expanded=attention.expanded,
        eager_heads=attention.heads if attention.eager else 0,
        routers=router_copy_bytes(sizes.experts, sizes.hidden, in_ram=not gpu),
        programs=program_bytes(2 * matrix.out * matrix.width for matrix in _multiplied_as_they_are(sizes, formats)),
    )
    return Needs.of_passes(
        passes.workspaces(decoding_bytes(decoded(sizes, formats, gpu=gpu), itemsize)),
        dense=dense_bytes(sizes, formats)[0],
        kv_bytes=kv_bytes,
        slot=record_bytes(sizes, formats),
        experts=sizes.experts,
        top_k=(sizes.top_k,) * len(sizes.experts),
        embedding_rows=0 if sizes.tied else embedding_rows(sizes, formats),
    )


def _multiplied_as_they_are(sizes: ModelSizes, formats: Formats) -> Iterator[Matrices]:
    """Matrices that are not encoded, but for the output layer: see `program_bytes`."""
    if formats.experts in _PLAIN:
        yield from sizes.expert
    yield from (m for m in sizes.linear if m is not sizes.embedding and _stays_plain(m, formats))


def decoded(sizes: ModelSizes, formats: Formats, *, gpu: bool) -> Iterator[tuple[int, int]]:
    """Shapes of the matrices that are decoded to be multiplied."""
    held = [(matrix, formats.experts, False) for matrix in sizes.expert]
    held += [(m, formats.dense, True) for m in sizes.linear if not _stays_plain(m, formats)]
    for matrix, format, dense in held:
        if _is_decoded(matrix, format, formats.group, gpu=gpu):
            parts = dense and fitted(matrix, format, formats.group) in _DIVISIBLE
            yield rows_decoded(matrix.out, matrix.width) if parts else matrix.out, matrix.width


def _is_decoded(matrix: Matrices, format: str, group: int, *, gpu: bool) -> bool:
    held_in = fitted(matrix, format, group)
    rows, columns = _NATIVE.get(held_in, (0, 0))
    native = rows and not gpu and not (matrix.out % rows or matrix.width % columns)
    return held_in not in _PLAIN and not native


def computed_bytes(sizes: ModelSizes, formats: Formats, needs: Needs) -> int:
    """Bytes that one token's arithmetic reads."""
    return dense_bytes(sizes, formats)[1] + needs.kv_cache + needs.token_set * needs.slot


def decoding_traffic(sizes: ModelSizes, formats: Formats, needs: Needs) -> int:
    """Bytes that one token's arithmetic moves where what is encoded is decoded at every use; see `computed_bytes`."""
    extra = 0
    for matrix in sizes.expert:
        extra += sizes.top_k * len(sizes.experts) * _extra_traffic(matrix, formats.experts, formats.group)
    for matrix in sizes.linear:
        if not _stays_plain(matrix, formats):
            extra += _extra_traffic(matrix, formats.dense, formats.group)
    return computed_bytes(sizes, formats, needs) + extra


def _extra_traffic(matrices: Matrices, format: str, group: int) -> int:
    """Bytes that decoding moves beside those that are held."""
    moved = _MOVED.get(fitted(matrices, format, group))
    return 0 if moved is None else max(0, moved * matrices.parameters - encoded_bytes(matrices, format, group))


def embedding_bytes(sizes: ModelSizes, formats: Formats) -> int:
    """Bytes of the embedding in memory."""
    matrix = sizes.embedding
    if _stays_plain(matrix, formats):
        return encoded_bytes(matrix, "bf16")
    return matrix.count * (bytes_in(EMBEDDING, (matrix.out, matrix.width)) or 0)


def embedding_rows(sizes: ModelSizes, formats: Formats) -> int:
    """Bytes of the embedding without its scales."""
    numbers = sizes.embedding.parameters
    return 2 * numbers if _stays_plain(sizes.embedding, formats) else numbers


def _stays_plain(matrix: Matrices, formats: Formats) -> bool:
    """Whether a dense matrix is held in bf16, whatever the others are."""
    return formats.dense == "keep" or matrix.out * matrix.width < _LEAST
