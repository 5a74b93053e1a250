"""Tiny random checkpoints of every MoE architecture: the real model classes, shrunk to load in a blink."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from moe_local.testing.architectures import Architecture
from moe_local.testing.eager import mended
from moe_local.testing.shrunk_config import NUM_EXPERTS, tiny_config
from moe_local.testing.tokenizer import SPECIAL_TOKENS, TOKENIZER_SIZE, tiny_tokenizer


def tiny_inputs(architecture: Architecture, *, tokens: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Keyword arguments for one forward of the architecture's model: one sequence of random ordinary text.

    That is `input_ids` `[1, tokens]`, except for a model that reads embeddings, which gets `inputs_embeds`
    `[1, tokens, hidden]` and a mask. A model that denoises a block of text gets the block as well,
    `decoder_input_ids` `[1, tokens]`; one with separate experts for images gets `moe_mm_token_type_ids`
    `[1, tokens]`, which sends every other token to those.
    """
    generator = torch.Generator().manual_seed(seed)
    config = tiny_config(architecture)
    if architecture.takes_embeddings:
        hidden_size = config.get_text_config().hidden_size
        embeddings = torch.randn(1, tokens, hidden_size, generator=generator)
        return {"inputs_embeds": embeddings, "attention_mask": torch.ones(1, tokens, dtype=torch.long)}
    inputs = {"input_ids": _random_text(tokens, generator)}
    accepted = inspect.signature(architecture.model_class.forward).parameters
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _random_text(tokens, generator)
    if "moe_mm_token_type_ids" in accepted:
        inputs["moe_mm_token_type_ids"] = (torch.arange(tokens) % 2)[None]
    return inputs


def _random_text(tokens: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(len(SPECIAL_TOKENS), TOKENIZER_SIZE, (1, tokens), generator=generator)


def tiny_model(architecture: Architecture, *, seed: int = 0) -> PreTrainedModel:
    """The architecture's model with `tiny_config` and random float32 weights, ready to run, experts eagerly.

    The same seed gives the same weights. Unlike a freshly initialised model, tokens part ways in the routers
    and nothing is constant: a bias or a scale that a loader forgets shows in the logits.
    """
    with torch.random.fork_rng(devices=[]), _uninitialized_is_nan():
        torch.manual_seed(seed)
        model = architecture.model_class._from_config(tiny_config(architecture), dtype=torch.float32)
    model.set_experts_implementation("eager")
    randomize_(model, torch.Generator().manual_seed(seed))
    return cast(PreTrainedModel, mended(architecture, model.eval()))


def write_tiny_checkpoint(
    architecture: Architecture,
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_bytes: int | None = None,
) -> Path:
    """Saves `tiny_model` and a tokenizer as somebody would publish them: config, safetensors, chat template.

    Tensors carry their published names, which are not always the names in the model: expert by expert, say,
    where the model holds one tensor for all experts. `max_shard_bytes` splits the weights into shards of at
    most that many bytes (or one tensor), with an index file. Returns the directory, made where it is missing.
    """
    directory = Path(directory)
    model = tiny_model(architecture, seed=seed).to(dtype)
    model.save_pretrained(directory, max_shard_size="5GB" if max_shard_bytes is None else max_shard_bytes)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@contextlib.contextmanager
def _uninitialized_is_nan() -> Iterator[None]:
    """Some models leave weights to the checkpoint: NaN there, rather than whatever the memory held before."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@torch.no_grad()
def randomize_(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Gives every tensor that a checkpoint holds random values of a useful scale, in place."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights appear under several names
            seen.add(id(tensor))
            _randomize_tensor_(name, tensor, generator, is_embedding=id(tensor) in embeddings)


def _randomize_tensor_(name: str, tensor: torch.Tensor, generator: torch.Generator, *, is_embedding: bool) -> None:
    if name.endswith("tid2eid"):
        # Which experts each token id goes to: `top_k` different ones.
        scores = torch.rand(tensor.shape[0], NUM_EXPERTS, generator=generator)
        tensor.copy_(scores.topk(tensor.shape[1]).indices)
        return
    if not tensor.is_floating_point() or tensor.isinf().any():
        return  # hash multipliers, bounds of a clamp
    tensor[tensor.isnan()] = 0
    noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    if is_embedding:
        tensor.copy_(noise)
    elif tensor.ndim >= 2 and tensor.float().std() > tensor.float().mean().abs():
        tensor.copy_(noise * _gain(name) / tensor.shape[-1] ** 0.5)
    else:
        # A norm's ones, a bias's zeros, a decay's ramp: near what it was, and no longer regular.
        if name.endswith("balancing_biases"):
            noise[-1] = 0  # loading always puts this one back
        tensor.add_(noise, alpha=0.1)


def _gain(name: str) -> float:
    """Routers get larger weights, so that what a token is decides more than the experts' biases do."""
    return 3.0 if {"gate", "router"} & set(name.split(".")) else 1.0
