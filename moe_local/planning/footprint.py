"""What a model will take, measured on its skeleton: transformers' own code run with no memory behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from moe_local.checkpoint.architecture import experts_modules
from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.record import PLAIN
from moe_local.kernels.matrix import kernel_for
from moe_local.model.attention import SCORES, is_ours
from moe_local.model.kv_cache import columns
from moe_local.model.modules import LARGE
from moe_local.model.transformers_api import attends_eagerly, kv_cache, wide_parameters
from moe_local.planning.placement import Needs
from moe_local.units import MIB

PREFILL_CHUNK = 512  # tokens of a prompt that go through the model at once

_EAGER_SCORES = 1 << 30  # bytes of scores for which a prompt goes through the model in smaller chunks
_LEAST_CHUNK = 32
_SHORTER = (1, 32, 128)  # tokens of forward passes that are planned for by themselves
_MOST_PROGRAMS = 160 * MIB
_TOP_K = ("num_experts_per_tok", "top_k", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


def measure(
    skeleton: PreTrainedModel,
    catalog: Catalog,
    context: int,
    dtype: torch.dtype,
    *,
    device: torch.device,
    logits: int = 1,
    sequences: int = 1,
    each: int = 1,
) -> Needs:
    """The needs of a model at `context` tokens, where a forward pass makes the logits of as many as `logits`.

    With several `sequences` at once, they have `each` so many tokens on average.

    Leaves `skeleton` (on meta) fit for nothing else.
    """
    config = skeleton.config.get_text_config()
    kv = kv_cache_bytes(skeleton, columns(context), dtype)
    kv_bytes_per_sequence = kv_cache_bytes(skeleton, columns(each), dtype) if sequences > 1 else 0
    top_k = _top_k(skeleton, catalog)
    programs = _programs(skeleton, catalog)
    chunk = prefill_chunk(skeleton, context, dtype)

    def workspace(tokens: int) -> int:
        return (
            _workspace(config, kv, context, dtype, max(top_k), logits, device, min(tokens, context))
            + _eager_scores(skeleton, context, dtype, min(tokens, context))
            + _decoding(skeleton, catalog, dtype, device, tokens)
            + programs
        )

    return Needs(
        dense=dense_bytes(skeleton, catalog, dtype),
        kv_bytes=kv,
        workspace=workspace(chunk),
        slot=catalog.record_size,
        experts=tuple(layer.experts for layer in catalog.layers),
        top_k=top_k,
        sequences=sequences,
        kv_bytes_per_sequence=kv_bytes_per_sequence,
        workspace_bytes_per_sequence=4 * kv_bytes_per_sequence // max(1, config.num_hidden_layers)
        + 2 * config.vocab_size * 4,
        workspaces=tuple((tokens, workspace(tokens)) for tokens in _SHORTER if tokens < chunk),
    )


def prefill_chunk(model: PreTrainedModel, context: int, dtype: torch.dtype) -> int:
    """Tokens of a prompt that go through the model at once: fewer where all their scores are held in memory."""
    chunk = PREFILL_CHUNK
    while chunk > _LEAST_CHUNK and _eager_scores(model, context, dtype, chunk) > _EAGER_SCORES:
        chunk //= 2
    return chunk


def _eager_scores(model: PreTrainedModel, context: int, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of the attention scores of so many tokens in a model that transformers runs eagerly; 0 in others.

    All heads at once, with the copies that masks, sinks and a softmax in float32 make: 4 to 15 bytes a score were
    measured in bf16, 12 in float32, over seven architectures.
    """
    config = model.config.get_text_config()
    if not attends_eagerly(config):
        return 0
    heads = max(_attribute(config, name, 1) for name in ("num_attention_heads", "swa_num_attention_heads"))
    return tokens * context * heads * (8 + 4 * dtype.itemsize)


def dense_bytes(skeleton: PreTrainedModel, catalog: Catalog, dtype: torch.dtype) -> int:
    """Bytes of all parameters and buffers but the experts', tied ones counted once, encoded ones as they are held."""
    experts = {id(p) for module in experts_modules(skeleton).values() for p in module.parameters(recurse=False)}
    experts |= {id(skeleton.get_submodule(path).weight) for path in catalog.encoded}
    upcast = wide_parameters(skeleton, dtype)
    total = sum(tensor.length for tensor in catalog.encoded.values())
    seen = set(experts)
    for name, tensor in chain(skeleton.named_parameters(), skeleton.named_buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            wide = tensor.is_floating_point() and any(re.search(pattern, name) for pattern in upcast)
            total += tensor.numel() * (4 if wide else tensor.element_size())
    return total


def kv_cache_bytes(skeleton: PreTrainedModel, context: int, dtype: torch.dtype) -> int:
    """Bytes of the KV cache after `context` tokens: a forward pass on meta, and the sizes of what it cached.

    Where a model's code cannot run on meta, falls back to two vectors a head, a layer and a token.
    """
    for module in experts_modules(skeleton).values():
        module.forward = lambda hidden_states, *args, **kwargs: torch.empty_like(hidden_states)
    try:
        with torch.no_grad():
            ids = torch.zeros(1, context, dtype=torch.long, device="meta")
            cache = kv_cache(skeleton(input_ids=ids, use_cache=True, logits_to_keep=1))
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(cache))
    except Exception:  # whatever a model's own code does that meta tensors cannot
        return _kv_by_formula(skeleton.config.get_text_config(), context, dtype)


