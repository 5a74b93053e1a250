"""Grok-1: scores of attention capped by a tanh, norms before and after attention and experts, scaled at both ends.

After the weights' publication in JAX (github.com/xai-org/grok-1): its router computes in float32, and its gelu is the
one by a tanh. Tensors have the names of the copies in safetensors.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2DecoderLayer
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralPreTrainedModel, MixtralTopKRouter

_NORMS = {
    "pre_attn_norm": "input_layernorm",
    "post_attn_norm": "post_attention_layernorm",
    "pre_moe_norm": "pre_feedforward_layernorm",
    "post_moe_norm": "post_feedforward_layernorm",
}


class Grok1Config(LlamaConfig):  # type: ignore[misc]
    model_type = "grok-1"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_local_experts": "num_experts",
        "attn_logit_softcapping": "max_attn_value",
        "hidden_activation": "hidden_act",
    }

    vocab_size: int = 131_072
    hidden_size: int = 6144
    intermediate_size: int = 32_768
    num_hidden_layers: int = 64
    num_attention_heads: int = 48
    num_key_value_heads: int | None = 8
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    num_experts: int = 8
    num_experts_per_tok: int = 2
    attn_output_multiplier: float | int = 128**-0.5
    max_attn_value: float | int = 30.0
    embedding_multiplier_scale: float | int = 6144**0.5
    output_multiplier_scale: float | int = 3**-0.5

    @property
    def query_pre_attn_scalar(self) -> float:
        """By whose root scores are divided, as Gemma says it."""
        return float(self.attn_output_multiplier**-2)


class Grok1Experts(MixtralExperts):  # type: ignore[misc]
    """All of a layer."""


class Grok1Router(MixtralTopKRouter):  # type: ignore[misc]
    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [T, H] -> logits [T, experts], weights [T, k] and index [T, k] of the chosen ones."""
        logits = F.linear(hidden.float(), self.weight.float())
        weights, index = logits.softmax(dim=-1).topk(self.top_k, dim=-1)
        return logits, weights.to(hidden.dtype), index


class Grok1Moe(nn.Module):
    def __init__(self, config: Grok1Config) -> None:
        super().__init__()
        self.gate = Grok1Router(config)
        self.experts = Grok1Experts(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = hidden_states.flatten(0, 1)
        _, weights, index = self.gate(hidden)
        return cast("Tensor", self.experts(hidden, index, weights).view_as(hidden_states))


class Grok1DecoderLayer(Gemma2DecoderLayer):  # type: ignore[misc]
    def __init__(self, config: Grok1Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.mlp = Grok1Moe(config)
        for name in _NORMS.values():
            setattr(self, name, LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps))


class Grok1Model(LlamaModel, MixtralPreTrainedModel):  # type: ignore[misc]
    """Of Mixtral it has how experts and routers are initialised."""

    config_class = Grok1Config
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False  # torch's kernel caps no scores
    _can_record_outputs: ClassVar[dict[str, type]] = {
        "hidden_states": Grok1DecoderLayer,
        "attentions": Gemma2Attention,
    }

    def __init__(self, config: Grok1Config) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Grok1DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **kwargs: Any) -> Any:
        embeddings = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=embeddings * self.config.embedding_multiplier_scale, **kwargs)


class Grok1ForCausalLM(LlamaForCausalLM, MixtralPreTrainedModel):  # type: ignore[misc]
    config_class = Grok1Config
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False

    def __init__(self, config: Grok1Config) -> None:
        super().__init__(config)
        self.model = Grok1Model(config)
        self.post_init()

    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * self.config.output_multiplier_scale
        return out


AutoConfig.register("grok-1", Grok1Config, exist_ok=True)
register_checkpoint_conversion_mapping(
    "grok-1",
    [
        *(WeightRenaming(rf"\.{theirs}\.scale", f".{ours}.weight") for theirs, ours in _NORMS.items()),
        WeightRenaming(r"^model\.norm\.scale", "model.norm.weight"),
        WeightRenaming(r"\.attn\.", ".self_attn."),
        WeightRenaming(r"\.moe_block\.", ".mlp."),
        WeightConverter(
            [".experts.*.linear.weight", ".experts.*.linear_v.weight"],
            ".experts.gate_up_proj",
            [MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(".experts.*.linear_1.weight", ".experts.down_proj", [MergeModulelist(dim=0)]),
    ],
    overwrite=True,
)
