"""Which transformers class a checkpoint is, and its skeleton: the whole model with no memory behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_local.checkpoint.bindings import REFUSED, binding_of, folder_of
from moe_local.checkpoint.bindings.base import classes_replaced
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.models import MODELS
from moe_local.checkpoint.record import PLAIN
from moe_local.errors import CheckpointError, UnsupportedError, first_line

_MOST_MODULES = 50_000  # the largest published models have about 5,000
_LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"
)  # fmt: skip
_FAMILIES = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
)


def load_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The checkpoint's configuration, of transformers' class or of ours; never runs code from the checkpoint.

    Raises UnsupportedError for an unknown model type or one that needs its own code.
    """
    model_type = checkpoint.config.get("model_type")
    where = f"{checkpoint.directory} (model_type {model_type!r})"
    known = _config_class(model_type)
    if known is None:
        if "auto_map" in checkpoint.config:
            raise UnsupportedError(
                f"{where} needs code from its own repository, which moe-local never runs",
                remedy=f"use a model that transformers implements, or one of {', '.join(MODELS)}",
            )
        raise UnsupportedError(
            f"{where} is unknown to transformers {transformers.__version__}",
            remedy="pip install -U transformers, if a newer release has it",
        )
    _assert_plausible(checkpoint)
    try:
        if checkpoint.gguf or model_type in MODELS:
            config = known.from_dict(checkpoint.config)
        else:
            config = AutoConfig.from_pretrained(checkpoint.directory, local_files_only=True, trust_remote_code=False)
        if (binding := binding_of(type(config))) is not None:
            binding.mend(config)
    except Exception as error:  # whatever a hostile or broken config makes of transformers' validation
        raise CheckpointError(
            f"{checkpoint.config_file} is not valid for {model_type!r} ({first_line(error)})",
            remedy="download it again",
        ) from error
    _drop_quantization(config)
    _assert_rotary(config, checkpoint.config_file)
    return cast("PreTrainedConfig", config)


def _config_class(model_type: object) -> type[PreTrainedConfig] | None:
    """Ours where there is one; None for a type that nobody knows."""
    if isinstance(model_type, str) and model_type in MODELS:
        return cast("type[PreTrainedConfig]", MODELS[model_type].config_class)
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return cast("type[PreTrainedConfig]", CONFIG_MAPPING[model_type])
    return None


def _drop_quantization(config: PreTrainedConfig) -> None:
    """Takes settings of quantisation out: ours to read, transformers would load its own kernels for them."""
    for name, value in list(vars(config).items()):
        if name in ("quantization_config", "compression_config"):
            delattr(config, name)
        elif isinstance(value, PreTrainedConfig):
            _drop_quantization(value)


def _assert_rotary(config: PreTrainedConfig, file: Path) -> None:
    """Refuses rotary embeddings of more than a whole head: models build with them, and fail when they run."""
    parts = (part for part in (config, config.get_text_config()) if isinstance(part, PreTrainedConfig))
    found = [vars(part).get("rope_parameters") for part in parts]
    while found:
        given = found.pop()
        if isinstance(given, dict):
            found.extend(given.values())
            factor = given.get("partial_rotary_factor", 1)
            if not isinstance(factor, int | float) or not 0 < factor <= 1:
                raise CheckpointError(
                    f"{file} says partial_rotary_factor {factor!r}, a share of a head", remedy="download it again"
                )


def _assert_plausible(checkpoint: Checkpoint) -> None:
    """Refuses a configuration of more layers than there are tensors, before anything of that size is built."""
    parts = [checkpoint.config, *(part for part in checkpoint.config.values() if isinstance(part, dict))]
    for name, part in product(_LAYERS, parts):
        layers = part.get(name)
        if isinstance(layers, int) and not 0 <= layers <= max(1, len(checkpoint.tensors)):
            raise CheckpointError(
                f"{checkpoint.config_file} says {name} {layers}, and the checkpoint has"
                f" {len(checkpoint.tensors)} tensors",
                remedy="download it again",
            )


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model that makes one text of another, rather than go on with it."""
    known = _config_class(config.get("model_type"))
    return bool(config.get("is_encoder_decoder", getattr(known, "is_encoder_decoder", False)))


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class to load: ours, else the one `architectures` names, else the generating one for its configuration."""
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"config.json has the architectures {names!r}", remedy="download it again")
    if config.model_type in MODELS:
        return MODELS[config.model_type]
    name = next(iter(names), "")
    named = _class_named(name)
    if named is not None and named.can_generate():
        return named
    for family in _FAMILIES:
        found = getattr(modeling_auto, family).get(type(config), None)
        if found is not None:
            return cast("type[PreTrainedModel]", found[0] if isinstance(found, tuple) else found)
    if named is not None:
        return named
    raise UnsupportedError(
        f"model_type {config.model_type!r} (architecture {name!r}) has no text-generating class in transformers"
        f" {transformers.__version__}",
        remedy="name a causal language model",
    )


