"""What a model will take, measured on its skeleton: transformers' own code run with no memory behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, PreTrainedConfig, PreTrainedModel

from moe_local.checkpoint.architecture import experts_modules
from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.record import PLAIN, Matrix
from moe_local.formats.registry import format_of
from moe_local.kernels.matrix import kernel_for
from moe_local.memory.accelerator import on_cpu
from moe_local.model.attention import is_ours
from moe_local.model.buffers import columns, rows_decoded
from moe_local.model.live_bytes import LiveBytes, OnlyOutputs
from moe_local.model.transformers_api import attends_eagerly, kv_cache, wide_parameters
from moe_local.planning import formulas
from moe_local.planning.formulas import PREFILL_CHUNK, ForwardPass, decoding_bytes, program_bytes, router_copy_bytes
from moe_local.planning.needs import Needs

_COUNTED = 8  # layers: hybrid models repeat after so many at most
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
    kv_bytes = kv_cache_bytes(skeleton, columns(context), dtype)
    kv_bytes_per_sequence = kv_cache_bytes(skeleton, columns(each), dtype) if sequences > 1 else 0
    top_k = _top_k(skeleton, catalog)
    heads = _attribute(config, "num_attention_heads", 1)
    shared = max(1, heads // _attribute(config, "num_key_value_heads", heads))
    passes = ForwardPass(
        context=context,
        itemsize=dtype.itemsize,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        heads=heads,
        top_k=max(top_k),
        inner=max(layout.projections["down_proj"].shape[1] for layer in catalog.layers for layout in layer.kinds),
        one_by_one=any(_by_itself(matrix, device) for matrix in catalog.matrices()),
        kv_bytes=kv_bytes,
        heads_per_kv=1 if is_ours(device, dtype) else shared,
        expanded=_expanded(config, heads),
        eager_heads=_eager_heads(skeleton),
        logits=logits,
        programs=_programs(skeleton, catalog),
        routers=router_copy_bytes(
            [layer.experts for layer in catalog.layers], config.hidden_size, in_ram=on_cpu(device)
        ),
    )
    passes = replace(passes, beyond=_beyond(skeleton, passes))
    return Needs.of_passes(
        passes.workspaces(_decoding(skeleton, catalog, dtype, device)),
        dense=dense_bytes(skeleton, catalog, dtype),
        kv_bytes=kv_bytes,
        slot=catalog.record_size,
        experts=tuple(layer.experts for layer in catalog.layers),
        top_k=top_k,
        sequences=sequences,
        kv_bytes_per_sequence=kv_bytes_per_sequence,
        workspace_bytes_per_sequence=4 * kv_bytes_per_sequence // max(1, config.num_hidden_layers)
        + 2 * config.vocab_size * 4,
    )


def _eager_heads(model: PreTrainedModel) -> int:
    """Heads whose scores a model holds all at once: those of one that transformers runs eagerly; 0 of others."""
    config = model.config.get_text_config()
    if not attends_eagerly(config):
        return 0
    return max(_attribute(config, name, 1) for name in ("num_attention_heads", "swa_num_attention_heads"))


def _expanded(config: PreTrainedConfig, heads: int) -> int:
    """Numbers a token that keys and values of latent attention are expanded to in each layer; 0 for other kinds."""
    parts = [_attribute(config, name, 0) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")]
    return heads * sum(parts) if _attribute(config, "kv_lora_rank", 0) else 0


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
    """Bytes of keys and values after `context` tokens: a forward pass on meta, and the sizes of what it cached.

    Of an encoder-decoder, after so many tokens on either side. Where a model's code cannot run on meta, falls back to
    two vectors a head, a layer and a token.
    """
    for module in experts_modules(skeleton).values():
        module.forward = lambda hidden_states, *args, **kwargs: torch.empty_like(hidden_states)
    try:
        with torch.no_grad():
            ids = torch.zeros(1, context, dtype=torch.long, device="meta")
            return _cached_bytes(skeleton(input_ids=ids, **_inputs_beside(skeleton, ids)))
    except Exception:  # whatever a model's own code does that meta tensors cannot
        return _kv_by_formula(skeleton.config.get_text_config(), context, dtype)


def _beyond(skeleton: PreTrainedModel, passes: ForwardPass) -> int:
    """Bytes that a pass takes beyond what its dimensions say, as scans of linear attention do: counted on meta.

    Leaves experts out: to be called after `kv_cache_bytes`. 1, which keeps passes short, where a model's code cannot
    run on meta. Most models go through no more layers than their configuration says, and some are enough: memory is
    taken by one after the other.
    """
    config: Any = skeleton.config.get_text_config()
    layers = config.num_hidden_layers
    tokens = min(PREFILL_CHUNK, passes.longest, passes.context)
    counting = LiveBytes(chain(skeleton.parameters(), skeleton.buffers()))
    try:
        config.num_hidden_layers = min(layers, _COUNTED)
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        with torch.no_grad(), OnlyOutputs(), counting:
            held = _cached_bytes(skeleton(input_ids=ids, **_inputs_beside(skeleton, ids)))
    except Exception:  # whatever a model's own code does that meta tensors cannot
        return 1
    finally:
        config.num_hidden_layers = layers
    return max(0, counting.peak - held - passes.dense(tokens)) * PREFILL_CHUNK // tokens


def _inputs_beside(skeleton: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """What a forward pass of `ids` is given beside them."""
    alone: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1}
    return {"decoder_input_ids": ids} if skeleton.config.is_encoder_decoder else alone


def _cached_bytes(output: Any) -> int:
    """Bytes of the KV cache in what a forward pass gave."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(kv_cache(output)))


