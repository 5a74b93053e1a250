"""Decode and prefill in RAM, moe-local against llama.cpp on the same weights, alternating in one run.

    pip install '.[peers]'                                     # llama-cpp-python, built from its sdist
    python benchmarks/make_checkpoint.py CHECKPOINT
    moe-local pack CHECKPOINT -o STORE --dense-format int4
    python benchmarks/versus_llama_cpp.py convert CHECKPOINT MODEL.gguf
    python benchmarks/versus_llama_cpp.py run STORE MODEL.gguf [--prompt 4096] [--rounds 5]

`convert` writes a GGUF file of a Qwen3-MoE checkpoint and quantises it to Q4_K_M. `run` measures one-token decode and
the prefill of 512 tokens, or of `--prompt`; llama.cpp with its weights repacked and not, the better of the two being
what counts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

PROMPT, WARM, DECODED = 512, 32, 64  # tokens
ROUNDS = 5


def tokens(count: int, seed: int = 0) -> list[int]:
    """Tokens spread over the vocabulary."""
    return [(seed + i * 7919) % 150_000 for i in range(count)]


def convert(checkpoint: Path, target: Path) -> None:
    """Writes `target`: the checkpoint's weights in Q4_K_M, by way of a bf16 file beside it."""
    full = target.with_suffix(".bf16.gguf")
    write_gguf(checkpoint, full)
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(str(full).encode(), str(target).encode(), ctypes.byref(parameters)):
        sys.exit(f"llama.cpp did not quantise {full}")
    full.unlink()


def write_gguf(checkpoint: Path, target: Path) -> None:
    """A Qwen3-MoE checkpoint as bf16 GGUF: experts stacked, no vocabulary."""
    import gguf
    from safetensors import safe_open

    config = json.loads((checkpoint / "config.json").read_text())
    names: dict[str, Any] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        shard = safe_open(file, "pt")
        names.update(dict.fromkeys(shard.keys(), shard))
    writer = gguf.GGUFWriter(target, "qwen3moe", use_temp_file=False)
    describe(writer, config)
    for name, shard in names.items():
        if ".experts." not in name:
            add(writer, gguf_name(name), shard.get_tensor(name))
    for layer in range(config["num_hidden_layers"]):
        for projection in ("gate", "up", "down"):
            add_experts(writer, names, layer, projection, config["num_local_experts"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def describe(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


RENAMED = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in RENAMED:
        return f"{RENAMED[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{RENAMED[rest]}.weight"


def add(writer: Any, name: str, tensor: Any) -> None:
    """A matrix in bf16, anything else in fp32."""
    import gguf
    import torch

    if tensor.ndim == 1 or "ffn_gate_inp" in name:
        writer.add_tensor(name, tensor.float().numpy())
        return
    raw = tensor.contiguous().view(torch.uint8).numpy()
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def add_experts(writer: Any, names: dict[str, Any], layer: int, projection: str, count: int) -> None:
    import torch

    prefix = f"model.layers.{layer}.mlp.experts"
    each = [names[f"{prefix}.{e}.{projection}_proj.weight"] for e in range(count)]
    stacked = torch.stack([s.get_tensor(f"{prefix}.{e}.{projection}_proj.weight") for e, s in enumerate(each)])
    add(writer, f"blk.{layer}.ffn_{projection}_exps.weight", stacked)


class LlamaCpp:
    """llama.cpp through its C interface."""

    def __init__(self, file: Path, threads: int, *, repack: bool, prompt: int = PROMPT) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.prompt = prompt
        self.name = f"llama.cpp, {'repacked' if repack else 'not repacked'}"
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = repack
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = max(2048, 2 * prompt), prompt, PROMPT
        context.n_threads = context.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context)

    def _run(self, ids: list[int]) -> None:
        array = (self.api.llama_token * len(ids))(*ids)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(ids))):
            sys.exit("llama_decode failed")

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prefill(self) -> float:
        """Tokens a second."""
        self._clear()
        began = perf_counter()
        self._run(tokens(self.prompt))
        return self.prompt / (perf_counter() - began)

    def start(self, ids: list[int]) -> Callable[[int], None]:
        """Reads a prompt; gives back what takes one token more."""
        self._clear()
        self._run(ids)
        return lambda token: self._run([token])

    def close(self) -> None:
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


