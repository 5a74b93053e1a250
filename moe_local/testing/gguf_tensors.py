"""The tensors of a model as llama.cpp's conversion writes them, and the way back for numbers that were quantised."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from moe_local.testing.gguf_metadata import GEMMA_HEAD

Pieces = dict[str, Tensor]  # by the part of a layer, or by the whole name of what is in none
Write = Callable[[str, Tensor, Any], "Pieces | None"]  # name in the layer, numbers, configuration; None: as it is

PERMUTED = {
    "llama",
    "deepseek",
    "granitemoe",
    "granitehybrid",
}  # architectures whose conversion interleaves the rotary halves of q and k
LIKE = {"mellum": "qwen3moe", "hy_v3": "dots1", "deepseek32": "glm-dsa"}  # whose names do where the package has none
# What is never quantised
_NEVER = (
    "ffn_gate_inp",
    "shortconv.conv",
    "ssm_conv1d",
    "ssm_conv1d_q",
    "ssm_conv1d_k",
    "ssm_conv1d_v",
    "ssm_a",
    "ssm_d",
    "ssm_norm",
    "indexer.proj",
)
_RENAMED = {  # for the package, which knows the names of other years
    r"correction_bias$": "correction.bias",
    r"expert_bias$": "expert_bias.bias",
    r"gate\.moe_statics\.": "moe_statics.",
    r"_moe\.router\.": "_moe.router.layer.",
    r"^model\.(embeddings|norm_f)\.": r"backbone.\1.",
    r"^model\.(layers\.\d+\.(mixer|norm)\.)": r"backbone.\1",
    r"layer_scalar$": "layer_scalar.weight",
    r"\.sinks$": ".sinks.weight",
    r"\.dt_bias$": ".dt_proj.bias",
}


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor of a file. `put_back` gives the model other numbers in its place."""

    name: str
    numbers: Tensor
    quantisable: bool
    put_back: Callable[[Tensor], None]


def gguf_tensors(model: PreTrainedModel, name: str, *, fused: bool) -> list[WrittenTensor]:
    """All of a model's, for the architecture `name`; `fused` experts have gate and up in one."""
    mapping = gguf.get_tensor_name_map(_architecture(LIKE.get(name, name)), model.config.num_hidden_layers)
    found = []
    for path, tensor in model.state_dict().items():
        if path == "lm_head.weight" and model.config.tie_word_embeddings:
            continue

        def write(numbers: Tensor, path: str = path) -> Pieces:
            return _pieces(path, numbers, model.config, name, mapping, fused=fused)

        for its_name, numbers in write(tensor).items():
            never = (
                numbers.ndim < 2 or its_name.endswith("bias") or any(f".{part}." in f"{its_name}." for part in _NEVER)
            )
            found.append(WrittenTensor(its_name, numbers, not never, _put_back(tensor, write, its_name)))
    return found


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)


def _put_back(tensor: Tensor, write: Callable[[Tensor], Pieces], name: str) -> Callable[[Tensor], None]:
    """What is written of numbers that tell their own places tells where each is to go."""

    def put(numbers: Tensor) -> None:
        places = write(torch.arange(tensor.numel()).view(tensor.shape))[name]
        tensor.view(-1)[places.reshape(-1)] = numbers.reshape(-1)

    return put


def _pieces(
    path: str, tensor: Tensor, config: PreTrainedConfig, name: str, mapping: gguf.TensorNameMap, *, fused: bool
) -> Pieces:
    layer = re.match(r"(?:model\.layers|transformer\.blocks)\.(\d+)\.(.*)", path)
    pieces = WRITE[name](layer[2] if layer else path, tensor, config) if name in WRITE else None
    if pieces is None and layer is not None and ".experts." in path:
        pieces = _experts(path.rpartition(".")[2], tensor, alternate=name == "gpt-oss", fused=fused)
    if pieces is None:
        return {_mapped(path, mapping): _permuted(path, tensor, config, name)}
    return {f"blk.{layer[1]}.{part}" if layer else part: numbers for part, numbers in pieces.items()}


