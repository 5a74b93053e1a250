"""DBRX: all experts of a layer one below the other in one matrix for each projection, the last one transposed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.core_model_loading import Concatenate, ConversionOps, Transpose, WeightConverter
from transformers.models.dbrx import modeling_dbrx as theirs

from moe_local.checkpoint.bindings.base import Binding, Experts


class DbrxExperts(Experts):
    def __init__(self, config: PreTrainedConfig) -> None:
        activation = config.ffn_act_fn.get("name", "silu")
        super().__init__(config.moe_num_experts, config.hidden_size, config.ffn_hidden_size, activation)


class DbrxFFN(theirs.DbrxFFN):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor) -> Tensor:
        weights, index = self.route_tokens_to_experts(self.router(hidden_states))
        out: Tensor = self.experts(hidden_states.flatten(0, 1), index, weights)
        return out.view_as(hidden_states)


class PerExpert(ConversionOps):  # type: ignore[misc]
    """[experts * inner, hidden] -> [experts, inner, hidden]."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        sizes = kwargs["config"].ffn_config
        shape = sizes.moe_num_experts, sizes.ffn_hidden_size, sizes.hidden_size
        return {name: each.reshape(shape) for name, (each,) in input_dict.items()}


def _conversions() -> tuple[WeightConverter, ...]:
    given = r"experts\.mlp\."
    return (
        WeightConverter([rf"{given}w1", rf"{given}v1"], "experts.gate_up_proj", [PerExpert(), Concatenate(dim=1)]),
        WeightConverter(rf"{given}w2", "experts.down_proj", [PerExpert(), Transpose(1, 2)]),
    )


def _mend(config: PreTrainedConfig) -> None:
    """The rotary base is the attention's, of which transformers 5 takes no notice: it would be the default."""
    theta = getattr(config.attn_config, "rope_theta", None)
    if theta is not None:
        config.rope_parameters["rope_theta"] = theta


DBRX = Binding(
    {theirs.DbrxExperts: DbrxExperts, theirs.DbrxFFN: DbrxFFN},
    _conversions,
    mend=_mend,
)
