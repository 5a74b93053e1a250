"""How a GGUF file of one architecture reads, and the names that many have in common.

llama.cpp's names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py; what its conversion
does to tensors: convert_hf_to_gguf.py there. transformers' own reader of GGUF does not know most MoE architectures,
and leaves the experts' sizes of those it does at its defaults (5.23).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightTransform

from moe_local.checkpoint.gguf_metadata import Metadata

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PROJECTIONS = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj")


@dataclass(frozen=True)
class Undo:
    """A tensor of the checkpoint, `name`, that llama.cpp's conversion made `parts` of: `change` of `CHANGES` undoes
    it, with the `numbers` of the configuration. Where not all parts are, nothing is undone.
    """

    name: str
    change: str
    parts: tuple[str, ...]
    numbers: Callable[[Mapping[str, Any]], dict[str, int]] = lambda config: {}


@dataclass(frozen=True)
class GgufArchitecture:
    """How a GGUF file of an architecture reads as a Hugging Face checkpoint.

    `config` gives the fields of config.json; `names` are the parts of a layer, and whole names of tensors where
    the suffix differs; `experts` are patterns for the three projections of an expert (gate, up, down), and
    `conversions` make of them what transformers calls otherwise.
    """

    model_type: str
    model_class: str
    config: Callable[[Metadata], dict[str, Any]]
    experts: tuple[str, str, str] = PROJECTIONS
    names: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=lambda: OUTSIDE)  # of all layers
    layers: str = "model.layers"
    rotary_permuted: bool = False  # rows of q and k: each head's rotary halves interleaved
    rope_factors: bool = False  # tensors of the file may divide rotary frequencies
    unused: tuple[str, ...] = ()  # tensors that transformers computes itself
    undo: tuple[Undo, ...] = ()  # in layers
    undo_outside: tuple[Undo, ...] = ()
    conversions: Callable[[], tuple[WeightTransform, ...]] = tuple


ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
ROUTER = {"ffn_gate_inp": "mlp.gate"}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
SHARED_EXPERTS = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
BIAS = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}  # added to scores for the choice alone


def stack(experts: str = "mlp.experts") -> tuple[WeightTransform, ...]:
    """Experts one by one, where Hugging Face's checkpoint has them stacked: gate and up below each other."""
    gate_and_up = [f"{experts}.*.gate_proj.weight", f"{experts}.*.up_proj.weight"]
    return (
        WeightConverter(gate_and_up, f"{experts}.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)]),
        WeightConverter(f"{experts}.*.down_proj.weight", f"{experts}.down_proj", [MergeModulelist(dim=0)]),
    )
