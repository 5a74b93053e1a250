"""Which MoE architectures there are: discovered from transformers' source and the bindings, and ours."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from moe_local.checkpoint.bindings import BINDINGS
from moe_local.checkpoint.models import MODELS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

# What the source has of a class that keeps the experts interface, decorated or not.
EXPERTS_INTERFACE = ("use_experts_implementation", "def _apply_gate(")
# What a person would load to get text out of a model, best first.
TEXT_FIRST = ("ForCausalLM", "ForConditionalGeneration")
WHOLE_FIRST = ("ForConditionalGeneration", "ForCausalLM")
# Models that take no token ids at all, only what another model makes of them. No attribute tells.
READ_EMBEDDINGS = frozenset({"Qwen3OmniMoeTalkerForConditionalGeneration"})


@dataclass(frozen=True)
class Architecture:
    """One experts class, of transformers or ours, or MoE block that has a binding, and the model to load it with.

    Most modeling files define one experts class; a file with several gives one architecture for each.
    """

    id: str
    """Unique: the name, and what tells it from others of the same name."""
    name: str
    """The folder under `transformers.models`, such as `qwen3_moe`, or the file of ours."""
    experts_class: type[nn.Module]
    model_class: type[PreTrainedModel]
    config_class: type[PreTrainedConfig]

    @property
    def can_generate(self) -> bool:
        """Whether `model.generate(input_ids)` goes on with a text, token after token, from text alone."""
        from transformers import GenerationMixin

        goes_on = issubclass(self.model_class, GenerationMixin) and not self.takes_embeddings
        return goes_on and not self.is_encoder_decoder

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether `model.generate(input_ids)` makes a text of its own from another."""
        return bool(getattr(self.config_class, "is_encoder_decoder", False))

    @property
    def takes_embeddings(self) -> bool:
        """Whether the model is run on `inputs_embeds` instead of `input_ids`."""
        return self.model_class.__name__ in READ_EMBEDDINGS


@functools.cache
def architectures() -> tuple[Architecture, ...]:
    """Every experts class of the installed transformers, in the order of the folders' names; then ours.

    Where a text model exists by itself it is preferred, then a composite model that generates text, then
    whatever contains the experts. Reads the source of every modeling file and imports only those that
    have an experts class, which takes seconds; later calls in the same process are free.

    Raises:
        LookupError: no model of its file contains an experts class.
    """
    return tuple(found for file in _modeling_files() for found in _architectures_of(*file, TEXT_FIRST))


@functools.cache
def whole_architectures() -> tuple[Architecture, ...]:
    """The composite models (text with images, sounds) of which `architectures()` has only the text model.

    Checkpoints of these families are mostly published whole, and their tensors are named differently.
    """
    wholes = [found for file in _modeling_files() for found in _architectures_of(*file, WHOLE_FIRST)]
    text_only = {found.model_class for found in architectures()}
    others = [found for found in wholes if found.model_class not in text_only]
    return tuple(dataclasses.replace(found, id=f"{found.id}-whole") for found in others)


def architecture(name: str) -> Architecture:
    """The architecture with this `id`, or the first of the modeling file with this `name`.

    Raises:
        KeyError: the installed transformers has no such MoE architecture.
    """
    for candidate in (*architectures(), *whole_architectures()):
        if name in (candidate.id, candidate.name):
            return candidate
    raise KeyError(f"transformers has no MoE architecture {name!r}")


@functools.cache
def _modeling_files() -> tuple[tuple[str, str], ...]:
    """An architecture's name, and the module that defines it."""
    import transformers

    paths = sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"))
    theirs = [
        (path.parent.name, f"transformers.models.{path.parent.name}.{path.stem}")
        for path in paths
        if path.parent.name in BINDINGS or _has_interface(path)
    ]
    ours = [model.__module__ for model in MODELS.values()]
    return *theirs, *((module.rpartition(".")[2], module) for module in ours)


