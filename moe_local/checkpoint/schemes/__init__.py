"""How quantised checkpoints hold their matrices. A new scheme is a file and a line in `SCHEMES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.mlx_names import published
from moe_local.checkpoint.quantization import quantization_of
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.checkpoint.schemes.auto_round import auto_round
from moe_local.checkpoint.schemes.awq import awq
from moe_local.checkpoint.schemes.bitsandbytes import bitsandbytes
from moe_local.checkpoint.schemes.compressed_tensors import compressed_tensors
from moe_local.checkpoint.schemes.fp8 import fp8
from moe_local.checkpoint.schemes.gguf import gguf
from moe_local.checkpoint.schemes.gptq import gptq
from moe_local.checkpoint.schemes.mlx import mlx
from moe_local.checkpoint.schemes.modelopt import modelopt
from moe_local.checkpoint.schemes.mxfp4 import mxfp4
from moe_local.errors import CheckpointError, UnsupportedError

# From the `quantization_config` of config.json and all tensors to the quantised ones. A scheme names in `parts` and
# `beside` every tensor it has understood; the others are taken as they are.
Scheme = Callable[[Mapping[str, Any], Mapping[str, TensorEntry]], list[EncodedTensor]]

SCHEMES: dict[str, Scheme] = {
    "auto-round": auto_round,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed_tensors,
    "fp8": fp8,
    "gguf": gguf,
    "gptq": gptq,
    "mlx": mlx,
    "modelopt": modelopt,
    "mxfp4": mxfp4,
}


def method(checkpoint: Checkpoint) -> str | None:
    """The scheme of a checkpoint, as `SCHEMES` calls it; None if it is not quantised."""
    found = quantization_of(checkpoint.config)
    return None if found is None else found[0]


def understood(checkpoint: Checkpoint) -> dict[str, Source]:
    """Every tensor by the name that the unquantised checkpoint has for it.

    Raises UnsupportedError for an unknown scheme, CheckpointError for one that makes no sense.
    """
    found = quantization_of(checkpoint.config)
    if found is None:
        return published(checkpoint.config, dict(checkpoint.tensors), mlx=False)
    name, config = found
    if name not in SCHEMES:
        raise UnsupportedError(
            f"{checkpoint.directory} is quantised with {name!r}, which is not supported",
            remedy=f"use one of {', '.join(sorted(SCHEMES))}, or the model's bf16, fp16 or fp32 weights",
        )
    try:
        encoded = SCHEMES[name](config, checkpoint.tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.directory} is not as its settings of {name} quantisation say ({error!r})",
            remedy="download it again",
        ) from error
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    used |= {name for tensor in encoded for name in tensor.beside}
    plain = {name: entry for name, entry in checkpoint.tensors.items() if name not in used}
    sources: dict[str, Source] = {**plain, **{tensor.name: tensor for tensor in encoded}}
    return published(checkpoint.config, sources, mlx=name == "mlx")