def _mapped(path: str, mapping: gguf.TensorNameMap) -> str:
    for pattern, wanted in _RENAMED.items():
        path = re.sub(pattern, wanted, path)
    found = mapping.get_name(path, try_suffixes=(".weight", ".bias"))
    assert found is not None, f"no name for {path}"
    return str(found)


def _permuted(path: str, tensor: Tensor, config: PreTrainedConfig, name: str) -> Tensor:
    """The queries and keys of Llama's kin; filters and others without their axis of length 1."""
    part = path.split(".")[-2] if "." in path else ""
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", 0)}
    if name in PERMUTED and part in heads:
        halves = tensor.view(heads[part], 2, -1, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)
    squeezed = path.endswith(("shared_expert_gate.weight", "conv.conv.weight", "conv1d.weight", "correction_bias"))
    return tensor.squeeze() if squeezed else tensor


def _experts(kind: str, tensor: Tensor, *, alternate: bool, fused: bool) -> Pieces:
    """Views of a parameter of all experts, by what a GGUF has of it."""
    suffix = "bias" if kind.endswith("_bias") else "weight"
    whole = tensor.transpose(1, 2) if alternate and tensor.ndim == 3 else tensor  # [experts, out(, in)]
    if kind.startswith("down"):
        return {f"ffn_down_exps.{suffix}": whole}
    if kind.startswith("up"):
        return {f"ffn_up_exps.{suffix}": whole}
    if fused:
        return {f"ffn_gate_up_exps.{suffix}": whole}
    gate, up = (whole[:, ::2], whole[:, 1::2]) if alternate else whole.chunk(2, dim=1)
    return {f"ffn_gate_exps.{suffix}": gate, f"ffn_up_exps.{suffix}": up}


