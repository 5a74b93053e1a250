"""What a forward pass takes beside weights, in bytes, from plain numbers: said once, for models that are here and for
those that only a config.json tells of. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moe_local.experts.buffers import pass_bytes
from moe_local.model.buffers import SCORES, columns
from moe_local.units import MIB

# Tokens of a prompt that go through the model at once, however little memory there is, and at most: each pass needs
# nearly all experts, so that few passes read least.
PREFILL_CHUNK, LONGEST_CHUNK = 512, 4096

_EAGER_SCORES = 1 << 30  # bytes of scores for which a prompt goes through the model in smaller chunks
_LEAST_CHUNK = 32
_SHORTER = (1, 32, 128)  # tokens of forward passes that are planned for by themselves
_CHUNKS = (PREFILL_CHUNK, 1024, 2048, LONGEST_CHUNK)
_MOST_PROGRAMS = 160 * MIB
_SLACK = 64 * MIB  # of the allocator


@dataclass(frozen=True)
class ForwardPass:
    """What the temporaries of a model's forward passes follow from, at one context length and in one dtype."""

    context: int  # tokens
    itemsize: int  # bytes of a number
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    top_k: int  # experts of a token in a layer
    inner: int  # numbers between an expert's up and down
    kv_bytes: int  # the KV cache of all layers, at the full context
    heads_per_kv: int = 1  # heads that one key and value are copied for before they are multiplied
    expanded: int = 0  # numbers a token that a layer's latent keys and values are expanded to; 0: they are no latents
    eager_heads: int = 0  # heads whose scores are all held at once; 0 where attention goes in blocks
    one_by_one: bool = False  # whether experts are decoded, or multiplied by as they are, each by itself
    logits: int = 1  # tokens whose logits are wanted, at most
    programs: int = 0  # see `program_bytes`
    routers: int = 0  # see `router_copy_bytes`
    beyond: int = 0  # bytes that a pass of `PREFILL_CHUNK` tokens takes and that do not follow from the others

    @property
    def longest(self) -> int:
        """Tokens of a prompt that could go through the model at once: no more than are of use, and fewer where all
        their scores are held in memory.
        """
        most = longest_chunk(self.eager_heads, self.context, self.itemsize)
        if self.beyond:  # and who knows how that grows
            return min(most, PREFILL_CHUNK)
        return next((tokens for tokens in _CHUNKS if tokens >= self.context), most) if most > PREFILL_CHUNK else most

    def workspace(self, tokens: int) -> int:
        """Bytes of temporaries at the peak of a forward pass of so many tokens, with the allocator's slack.

        One layer's keys and values are copied when they grow, and are held twice as they are multiplied; a chunk has
        its mask, its hidden states and what its experts take, and twelve rows more a token; sampling works on eight
        copies of the logits.
        """
        tokens = min(tokens, self.context)
        scores = 16 * (SCORES if tokens > 1 else self.heads * self.context)
        experts = pass_bytes(tokens, self.top_k, self.hidden, self.inner, self.itemsize, one_by_one=self.one_by_one)
        beyond = self.beyond * tokens // PREFILL_CHUNK
        return _SLACK + self.dense(tokens) + beyond + scores + experts + self.programs + self.routers

    def dense(self, tokens: int) -> int:
        """What all but the experts takes in a pass of so many tokens, as a model's dimensions say."""
        layer_kv = self.kv_bytes // max(1, self.layers)
        multiplied = self.expanded * columns(self.context) * self.itemsize or layer_kv * self.heads_per_kv
        mask = tokens * self.context * (1 + self.itemsize)
        rows = tokens * 12 * self.hidden * max(4, self.itemsize)
        logits = (7 + min(self.logits, tokens)) * self.vocabulary * 4
        eager = eager_score_bytes(self.eager_heads, self.context, self.itemsize, tokens)
        return 2 * layer_kv + 2 * multiplied + mask + eager + rows + logits

    def workspaces(self, decoding: int) -> tuple[tuple[int, int], ...]:
        """(tokens, bytes) of the workspaces of passes that are planned for, ascending: up to the longest one.

        `decoding` is the bytes of what is decoded to be multiplied: see `decoding_bytes`.
        """
        planned = [tokens for tokens in (*_SHORTER, *_CHUNKS) if tokens < self.longest]
        return tuple((tokens, self.workspace(tokens) + decoding) for tokens in (*planned, self.longest))


def longest_chunk(eager_heads: int, context: int, itemsize: int) -> int:
    """Tokens of a prompt that can go through the model at once; see `ForwardPass.longest`."""
    chunk = LONGEST_CHUNK
    while chunk > _LEAST_CHUNK and eager_score_bytes(eager_heads, context, itemsize, chunk) > _EAGER_SCORES:
        chunk //= 2
    return chunk


def eager_score_bytes(heads: int, context: int, itemsize: int, tokens: int) -> int:
    """Bytes of the attention scores of so many tokens in a model that transformers runs eagerly.

    All heads at once, with the copies that masks, sinks and a softmax in float32 make: 4 to 15 bytes a score were
    measured in bf16, 12 in float32, over seven architectures.
    """
    return tokens * context * heads * (8 + 4 * itemsize)


def kv_cache_bytes(
    numbers: int, layers: int, tokens: int, itemsize: int, *, sliding: int = 0, window: int = 0
) -> int:
    """Bytes of a KV cache of `tokens` tokens, each of `numbers` numbers in every one of `layers` layers.

    `sliding` of the layers keep the tokens before the last of a window of `window` tokens, and no more.
    """
    kept = min(tokens, max(0, window - 1))
    return numbers * itemsize * ((layers - sliding) * tokens + sliding * kept)


def router_copy_bytes(experts: Sequence[int], hidden: int, *, in_ram: bool) -> int:
    """Bytes of what reading ahead asks: copies of the routers of all layers but the first, in bf16 on a CPU and in
    float32 elsewhere.
    """
    return sum(experts[1:]) * hidden * (2 if in_ram else 4)


def program_bytes(matrices: Iterable[int]) -> int:
    """Bytes that a CPU's matrix library keeps for matrices that are multiplied as they are, of so many bytes each in
    bf16: measured, with large ones.
    """
    return min(_MOST_PROGRAMS, 10 * max(matrices, default=0))


def decoding_bytes(shapes: Iterable[tuple[int, int]], itemsize: int) -> int:
    """Bytes of the largest of some matrices [out, in] that are decoded to be multiplied, with the codes that it is
    of.
    """
    return max((out * width * (itemsize + 8) for out, width in shapes), default=0)