def _tensors(cache: Any) -> Iterator[Tensor]:
    """Every tensor that a cache holds, but for single numbers, in whatever attribute of its layers."""
    if isinstance(cache, EncoderDecoderCache):
        yield from _tensors(cache.self_attention_cache)
        yield from _tensors(cache.cross_attention_cache)
        return
    for layer in getattr(cache, "layers", None) or [cache]:
        for value in vars(layer).values():
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Tensor) and item.ndim:
                    yield item


def _kv_by_formula(config: PreTrainedConfig, context: int, dtype: torch.dtype) -> int:
    heads = _attribute(config, "num_attention_heads", 1)
    kv_heads = _attribute(config, "num_key_value_heads", heads)
    size = _attribute(config, "head_dim", config.hidden_size // heads)
    return formulas.kv_cache_bytes(2 * kv_heads * size, config.num_hidden_layers, context, dtype.itemsize)


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


def _by_itself(matrix: Matrix, device: torch.device) -> bool:
    """Whether an expert's matrix is not multiplied by as it is encoded, together with others."""
    return matrix.encoding in PLAIN.values() or kernel_for(matrix.encoding, device, matrix.shape).decodes


def _decoding(skeleton: PreTrainedModel, catalog: Catalog, dtype: torch.dtype, device: torch.device) -> int:
    """The largest matrix that is decoded before it is multiplied, with the codes that it is of.

    Embeddings are decoded row by row.
    """
    encoded = [matrix for matrix in catalog.matrices() if matrix.encoding not in PLAIN.values()]
    shapes = [m.shape for m in encoded if kernel_for(m.encoding, device, m.shape).decodes]
    for path, tensor in catalog.encoded.items():
        shape = (tensor.shape[0], tensor.shape[1])
        whole = isinstance(skeleton.get_submodule(path), nn.Linear)
        if whole and kernel_for(tensor.encoding, device, shape).decodes:
            shapes.append((rows_decoded(*shape), shape[1]) if format_of(tensor.encoding).divisible else shape)
    return decoding_bytes(shapes, dtype.itemsize)


def _programs(skeleton: PreTrainedModel, catalog: Catalog) -> int:
    """Bytes that a CPU's matrix library keeps for the matrices that are multiplied as they are."""
    sizes = [m.shape[0] * m.shape[1] * 2 for m in catalog.matrices() if m.encoding in PLAIN.values()]
    head = skeleton.get_output_embeddings()
    for path, module in skeleton.named_modules():
        if isinstance(module, nn.Linear) and module is not head and path not in catalog.encoded:
            sizes.append(module.out_features * module.in_features * 2)
    return program_bytes(sizes)
