"""JetMoE: experts in the MLP, which are paged, and in the attention, which stay with the dense part.

Attention multiplies by one matrix of an expert before it looks at the keys and by the other one after: no record of
both would be used at one time. They are a fifth of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.core_model_loading import WeightRenaming
from transformers.models.jetmoe import modeling_jetmoe as theirs

from moe_local.checkpoint.bindings.base import Binding, Experts


class JetMoeExperts(Experts):
    def __init__(self, config: PreTrainedConfig) -> None:
        sizes = config.num_local_experts, config.hidden_size, config.intermediate_size
        super().__init__(*sizes, config.activation_function)


class JetMoeMoE(theirs.JetMoeMoE):  # type: ignore[misc]
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        del self.input_linear, self.output_linear
        self.experts = JetMoeExperts(config)

    def forward(self, layer_input: Tensor) -> Tensor:
        hidden = layer_input.flatten(0, 1)
        logits = self.router.layer(hidden).float()
        chosen, index = logits.topk(self.router.top_k, dim=1)
        weights = torch.softmax(chosen, dim=1).type_as(hidden)
        out: Tensor = self.experts(hidden, index, weights) + self.bias
        return out.view_as(layer_input)


def _conversions() -> tuple[WeightRenaming, ...]:
    return (
        WeightRenaming(r"mlp\.input_linear\.weight", "mlp.experts.gate_up_proj"),
        WeightRenaming(r"mlp\.output_linear\.weight", "mlp.experts.down_proj"),
    )


JETMOE = Binding({theirs.JetMoeMoE: JetMoeMoE}, _conversions, dense=(theirs.JetMoeParallelExperts,))