class Forward:
    """A model of transformers, run with the tokens given."""

    model: Any
    prompt = PROMPT

    def _run(self, ids: list[int], cache: Any) -> Any:
        import torch

        from moe_local.model.transformers_api import CACHE, kv_cache

        with torch.inference_mode():
            out = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1, **{CACHE: cache})
        return kv_cache(out)

    def prefill(self) -> float:
        began = perf_counter()
        self._run(tokens(self.prompt), None)
        return self.prompt / (perf_counter() - began)

    def start(self, ids: list[int]) -> Callable[[int], None]:
        """Reads a prompt; gives back what takes one token more."""
        cache = self._run(ids, None)

        def step(token: int) -> None:
            self._run([token], cache)

        return step


class MoeLocal(Forward):
    """A store, through transformers' forward pass with the tokens given; all of it in RAM, or in `ram` bytes."""

    def __init__(self, store: Path, threads: int, ram: int | None = None, prompt: int = PROMPT) -> None:
        import torch

        from moe_local.engine import load
        from moe_local.planning.options import Options

        torch.set_num_threads(threads)
        self.name = f"moe-local, {store.name}"
        self.prompt = prompt
        self.engine = load(store, Options(device="cpu", context=max(2048, 2 * prompt), ram=ram))
        self.model = self.engine.model
        assert ram or self.engine.plan.share == 1.0, "not all experts fit"

    def close(self) -> None:
        self.engine.close()


def decode(side: Any) -> float:
    """Tokens a second."""
    step = side.start(tokens(WARM))
    began = perf_counter()
    for token in tokens(DECODED, seed=11):
        step(token)
    return DECODED / (perf_counter() - began)


def run(store: Path, file: Path, threads: int, prompt: int, rounds: int) -> None:
    """Prints a table of medians, and the ratios of moe-local to the better setting of llama.cpp."""
    makers: list[Callable[[], Any]] = [
        lambda: MoeLocal(store, threads, prompt=prompt),
        lambda: LlamaCpp(file, threads, repack=True, prompt=prompt),
        lambda: LlamaCpp(file, threads, repack=False, prompt=prompt),
    ]
    found: dict[str, dict[str, list[float]]] = {}
    sides = [make() for make in makers]
    for side in sides:
        side.prefill(), decode(side)  # warm-up
    for _ in range(rounds):
        for side in sides:
            figures = found.setdefault(side.name, {"decode": [], "prefill": []})
            figures["decode"].append(decode(side))
            figures["prefill"].append(side.prefill())
    medians = {name: {k: statistics.median(v) for k, v in figures.items()} for name, figures in found.items()}
    print(f"{'':32}{'decode t/s':>14}{'prefill t/s':>14}")
    for name, figures in medians.items():
        spread = found[name]["decode"]
        print(
            f"{name:32}{figures['decode']:14.1f}{figures['prefill']:14.1f}   {min(spread):.1f} to {max(spread):.1f}"
        )
    ours, *theirs = medians.values()
    for measure in ("decode", "prefill"):
        print(f"{measure}: {ours[measure] / max(other[measure] for other in theirs):.2f}x llama.cpp's better setting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("convert")
    making.add_argument("checkpoint", type=Path)
    making.add_argument("gguf", type=Path)
    running = commands.add_parser("run")
    running.add_argument("store", type=Path)
    running.add_argument("gguf", type=Path)
    running.add_argument("--threads", type=int, default=2)
    running.add_argument("--prompt", type=int, default=PROMPT, help="tokens that are read at once")
    running.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    if given.command == "convert":
        convert(given.checkpoint, given.gguf)
    else:
        run(given.store, given.gguf, given.threads, given.prompt, given.rounds)


if __name__ == "__main__":
    main()