def _class_named(name: str) -> type[PreTrainedModel] | None:
    found = getattr(transformers, name, None)
    return (
        cast("type[PreTrainedModel]", found)
        if isinstance(found, type) and issubclass(found, PreTrainedModel)
        else None
    )


def compute_dtype(config: PreTrainedConfig, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that the checkpoint is meant to run in: its configuration's, else its commonest of 16 or 32 bits."""
    for source in (config, config.get_text_config()):
        if isinstance(source.dtype, torch.dtype):
            return source.dtype
    counts = Counter(entry.dtype for entry in checkpoint.tensors.values() if entry.dtype in PLAIN)
    return counts.most_common(1)[0][0] if counts else torch.float32


def build_skeleton(cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device, as its binding has it if any: every parameter's shape and dtype, no bytes."""
    config = deepcopy(config)
    binding = binding_of(cls)
    try:
        with ExitStack() as stack:
            stack.enter_context(_bounded())
            stack.enter_context(classes_replaced({} if binding is None else binding.classes))
            for context in cls.get_init_context(dtype, False, False, None):
                stack.enter_context(context)
            model: PreTrainedModel = cls(config)
        model.tie_weights()
        return model.eval()
    except Exception as error:
        raise CheckpointError(
            f"{cls.__name__} cannot be built from config.json ({first_line(error)})",
            remedy="download it again",
        ) from error


@contextmanager
def _bounded() -> Iterator[None]:
    """While inside, no more modules are made than any model has: a configuration may ask for any number of layers,
    under any name. Raises ValueError.
    """
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > _MOST_MODULES:
            raise ValueError(f"it would have more than {_MOST_MODULES} modules")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def is_experts(module: nn.Module) -> bool:
    """Whether transformers' experts interface decorates the module's class."""
    return hasattr(type(module), "_apply_gate")


def experts_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The experts modules by path, in the order of the forward pass: their index here is the *layer* of a key."""
    return {name: module for name, module in model.named_modules() if is_experts(module)}


def assert_all_captured(model: PreTrainedModel) -> None:
    """Raises UnsupportedError naming the classes of MoE blocks that no binding reaches, or a model without any."""
    captured = experts_modules(model)
    binding = binding_of(type(model))
    strays = sorted(set(_strays(model, captured, () if binding is None else binding.dense)))
    reason = REFUSED.get(folder_of(type(model)))
    if reason is not None and (strays or not captured):
        raise UnsupportedError(f"{type(model).__name__} {reason}", remedy="name another Mixture-of-Experts model")
    if strays:
        raise UnsupportedError(
            f"{type(model).__name__} has experts that moe-local cannot page: {', '.join(strays)}",
            remedy="ask for a binding of this architecture",
        )
    if not captured:
        raise UnsupportedError(
            f"{type(model).__name__} is a dense model: it has no experts to page",
            remedy="name a Mixture-of-Experts checkpoint",
        )


def _strays(model: nn.Module, captured: dict[str, nn.Module], dense: tuple[type[nn.Module], ...]) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, dense) or any(name == path or name.startswith(f"{path}.") for path in captured):
            continue
        if _looks_like_experts(name, module) and not any(path.startswith(f"{name}.") for path in captured):
            yield type(module).__name__ if not isinstance(module, nn.ModuleList) else f"the list {name}"


def _looks_like_experts(name: str, module: nn.Module) -> bool:
    if "shared" in f"{name} {type(module).__name__}".lower():
        return False  # shared experts serve every token: dense
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return name.rpartition(".")[2] == "experts" and len(module) > 1
    direct: list[Any] = list(module.parameters(recurse=False))
    return "expert" in type(module).__name__.lower() and any(p.ndim >= 3 for p in direct)
