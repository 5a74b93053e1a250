"""DeepSeekMoE: Llama's attention, small experts of which a token gets several, and others that every token gets."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2_moe.modeling_qwen2_moe import (
    Qwen2MoeExperts,
    Qwen2MoeMLP,
    Qwen2MoePreTrainedModel,
    Qwen2MoeTopKRouter,
)


class DeepseekConfig(LlamaConfig):  # type: ignore[misc]
    """Where config.json does not say: as its authors' code has it."""

    model_type = "deepseek"
    attribute_map: ClassVar[dict[str, str]] = {"num_experts": "n_routed_experts"}

    moe_intermediate_size: int = 1407
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int = 6
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.scoring_func != "softmax":
            raise ValueError(f"experts are scored by {self.scoring_func!r}, not by a softmax")


class DeepseekExperts(Qwen2MoeExperts):  # type: ignore[misc]
    """The routed ones of a layer."""


class DeepseekMoe(nn.Module):
    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = Qwen2MoeTopKRouter(config)
        self.experts = DeepseekExperts(config)
        self.shared_experts = Qwen2MoeMLP(config, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = hidden_states.flatten(0, 1)
        _, weights, index = self.gate(hidden)
        routed = self.experts(hidden, index, weights).view_as(hidden_states)
        return cast("Tensor", routed + self.shared_experts(hidden_states))


class DeepseekDecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    def __init__(self, config: DeepseekConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if layer_idx >= config.first_k_dense_replace and layer_idx % config.moe_layer_freq == 0:
            self.mlp = DeepseekMoe(config)


class DeepseekModel(LlamaModel, Qwen2MoePreTrainedModel):  # type: ignore[misc]
    """Of Qwen2-MoE it has how experts and routers are initialised."""

    config_class = DeepseekConfig

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(DeepseekDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.post_init()


class DeepseekForCausalLM(LlamaForCausalLM, Qwen2MoePreTrainedModel):  # type: ignore[misc]
    config_class = DeepseekConfig

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.model = DeepseekModel(config)
        self.post_init()


AutoConfig.register("deepseek", DeepseekConfig, exist_ok=True)
# An expert at a time, as Qwen's are published.
register_checkpoint_conversion_mapping("deepseek", get_checkpoint_conversion_mapping("qwen2_moe"), overwrite=True)
