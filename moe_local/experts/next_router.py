"""Finding the routers of a model, to ask them ahead of time; whatever its architecture calls them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_local.checkpoint.architecture import experts_modules
from moe_local.checkpoint.catalog import Catalog
from moe_local.memory.accelerator import on_cpu
from moe_local.prediction.routers import NextRouter

# What the MoE block is given comes out of one of these, the first that a layer has.
_NORMS = (
    "pre_feedforward_layernorm", "pre_mlp_layernorm", "pre_ff_layernorm", "ffn_norm", "post_attention_layernorm",
    "input_layernorm", "norm",
)  # fmt: skip
_LEAST_GAIN = 1e-3


@dataclass(frozen=True)
class LayerRouter:
    """A layer's router: `weight` [experts, H] and the `bias` [experts] that some add when they choose, float32; and
    the module that it belongs to, which is given the hidden states.
    """

    path: str  # of the experts
    module: nn.Module
    weight: Tensor
    bias: Tensor | None


def routers(model: nn.Module, catalog: Catalog) -> dict[int, LayerRouter]:
    """The routers that can be read, by layer."""
    found = {}
    for path in experts_modules(model):
        layer = catalog.layer_of[path]
        router = _router(model.get_submodule(path.rpartition(".")[0]), path, catalog.layers[layer].experts)
        if router is not None:
            found[layer] = router
    return found


def next_routers(model: nn.Module, catalog: Catalog) -> NextRouter:
    """For each layer the next one's router, where both have a router and a norm that can be read."""
    found = {
        layer: (router.weight, router.bias, _gain(model, router.path, router.weight.shape[1]))
        for layer, router in routers(model, catalog).items()
    }
    ahead = {}
    for layer, (_, _, gain) in found.items():
        if layer + 1 in found and found[layer + 1][0].shape[1] == len(gain):
            weight, bias, theirs = found[layer + 1]
            ahead[layer] = (weight * (theirs / gain.clamp(min=_LEAST_GAIN))).to(_compute(weight)), bias
    return NextRouter(ahead)


def _compute(weight: Tensor) -> torch.dtype:
    return torch.bfloat16 if on_cpu(weight.device) else weight.dtype


def _router(block: nn.Module, path: str, experts: int) -> LayerRouter | None:
    own = path.rpartition(".")[2]
    candidates = [
        (name, parameter)
        for name, parameter in block.named_parameters()
        if parameter.ndim == 2 and parameter.shape[0] >= experts and not name.startswith(f"{own}.")
    ]
    named = [each for each in candidates if ("gate." in each[0] or "router." in each[0]) and "shared" not in each[0]]
    if len(named) != 1 or not named[0][1].is_floating_point():
        return None
    ((name, weight),) = named
    tensors = (*block.named_buffers(), *block.named_parameters())
    bias = next((t.detach().flatten() for key, t in tensors if "correction" in key and t.numel() == experts), None)
    module = block.get_submodule(name.rpartition(".")[0])
    return LayerRouter(path, module, weight.detach()[:experts].float(), None if bias is None else bias.float())


def _gain(model: nn.Module, path: str, width: int) -> Tensor:
    """What the layer's norm multiplies each channel with, [H]; ones where that cannot be told."""
    for depth in range(2, path.count(".") + 2):
        owner = model.get_submodule(".".join(path.split(".")[:-depth]))
        children = dict(owner.named_children())
        norm = next((children[name] for name in _NORMS if name in children), nn.Identity())
        weight = getattr(norm, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == (width,):
            with torch.no_grad():
                gain: Tensor = norm(torch.ones(1, width, dtype=weight.dtype, device=weight.device))[0].float()
            return gain if gain.abs().max() > _LEAST_GAIN else weight.detach().float()  # zeros: it centres
    return torch.ones(width, device=next(model.parameters()).device)