def _has_interface(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return any(mark in text for mark in EXPERTS_INTERFACE)


def _architectures_of(name: str, path: str, suffixes: tuple[str, ...]) -> Iterator[Architecture]:
    module = importlib.import_module(path)
    experts_classes = _bound_blocks(name) if name in BINDINGS else _experts_classes(module)
    for experts_class in experts_classes:
        model_class = _model_class_for(experts_class, module, suffixes)
        yield Architecture(
            id=name if len(experts_classes) == 1 else f"{name}-{experts_class.__name__}",
            name=name,
            experts_class=experts_class,
            model_class=model_class,
            config_class=model_class.config_class,
        )


def _experts_classes(module: ModuleType) -> list[type[nn.Module]]:
    from torch import nn

    # The decorator puts `_apply_gate` on the class that it decorates; ours inherit it.
    return [cls for cls in _own_classes(module) if issubclass(cls, nn.Module) and hasattr(cls, "_apply_gate")]


def _bound_blocks(name: str) -> list[type[nn.Module]]:
    from transformers import PreTrainedModel

    bound = BINDINGS[name].classes.items()
    return [theirs for theirs, ours in bound if issubclass(ours, theirs) and not issubclass(ours, PreTrainedModel)]


def _model_class_for(
    experts_class: type[nn.Module], module: ModuleType, suffixes: tuple[str, ...]
) -> type[PreTrainedModel]:
    from transformers import PreTrainedModel

    models = [cls for cls in _own_classes(module) if issubclass(cls, PreTrainedModel)]
    reached = {cls: _classes_built_by(cls, module) for cls in models}
    holding = [cls for cls in models if experts_class in reached[cls]]
    if not holding:
        raise LookupError(f"no model in {module.__name__} contains {experts_class.__name__}")
    # Among equals the smallest: a part that runs by itself rather than a whole that needs more inputs.
    return min(holding, key=lambda cls: (_rank(cls, suffixes), len(reached[cls])))


def _rank(model_class: type[PreTrainedModel], suffixes: tuple[str, ...]) -> int:
    for rank, suffix in enumerate(suffixes):
        if model_class.__name__.endswith(suffix):
            return rank
    # A model with some other head, such as a token classifier's, before a model without one.
    return len(suffixes) + ("For" not in model_class.__name__)


def _own_classes(module: ModuleType) -> list[type]:
    classes = filter(inspect.isclass, vars(module).values())
    return [cls for cls in classes if cls.__module__ == module.__name__]


def _classes_built_by(root: type, module: ModuleType) -> set[type]:
    """The module's classes that constructing `root` names, directly or through one another."""
    own, reached, pending = set(_own_classes(module)), {root}, [root]
    while pending:
        named = own & set(_named_in_constructors(pending.pop()))
        pending.extend(named - reached)
        reached |= named
    return reached


def _named_in_constructors(cls: type) -> Iterator[type]:
    for base in cls.__mro__:
        constructor = inspect.unwrap(vars(base).get("__init__", object.__init__))
        if not inspect.isfunction(constructor):
            continue
        for name in _names_in(constructor.__code__):
            yield from _classes_in(constructor.__globals__.get(name))
            if name == "AutoModel":
                yield from _classes_by_config(cls)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _classes_in(value: Any) -> Iterable[type]:
    """A class, or the classes of a table of them (some files choose their layers from a dict)."""
    candidates = value.values() if isinstance(value, dict) else (value,)
    return [candidate for candidate in candidates if inspect.isclass(candidate)]


def _classes_by_config(cls: type) -> Iterator[type]:
    """What `AutoModel` makes of the configurations that a model of this class can have."""
    from transformers import MODEL_MAPPING

    config_class: Any = getattr(cls, "config_class", None)
    if not inspect.isclass(config_class):
        return
    for candidate in (config_class, *getattr(config_class, "sub_configs", {}).values()):
        if candidate in MODEL_MAPPING:
            yield MODEL_MAPPING[candidate]
