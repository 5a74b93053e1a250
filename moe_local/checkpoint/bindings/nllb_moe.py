"""NLLB-MoE: two experts a token, each as long as it has room.

transformers 5 takes the router's mask of zeros and ones for the numbers of experts, and so runs experts 0 and 1 only.
Here those run that the router chose, as the authors' code does and transformers 4 did.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.core_model_loading import MergeModulelist, WeightConverter
from transformers.models.nllb_moe import modeling_nllb_moe as theirs

from moe_local.checkpoint.bindings.base import Binding, Experts


class NllbMoeExperts(Experts):
    def __init__(self, config: PreTrainedConfig, ffn_dim: int) -> None:
        super().__init__(
            config.num_experts, config.d_model, ffn_dim, config.activation_function, gate=False, bias=True
        )
        self.top_k = 2
        self.kept = 1 - config.moe_token_dropout  # of an expert's output: what training left of it on average


class NllbMoeSparseMLP(theirs.NllbMoeSparseMLP):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        hidden = hidden_states.flatten(0, 1)
        _, gates, _ = self.router(hidden, padding_mask)  # [T, experts], zero where there was no room
        weights, index = gates.topk(self.experts.top_k, dim=1)
        index = index.masked_fill(weights == 0, self.num_experts)
        out: Tensor = self.experts(hidden, index, weights * self.experts.kept)
        return out.view_as(hidden_states)


def _conversions() -> tuple[WeightConverter, ...]:
    names = {
        "up_proj": "fc1.weight",
        "up_proj_bias": "fc1.bias",
        "down_proj": "fc2.weight",
        "down_proj_bias": "fc2.bias",
    }
    return tuple(
        WeightConverter(f"experts.expert_*.{theirs}", f"experts.{ours}", [MergeModulelist(dim=0)])
        for ours, theirs in names.items()
    )


NLLB_MOE = Binding(
    {theirs.NllbMoeExperts: NllbMoeExperts, theirs.NllbMoeSparseMLP: NllbMoeSparseMLP},
    _conversions,
)
