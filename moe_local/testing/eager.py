"""transformers' own forward pass, which ours is compared with; what fails in it is put right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_local.testing.architectures import Architecture


def eager_model(found: Architecture, directory: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The architecture's model, whole and in RAM, its experts run one after the other by transformers' code."""
    model = found.model_class.from_pretrained(directory, dtype=dtype, experts_implementation="eager").eval()
    return mended(found, model)


def mended(found: Architecture, model: Any) -> Any:
    """The same model, put right where transformers is wrong.

    NLLB-MoE runs experts 0 and 1 whatever the router chose (5.0 to 5.24 at least): there the same modules are run
    for the router's choices, as transformers 4 did. Llama 4 with images asks its text model for them (5.24).
    """
    if found.name == "nllb_moe":
        for module in model.modules():
            if type(module).__name__ == "NllbMoeExperts":
                module.forward = lambda hidden, mask, gates, experts=module: _chosen(experts, hidden, gates)
    if found.name == "llama4" and hasattr(model, "language_model"):
        model.language_model.register_forward_hook(lambda module, given, out: setattr(out, "image_outputs", None))
    return model


def _chosen(experts: Any, hidden: Tensor, gates: Tensor) -> Tensor:
    """hidden [T, H] through those experts whose column of gates [T, experts] is not zero."""
    out = torch.zeros_like(hidden)
    for number in range(experts.num_experts):
        tokens = gates[:, number].nonzero().flatten()
        if len(tokens):
            weights = gates[tokens, number, None] * (1 - experts.moe_token_dropout)
            out.index_add_(0, tokens, (experts[f"expert_{number}"](hidden[tokens]) * weights).to(hidden.dtype))
    return out
