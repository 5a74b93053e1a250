"""Quantised tiny checkpoints, and what a paged model of one must give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes import understood
from moe_local.engine import load
from moe_local.memory.files import FileReader
from moe_local.model.build import LazyTensor
from moe_local.planning.options import Options
from moe_local.testing.architectures import architecture
from moe_local.testing.tiny import tiny_inputs, write_tiny_checkpoint

# A tensor's name and itself -> the tensors to hold in its place.
Replace = Callable[[str, Tensor], Mapping[str, Tensor]]


def rewrite_checkpoint(
    source: Path, target: Path, replace: Replace, quantization_config: Mapping[str, Any] | None
) -> Path:
    """A copy of a tiny checkpoint in one file, each of its tensors replaced. Returns `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.json"):
        if not file.name.endswith(".index.json"):
            shutil.copy(file, target)
    config = json.loads((source / "config.json").read_text())
    config.pop("quantization_config", None)
    if quantization_config is not None:
        config["quantization_config"] = dict(quantization_config)
    (target / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
    replaced = {n: t.contiguous() for name, tensor in tensors.items() for n, t in replace(name, tensor).items()}
    save_file(replaced, target / "model.safetensors", metadata={"format": "pt"})
    return target


def decode_checkpoint(directory: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The numbers of every matrix that the checkpoint holds encoded."""
    checkpoint = Checkpoint.open(directory)
    encoded = {name: s for name, s in understood(checkpoint).items() if isinstance(s, EncodedTensor)}
    reader = FileReader()
    try:
        reader.open(checkpoint.files)
        return {name: LazyTensor(source, reader, dtype)[...] for name, source in encoded.items()}
    finally:
        reader.close()


def is_linear(name: str, tensor: Tensor) -> bool:
    """Whether a published tensor is the weight of a linear layer that quantisers take, an expert's included."""
    kept = ("lm_head", "embed_tokens", "router", "mlp.gate.", "ffn.gate.", "block_sparse_moe.gate.")
    return tensor.ndim == 2 and name.endswith(".weight") and not any(part in name for part in kept)


def assert_runs_as(model_type: str, quantised: Path, plain: Path) -> None:
    """The paged model of `quantised` must give the logits of transformers' eager model of `plain`, in float32."""
    found = architecture(model_type)
    inputs = tiny_inputs(found)
    reference = found.model_class.from_pretrained(plain, dtype=torch.float32, experts_implementation="eager").eval()
    with torch.no_grad():
        wanted = reference(**inputs).logits
        with load(quantised, Options(device="cpu", context=64, experts=0.5, dtype="float32")) as engine:
            got = engine.model(**inputs).logits
            misses = engine.stats()["misses"]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert misses > 0


def assert_quantised_runs(
    model_type: str,
    directory: Path,
    quantise: Callable[[str, Tensor], Mapping[str, Tensor] | None],
    dequantise: Callable[[str, Mapping[str, Tensor]], Tensor],
    quantization_config: Mapping[str, Any],
) -> Path:
    """Quantises a tiny checkpoint, and compares its numbers and its paged model with what it means.

    The matrices must decode to the very numbers, and the model give what transformers does with them.

    `quantise` gives None for a tensor to keep; `dequantise` gets the tensor's name and what `quantise` gave. Some
    matrix must have been quantised. Returns the quantised checkpoint.
    """
    original = write_tiny_checkpoint(architecture(model_type), directory / "original")
    taken: dict[str, Tensor] = {}

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = quantise(name, tensor)
        if parts is None:
            return {name: tensor}
        taken[name] = dequantise(name, parts).to(torch.float32)
        return parts

    quantised = rewrite_checkpoint(original, directory / "quantised", replace, quantization_config)
    plain = rewrite_checkpoint(
        original, directory / "plain", lambda name, tensor: {name: taken.get(name, tensor)}, None
    )
    assert any(".experts." in name or "block_sparse_moe" in name for name in taken)
    decoded = decode_checkpoint(quantised, torch.float32)
    assert decoded.keys() == taken.keys()
    for name, weight in decoded.items():
        assert torch.equal(weight, taken[name]), name
    assert_runs_as(model_type, quantised, plain)
    return quantised