def _tensors(cache: Any) -> Iterator[Tensor]:
    """Every tensor that a cache holds, in whatever attribute of its layers."""
    for layer in getattr(cache, "layers", None) or [cache]:
        for value in vars(layer).values():
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Tensor):
                    yield item


def _kv_by_formula(config: PreTrainedConfig, context: int, dtype: torch.dtype) -> int:
    heads = _attribute(config, "num_attention_heads", 1)
    kv_heads = _attribute(config, "num_key_value_heads", heads)
    size = _attribute(config, "head_dim", config.hidden_size // heads)
    layers: int = config.num_hidden_layers
    return 2 * layers * kv_heads * size * context * dtype.itemsize


def _attribute(config: PreTrainedConfig, name: str, default: int) -> int:
    """A whole number of a configuration; the default where it is absent, None, or differs between layers."""
    try:
        value = getattr(config, name)
    except Exception:  # transformers refuses some names with errors of its own
        return default
    return value if isinstance(value, int) and value > 0 else default


def _top_k(skeleton: PreTrainedModel, catalog: Catalog) -> tuple[int, ...]:
    """Experts a token of each layer, as the router beside the experts or the configuration says."""
    found: dict[int, int] = {}
    for path, layer in catalog.layer_of.items():
        block = skeleton.get_submodule(path.rpartition(".")[0])
        config = skeleton.config.get_text_config()
        candidates = [*block.modules(), config]
        values = (getattr(owner, name, None) for name in _TOP_K for owner in candidates)
        found[layer] = next((v for v in values if isinstance(v, int) and v > 0), 1)
    return tuple(found[layer] for layer in range(len(catalog.layers)))


def _decoding(
    skeleton: PreTrainedModel, catalog: Catalog, dtype: torch.dtype, device: torch.device, tokens: int
) -> int:
    """The largest matrix that is decoded before it is multiplied by so many tokens, with the codes that it is of.

    Embeddings are decoded row by row, and very large matrices not at all.
    """
    encoded = [matrix for matrix in catalog.matrices() if matrix.encoding not in PLAIN.values()]
    shapes = [m.shape for m in encoded if kernel_for(m.encoding, device, tokens).decodes]
    for path, tensor in catalog.encoded.items():
        small = isinstance(skeleton.get_submodule(path), nn.Linear) and tensor.shape[0] * tensor.shape[1] < LARGE
        if small and kernel_for(tensor.encoding, device, tokens).decodes:
            shapes.append((tensor.shape[0], tensor.shape[1]))
    return max((out * width * (dtype.itemsize + 8) for out, width in shapes), default=0)


def _programs(skeleton: PreTrainedModel, catalog: Catalog) -> int:
    """What a CPU's matrix library keeps for matrices that are multiplied as they are: measured, with large ones."""
    sizes = [m.shape[0] * m.shape[1] * 2 for m in catalog.matrices() if m.encoding in PLAIN.values()]
    head = skeleton.get_output_embeddings()
    for path, module in skeleton.named_modules():
        if isinstance(module, nn.Linear) and module is not head and path not in catalog.encoded:
            sizes.append(module.out_features * module.in_features * 2)
    return min(_MOST_PROGRAMS, 10 * max(sizes, default=0))


def _workspace(
    config: PreTrainedConfig,
    kv: int,
    context: int,
    dtype: torch.dtype,
    top_k: int,
    logits: int,
    device: torch.device,
    tokens: int,
) -> int:
    """Temporaries at the peak of a forward pass of so many tokens, with the allocator's slack.

    One layer's keys and values are copied when they grow and again to be multiplied, where that is not our own
    attention for every head that shares them; a chunk has its mask, its hidden states and one row a token and choice
    of expert; sampling works on a few copies of the logits.
    """
    hidden: int = config.hidden_size
    heads = _attribute(config, "num_attention_heads", 1)
    shared = 1 if is_ours(device, dtype) else max(1, heads // _attribute(config, "num_key_value_heads", heads))
    layer_kv: int = kv // max(1, config.num_hidden_layers)
    scores_at_once = SCORES if tokens > 1 else heads * context
    attention = layer_kv * (2 + 2 * shared) + tokens * context * (1 + dtype.itemsize) + scores_at_once * 16
    rows = tokens * (top_k * 3 + 12) * hidden * max(4, dtype.itemsize)
    scores: int = (7 + min(logits, tokens)) * config.vocab_size * 4
    return 64 * MIB + attention + rows + scores
