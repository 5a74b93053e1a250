"""Switch Transformers: one expert a token, as long as it has room; tokens that come too late go without."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.core_model_loading import MergeModulelist, WeightConverter
from transformers.models.switch_transformers import modeling_switch_transformers as theirs

from moe_local.checkpoint.bindings.base import Binding, Experts


class SwitchTransformersExperts(Experts):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config.num_experts, config.d_model, config.d_ff, config.dense_act_fn, gate=False)


class SwitchTransformersSparseMLP(theirs.SwitchTransformersSparseMLP):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor) -> Tensor:
        experts = self.router.num_experts
        mask, weights, _ = self.router(hidden_states)
        if mask.is_floating_point():  # before transformers 5.18
            mask, weights = weights, mask
        mask = mask.reshape(-1, experts)  # [T, experts], a row of zeros for a token that was dropped
        index = torch.where(mask.any(dim=1), mask.argmax(dim=1), experts)[:, None]
        out: Tensor = self.experts(hidden_states.flatten(0, 1), index, weights.reshape(-1, 1))
        return out.view_as(hidden_states)


def _conversions() -> tuple[WeightConverter, ...]:
    return (
        WeightConverter("experts.expert_*.wi.weight", "experts.up_proj", [MergeModulelist(dim=0)]),
        WeightConverter("experts.expert_*.wo.weight", "experts.down_proj", [MergeModulelist(dim=0)]),
    )


SWITCH_TRANSFORMERS = Binding(
    {
        theirs.SwitchTransformersExperts: SwitchTransformersExperts,
        theirs.SwitchTransformersSparseMLP: SwitchTransformersSparseMLP,
    },
    _conversions,
)
