"""Where a configuration keeps its settings of quantisation, and which scheme they are of. Reads no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

QUANT_FILE = "hf_quant_config.json"  # beside config.json: ModelOpt's, of checkpoints that are quantised
# transformers' key, compressed-tensors' before 0.6, and MLX's.
_KEYS = ("quantization_config", "compression_config", "quantization")
_TEXT = ("text", "language", "llm", "thinker", "talker")  # of names of sub-configurations: those that count first
_DEEPEST = 4  # sub-configurations inside each other
_ALIASES = {
    "auto_round": "auto-round",
    "autoround": "auto-round",
    "intel/auto-round": "auto-round",
    "awq_marlin": "awq",
    "compressed_tensors": "compressed-tensors",
    "fbgemm_fp8": "fp8",
    "gptq_marlin": "gptq",
    "gptqmodel": "gptq",
    "modelopt_fp4": "modelopt",
    "modelopt_fp8": "modelopt",
    "modelopt_mixed": "modelopt",
    "nvfp4": "modelopt",
}


def quantization_of(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The scheme and its settings; None if the checkpoint is not quantised.

    Composite models have them at the top or in a sub-configuration, or in several places. The first that names a
    scheme counts: from the top down, what is said of text before what is said of other modalities. Where the scheme
    cannot be told, the name is what the settings say, whatever that is.
    """
    found = [settings for part in _parts(config) for settings in _of_part(part)]
    for settings in found:
        if (name := _scheme(settings)) is not None:
            return name, settings
    stated = [settings for settings in found if settings]
    return (str(stated[0]), stated[0]) if stated else None


def without_quantization(config: Mapping[str, Any], deepest: int = _DEEPEST) -> dict[str, Any]:
    """The configuration with no such settings, at any place."""
    plain = {name: value for name, value in config.items() if name not in _KEYS}
    if not deepest:
        return plain
    return {
        name: without_quantization(value, deepest - 1) if isinstance(value, dict) else value
        for name, value in plain.items()
    }


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those inside it, level by level."""
    level = [config]
    for _ in range(_DEEPEST):
        yield from level
        inside = [
            item for part in level for item in part.items() if isinstance(item[1], dict) and item[0] not in _KEYS
        ]
        level = [value for _, value in sorted(inside, key=lambda item: not _is_text(item[0]))]


def _is_text(name: str) -> bool:
    return any(word in name for word in _TEXT)


def _of_part(config: Mapping[str, Any]) -> list[Any]:
    """The settings of one configuration.

    MLX converts checkpoints that were quantised already, and once left the original's settings beside its own.
    """
    found = {key: config[key] for key in _KEYS if config.get(key) is not None}
    own = found.get("quantization")
    if _is_mlx(own):
        return [own]
    return [value for key, value in found.items() if key != "quantization" or isinstance(value, dict)]


def _scheme(settings: Any) -> str | None:
    """The name of the scheme; None if the settings do not tell."""
    if not isinstance(settings, dict):
        return None
    stated = settings.get("quant_method")
    if isinstance(stated, str) and stated:
        return _ALIASES.get(stated.lower(), stated.lower())
    if stated is not None:
        return None
    inner = settings.get("quantization")
    if "quant_algo" in settings or (isinstance(inner, dict) and "quant_algo" in inner):
        return "modelopt"
    if "config_groups" in settings:
        return "compressed-tensors"
    if settings.get("load_in_4bit") is True or settings.get("load_in_8bit") is True:
        return "bitsandbytes"
    if "w_bit" in settings:
        return "awq"
    return "mlx" if _is_mlx(settings) else None


def _is_mlx(settings: Any) -> bool:
    return isinstance(settings, dict) and {"group_size", "bits"} <= settings.keys() and "quant_method" not in settings
