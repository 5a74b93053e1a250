"""A tiny dense model and carvings of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_local.demo.convert import Carving, CarvingShape, fingerprint
from moe_local.demo.dense import DenseModel, tokenizer_files

SHAPE = CarvingShape(layers=3, hidden=32, intermediate=64, shared=32, experts=4, width=8, top_k=2)
CONFIG: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def silent(stage: str, fraction: float) -> None:
    """No report."""


def tiny_tokenizer() -> dict[str, str]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, CONFIG["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return {"tokenizer.json": tokenizer.to_str()} | tokenizer_files(TEMPLATE, **special)


def tiny_dense() -> DenseModel:
    """A random Llama whose weights are bfloat16 values, so that writing them loses nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fields = {name: value for name, value in CONFIG.items() if name != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": CONFIG["rope_theta"]}
    model = LlamaForCausalLM(LlamaConfig(**fields, rope_parameters=rope, initializer_range=0.3))
    tensors = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    tensors.pop("lm_head.weight", None)
    return DenseModel(CONFIG, tensors, tiny_tokenizer(), "test")


def tiny_carving(dense: DenseModel, shape: CarvingShape = SHAPE, *, plain: bool = False) -> Carving:
    """A random carving. A plain one has indifferent routers and leaves the down projections as they are."""
    generator = torch.Generator().manual_seed(1)
    count, rank = len(shape.moe_layers), 2

    def codes(*size: int) -> torch.Tensor:
        return torch.randint(-127, 128, size, generator=generator, dtype=torch.int8)

    router = torch.randn(count, shape.experts, shape.hidden, generator=generator).bfloat16() * 0.05
    bias = torch.randn(count, shape.experts, generator=generator) * 0.01
    strength = 0.0 if plain else 1.0
    return Carving(
        shape=shape,
        order=torch.stack([torch.randperm(shape.intermediate, generator=generator) for _ in range(count)]),
        router=router * strength,
        bias=bias * strength,
        mend_out=codes(count, shape.hidden, rank),
        mend_in=codes(count, rank, shape.intermediate),
        mend_scale=torch.full((count, rank), 1e-6 * strength),
        fingerprint=fingerprint(dense),
    )


@pytest.fixture(scope="module")
def dense() -> DenseModel:
    return tiny_dense()
