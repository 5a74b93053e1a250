"""How quantised checkpoints hold their matrices. A new scheme is a file and a line in `SCHEMES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.mlx_names import published
from moe_local.checkpoint.quantization import quantization_of
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.errors import CheckpointError, UnsupportedError
from moe_local.registry import load

# From the `quantization_config` of config.json and all tensors to the quantised ones. A scheme names in `parts` and
# `beside` every tensor it has understood; the others are taken as they are.
Read = Callable[[Mapping[str, Any], Mapping[str, TensorEntry]], list[EncodedTensor]]


class Packed(Enum):
    """Whether a checkpoint of a scheme is packed on first use, where nobody asked for a format."""

    ALWAYS = auto()  # it runs faster then
    IF_EXACT = auto()  # if no number changes by more than its scale's rounding
    NEVER = auto()


@dataclass(frozen=True)
class Scheme:
    """How one kind of quantised checkpoint is read: `home` is a module of this package and the function in it."""

    home: str
    packed: Packed

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
        read: Read = load(__name__, self.home)
        return read(config, tensors)


SCHEMES = {
    "auto-round": Scheme("auto_round.auto_round", Packed.IF_EXACT),
    "awq": Scheme("awq.awq", Packed.IF_EXACT),
    "bitsandbytes": Scheme("bitsandbytes.bitsandbytes", Packed.NEVER),
    "compressed-tensors": Scheme("compressed_tensors.compressed_tensors", Packed.IF_EXACT),
    "fp8": Scheme("fp8.fp8", Packed.NEVER),
    "gguf": Scheme("gguf.gguf", Packed.ALWAYS),
    "gptq": Scheme("gptq.gptq", Packed.IF_EXACT),
    "mlx": Scheme("mlx.mlx", Packed.IF_EXACT),
    "modelopt": Scheme("modelopt.modelopt", Packed.IF_EXACT),
    "mxfp4": Scheme("mxfp4.mxfp4", Packed.NEVER),
}


def packed_on_first_use(checkpoint: Checkpoint) -> Packed:
    """As its scheme says; what is not quantised is packed, and what cannot be read is not."""
    name = method(checkpoint)
    if name is None:
        return Packed.ALWAYS
    return SCHEMES[name].packed if name in SCHEMES else Packed.NEVER


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
        encoded = SCHEMES[name].read(config, checkpoint.tensors)
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
