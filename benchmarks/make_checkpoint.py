"""Write a synthetic checkpoint with the dimensions of Qwen3-30B-A3B and fewer layers, shard by shard.

    python benchmarks/make_checkpoint.py DIR [--layers 12] [--experts 128] [--top-k 8] [--check]

Weights are N(0, 0.02) in bf16. A plain random model routes nearly every token to the same experts, because its
residual stream hardly depends on the token; embeddings scaled by 64 (exact in bf16) make routing near uniform.
`--check` runs random tokens and prints how evenly experts are used. 12 layers are about 16 GB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, Qwen3MoeConfig

from moe_local import Options, load
from moe_local.testing import tiny_tokenizer

EMBEDDING_SCALE = 64
STD = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--experts", type=int, default=128, help="of a layer")
    parser.add_argument("--top-k", type=int, default=8, help="of a token in each layer")
    parser.add_argument("--check", action="store_true", help="only measure how evenly experts are used")
    arguments = parser.parse_args()
    if not arguments.check:
        write(arguments.directory, config(arguments.layers, arguments.experts, arguments.top_k))
    print(json.dumps(usage(arguments.directory), indent=2))


def config(layers: int, experts: int, top_k: int, **sizes: int) -> Qwen3MoeConfig:
    """Qwen3-30B-A3B's, with these numbers of layers and experts, and other `sizes` by name."""
    dimensions = {
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "intermediate_size": 6144,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    }
    return Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        num_hidden_layers=layers,
        num_experts=experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **{**dimensions, **sizes},
    )


def write(directory: Path, config: Qwen3MoeConfig) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(config, generator)):
        name = f"model-{number:05d}-of-{config.num_hidden_layers:05d}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        total += sum(tensor.nbytes for tensor in shard.values())
        print(f"{name}: {total / 1e9:.1f} GB so far", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(directory)
    GenerationConfig(do_sample=False).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


def _shards(config: Qwen3MoeConfig, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """One dictionary of tensors a file: the outer weights, then each layer."""

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(0, STD, generator=generator).to(torch.bfloat16)

    def ones(size: int) -> Tensor:
        return torch.ones(size, dtype=torch.bfloat16)

    hidden, wide = config.hidden_size, config.num_attention_heads * config.head_dim
    narrow = config.num_key_value_heads * config.head_dim
    yield {
        "model.embed_tokens.weight": normal(config.vocab_size, hidden) * EMBEDDING_SCALE,
        "model.norm.weight": ones(hidden),
        "lm_head.weight": normal(config.vocab_size, hidden),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        shard = {
            f"{prefix}.input_layernorm.weight": ones(hidden),
            f"{prefix}.post_attention_layernorm.weight": ones(hidden),
            f"{prefix}.self_attn.q_proj.weight": normal(wide, hidden),
            f"{prefix}.self_attn.k_proj.weight": normal(narrow, hidden),
            f"{prefix}.self_attn.v_proj.weight": normal(narrow, hidden),
            f"{prefix}.self_attn.o_proj.weight": normal(hidden, wide),
            f"{prefix}.self_attn.q_norm.weight": ones(config.head_dim),
            f"{prefix}.self_attn.k_norm.weight": ones(config.head_dim),
            f"{prefix}.mlp.gate.weight": normal(config.num_experts, hidden),
        }
        for expert in range(config.num_experts):
            path = f"{prefix}.mlp.experts.{expert}"
            shard[f"{path}.gate_proj.weight"] = normal(config.moe_intermediate_size, hidden)
            shard[f"{path}.up_proj.weight"] = normal(config.moe_intermediate_size, hidden)
            shard[f"{path}.down_proj.weight"] = normal(hidden, config.moe_intermediate_size)
        yield shard


def usage(directory: Path, tokens: int = 256) -> dict[str, float]:
    """How evenly `tokens` random tokens use the experts.

    `entropy` is of the usage counts, 1 when uniform, averaged over layers; `adjacent` is the share of a token's
    experts that its predecessor used too (chance is top-k / experts).
    """
    chosen: list[Tensor] = []
    with load(directory, Options(context=tokens)) as engine:
        model = engine.model
        hooks = [
            layer.mlp.gate.register_forward_hook(lambda module, args, out: chosen.append(out[2]))
            for layer in model.model.layers
        ]
        ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            model(input_ids=ids, logits_to_keep=1)
        for hook in hooks:
            hook.remove()
    experts = model.config.num_experts
    counts = torch.stack([index.flatten().bincount(minlength=experts) for index in chosen]).float()
    share = counts / counts.sum(1, keepdim=True)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(1) / torch.tensor(experts).log()
    shared = [(index[1:, :, None] == index[:-1, None, :]).any(-1).float().mean() for index in chosen]
    return {
        "entropy": round(float(entropy.mean()), 4),
        "adjacent": round(float(torch.stack(shared).mean()), 4),
        "chance": model.config.num_experts_per_tok / experts,
        "unused": float((counts == 0).float().mean()),
    }


if __name__ == "__main__":
    main()
