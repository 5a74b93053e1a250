"""Llama 4: what goes into an expert, not what comes out, is multiplied by the router's score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter
from transformers.models.llama4 import modeling_llama4 as theirs

from moe_local.checkpoint.bindings.base import Binding, Experts


class Llama4TextExperts(Experts):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config.num_local_experts, config.hidden_size, config.intermediate_size, config.hidden_act)


class Llama4TextMoe(theirs.Llama4TextMoe):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        hidden = hidden_states.reshape(-1, self.hidden_dim)
        all_scores, logits = self.router(hidden)
        index = logits.topk(self.top_k, dim=1).indices
        scores = all_scores.gather(1, index)  # [T, k]
        scaled = hidden[:, None] * scores[:, :, None]
        routed = self.experts(scaled.flatten(0, 1), index.reshape(-1, 1), torch.ones_like(scores).reshape(-1, 1))
        out: Tensor = self.shared_expert(hidden)
        return out + routed.view_as(scaled).sum(dim=1), logits


class Llama4ForCausalLM(theirs.Llama4ForCausalLM):  # type: ignore[misc]
    """The part of a model with images that writes: transformers 5.24 asks it for images, which it does not have."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.image_outputs = None
        return out


def _conversions() -> tuple[WeightConverter, ...]:
    """Of the fused tensors, transposed, and of an expert at a time, as quantisers publish them."""
    separate = ["experts.*.gate_proj.weight", "experts.*.up_proj.weight"]
    return (
        WeightConverter("experts.gate_up_proj", "experts.gate_up_proj", [Transpose(1, 2)]),
        WeightConverter("experts.down_proj", "experts.down_proj", [Transpose(1, 2)]),
        WeightConverter(separate, "experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)]),
        WeightConverter("experts.*.down_proj.weight", "experts.down_proj", [MergeModulelist(dim=0)]),
    )


LLAMA4 = Binding(
    {
        theirs.Llama4TextExperts: Llama4TextExperts,
        theirs.Llama4TextMoe: Llama4TextMoe,
        theirs.Llama4ForCausalLM: Llama4ForCausalLM,
    },
    _conversions,
)
