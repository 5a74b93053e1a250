"""transformers' own model, all of it on the device, and accelerate's offload of half of it to RAM."""

from __future__ import annotations

import gc
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.gpu.links import DEVICE
from benchmarks.gpu.measuring import Say
from benchmarks.gpu.scale import Model, Scale
from moe_local.units import GIB, format_size

_FEW = 3  # tokens that the offloaded model decodes
_SPARE = 2 * GIB  # of VRAM beside the weights


def resident(say: Say, model: Model, scale: Scale) -> None:
    """transformers in bf16, random weights made on the device."""
    config = scale.config(model)
    size = _bytes_of(config)
    free, _ = torch.cuda.mem_get_info()
    if size + (0 if scale.tiny else _SPARE) > free:
        raise MemoryError(f"{format_size(size)} of weights in bf16 do not fit {format_size(free)}")
    network = _empty(config).to_empty(device=DEVICE)
    _choose_experts(network, scale)
    _fill(network)
    say(weights_bytes=size, layers=config.num_hidden_layers)
    for tokens in scale.prompts:
        _generate(network, tokens, 1)
        say(**{f"prefill_{tokens}_tokens_per_second": round(tokens / _generate(network, tokens, 1), 1)})
    _decode(say, network, scale.decoded)


def offloaded(say: Say, model: Model, scale: Scale) -> None:
    """A model of fewer layers, half of them on the device, the others brought by accelerate for each token."""
    from accelerate import dispatch_model

    config = scale.config(model, scale.peer_layers)
    network = _empty(config).to_empty(device="cpu")
    _choose_experts(network, scale)
    for parameter in network.parameters():
        parameter.data.fill_(0.01)
    _fill_buffers(network)
    layers = config.num_hidden_layers
    places: dict[str, Any] = {name: DEVICE for name, _ in network.named_children() if name != "model"}
    places |= {f"model.{name}": DEVICE for name, _ in network.model.named_children() if name != "layers"}
    places |= {f"model.layers.{at}": DEVICE if at < layers // 2 else "cpu" for at in range(layers)}
    network = dispatch_model(network, places, main_device=DEVICE)
    say(weights_bytes=_bytes_of(config), layers=layers)
    _decode(say, network, min(_FEW, scale.decoded))


def _empty(config: Any) -> Any:
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def _choose_experts(network: Any, scale: Scale) -> None:
    """transformers' own choice, or, on a pretend device, what it can do."""
    if scale.tiny:
        network.set_experts_implementation("eager")


def _bytes_of(config: Any) -> int:
    made = sum(parameter.nbytes for parameter in _empty(config).parameters())
    gc.collect()
    return int(made)


@torch.no_grad()
def _fill(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.ndim < 2:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, 0.02)
    _fill_buffers(network)


@torch.no_grad()
def _fill_buffers(network: nn.Module) -> None:
    """Frequencies of positions and the like: any numbers that are finite will do for the time that they take."""
    for buffer in network.buffers():
        buffer.fill_(0.01 if buffer.is_floating_point() else 0)


def _generate(network: Any, prompt: int, tokens: int) -> float:
    """Seconds of so many new tokens after a random prompt."""
    generator = torch.Generator().manual_seed(prompt)
    ids = torch.randint(network.config.vocab_size, (1, prompt), generator=generator).to(DEVICE)
    torch.cuda.synchronize()
    began = perf_counter()
    network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )
    torch.cuda.synchronize()
    return perf_counter() - began


def _decode(say: Say, network: Any, tokens: int) -> None:
    _generate(network, 32, 2)
    first = _generate(network, 32, 1)
    spent = _generate(network, 32, tokens + 1) - first
    say(tokens_per_second=round(tokens / spent, 2), vram_peak=torch.cuda.max_memory_reserved())
