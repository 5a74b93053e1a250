"""LongCat-Flash: some of the experts that a token may choose give it back as it is, and have no weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.core_model_loading import Concatenate, ConversionOps, MergeModulelist, WeightConverter
from transformers.models.longcat_flash import modeling_longcat_flash as theirs

from moe_local.checkpoint.bindings.base import Binding, Experts


class LongcatFlashExperts(Experts):
    def __init__(self, config: PreTrainedConfig) -> None:
        sizes = config.n_routed_experts, config.hidden_size, config.expert_ffn_hidden_size
        super().__init__(*sizes, config.hidden_act)


class LongcatFlashMoE(theirs.LongcatFlashMoE):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = hidden_states.flatten(0, 1)
        *_, weights, index = self.router(hidden_states)
        same = (weights * (index >= self.experts.num_experts)).sum(dim=1, keepdim=True)
        out: Tensor = self.experts(hidden, index, weights) + (hidden * same).to(hidden.dtype)
        return out.view_as(hidden_states)


class WithWeights(ConversionOps):  # type: ignore[misc]
    """The experts that have any: transformers writes gates of the others, too, which it never uses."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        return {name: tensors[: kwargs["config"].n_routed_experts] for name, tensors in input_dict.items()}


def _conversions() -> tuple[WeightConverter, ...]:
    patterns = ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"]
    operations = [WithWeights(), MergeModulelist(dim=0), Concatenate(dim=1)]
    return (WeightConverter(patterns, "mlp.experts.gate_up_proj", operations),)


LONGCAT_FLASH = Binding(
    {theirs.LongcatFlashExperts: LongcatFlashExperts, theirs.LongcatFlashMoE: LongcatFlashMoE},
    _conversions,
)