def _delta(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    """Qwen's layers of linear attention, and its norms."""
    if path.endswith("norm.weight") and not path.endswith("linear_attn.norm.weight"):
        return _above_one(path, tensor)
    if path == "linear_attn.A_log":
        return {"ssm_a": -tensor.exp()}
    if path == "linear_attn.in_proj_qkvz.weight":
        heads, key, value = config.linear_num_key_heads, config.linear_key_head_dim, config.linear_value_head_dim
        values = config.linear_num_value_heads // heads * value
        parts = torch.split(tensor.view(heads, -1, tensor.shape[1]), [key, key, values, values], dim=1)
        q, k, v, z = (part.reshape(-1, tensor.shape[1]) for part in parts)
        return {"attn_qkv.weight": torch.cat([q, k, v]), "attn_gate.weight": z}
    return None


_NORMS = {
    "model.norm.weight": "output_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}


def _above_one(path: str, tensor: Tensor) -> Pieces:
    return {_NORMS[path]: tensor + 1}


def _tiled_delta(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    """The same with value heads in turns of the key heads."""
    heads, values = config.linear_num_key_heads, config.linear_num_value_heads
    keys = 2 * heads * config.linear_key_head_dim

    def tiled(x: Tensor) -> Tensor:
        return x.reshape(heads, values // heads, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)

    def after_keys(x: Tensor) -> Tensor:
        return torch.cat([x[:keys], tiled(x[keys:])])

    written: dict[str, Callable[[Tensor], Pieces]] = {
        "A_log": lambda x: {"ssm_a": tiled(-x.exp())},
        "dt_bias": lambda x: {"ssm_dt.bias": tiled(x)},
        "in_proj_a.weight": lambda x: {"ssm_alpha.weight": tiled(x)},
        "in_proj_b.weight": lambda x: {"ssm_beta.weight": tiled(x)},
        "in_proj_z.weight": lambda x: {"attn_gate.weight": tiled(x)},
        "in_proj_qkv.weight": lambda x: {"attn_qkv.weight": after_keys(x)},
        "conv1d.weight": lambda x: {"ssm_conv1d.weight": after_keys(x.squeeze(1))},
        "out_proj.weight": lambda x: {"ssm_out.weight": tiled(x.T).T},
    }
    own = written.get(path.removeprefix("linear_attn."))
    return _delta(path, tensor, config) if own is None else own(tensor)


def _latent(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    if path != "self_attn.kv_b_proj.weight":
        return None
    both = tensor.view(config.num_attention_heads, -1, tensor.shape[1])
    k, v = torch.split(both, [config.qk_nope_head_dim, config.v_head_dim], dim=1)
    return {"attn_k_b.weight": k.transpose(1, 2), "attn_v_b.weight": v}


def _hy(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    return {"exp_probs_b": tensor} if path.endswith("correction_bias") else None


def _granite(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    if path == "shared_mlp.input_linear.weight":  # of Granite, as the experts that serve every token are there
        gate, up = tensor.chunk(2)
        return {"ffn_gate_shexp.weight": gate, "ffn_up_shexp.weight": up}
    return _mamba(path, tensor, config.mamba_n_groups) if path.startswith("mamba.") else None


def _nemotron(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    return _mamba(path, tensor, config.n_groups) if path.startswith("mixer.") else None


def _mamba(path: str, tensor: Tensor, groups: int) -> Pieces | None:
    """Of the second version."""
    kind = path.split(".")[1]
    if kind == "A_log":
        return {"ssm_a": -tensor.exp()[:, None]}
    if kind == "D":
        return {"ssm_d": tensor[:, None]}
    return {"ssm_norm.weight": tensor.reshape(groups, -1)} if kind == "norm" else None


def _jamba(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    return {"ssm_a": -tensor.exp()} if path == "mamba.A_log" else None


def _kimi(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    if path.endswith("A_log"):
        return {"ssm_a": -tensor.exp()}
    if path == "self_attn.conv1d.weight":  # of queries, keys and values, one below the other
        parts = (part.squeeze(1)[None, :, None, :] for part in tensor.chunk(3))
        return {f"ssm_conv1d_{kind}.weight": part for kind, part in zip("qkv", parts, strict=True)}
    plain = {"forget_gate.dt_bias": "ssm_dt.bias", "forget_gate.f_a_proj.weight": "ssm_f_a.weight"}
    plain["forget_gate.f_b_proj.weight"] = "ssm_f_b.weight"
    name = plain.get(path.removeprefix("self_attn."))
    return {name: tensor} if name else _latent(path, tensor, config)


def _gemma(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    scales = {"router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale"}
    if path == "model.norm.weight":
        rotary = config.rope_parameters["full_attention"]["partial_rotary_factor"]
        half = GEMMA_HEAD // 2
        return {
            "output_norm.weight": tensor,
            "rope_freqs.weight": torch.tensor([1.0 if n < int(half * rotary) else 1e30 for n in range(half)]),
        }
    return {scales[path]: tensor} if path in scales else None


def _grok(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    norms = {
        "post_attention_layernorm.weight": "attn_output_norm.weight",
        "pre_feedforward_layernorm.weight": "ffn_norm.weight",
        "post_feedforward_layernorm.weight": "layer_output_norm.weight",
    }
    return {norms[path]: tensor} if path in norms else None


def _dbrx(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    if ".experts." not in path:
        return None
    each = tensor.view(config.ffn_config.moe_num_experts, -1, config.d_model)
    kind = path.rpartition(".")[2]
    part = {"w1": "ffn_gate_exps", "v1": "ffn_up_exps", "w2": "ffn_down_exps"}[kind]
    return {f"{part}.weight": each.transpose(1, 2) if kind == "w2" else each}


def _llama4(path: str, tensor: Tensor, config: Any) -> Pieces | None:
    """The experts' matrices, which are transposed there."""
    kind = path.rpartition(".")[2]
    return _experts(kind, tensor.transpose(1, 2), alternate=False, fused=False) if ".experts." in path else None


WRITE: dict[str, Write] = {
    "grok": _grok,
    "dbrx": _dbrx,
    "llama4": _llama4,
    "granitemoe": _granite,
    "granitehybrid": _granite,
    "nemotron_h_moe": _nemotron,
    "jamba": _jamba,
    "kimi-linear": _kimi,
    "gemma4": _gemma,
    "hy_v3": _hy,
    "qwen3next": _delta,
    "qwen35moe": _tiled_delta,
    "deepseek2": _latent,
    "mistral4": _latent,
    "deepseek32": _latent,
    "glm-dsa": _latent,
}
