"""The catalog: for every expert key, which bytes of which files, and how they read as matrices.

The names and shapes come from transformers' own conversion mappings, run on traced tensors (see `tracing`), for
every architecture that its experts interface covers; no list of names is kept here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from moe_local.checkpoint.architecture import experts_modules
from moe_local.checkpoint.bindings import binding_of
from moe_local.checkpoint.conversions import Conversions, unreadable
from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.record import EncodedTensor, Extent, Layout, Matrix, Source, place_record, trace
from moe_local.checkpoint.schemes import understood
from moe_local.checkpoint.tracing import Block, Traced, UntraceableError
from moe_local.errors import CheckpointError

_CHOICES = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_SPARE = 1 << 26  # weights


@dataclass(frozen=True, slots=True)
class LayerCatalog:
    """One experts module: its path in the model, and the layout and the extents of each expert's record.

    Experts that are laid out alike, mostly all of them, share one layout: the very same object.
    """

    path: str
    layouts: tuple[Layout, ...]  # [experts]
    records: tuple[tuple[Extent, ...], ...]  # [experts]

    @property
    def experts(self) -> int:
        """Experts of the layer."""
        return len(self.records)

    @property
    def kinds(self) -> tuple[Layout, ...]:
        """The layouts in use, each once."""
        return distinct(self.layouts)

    @property
    def size(self) -> int:
        """Bytes of the largest record."""
        return max(layout.size for layout in self.kinds)


def distinct(layouts: Iterable[Layout]) -> tuple[Layout, ...]:
    """Each object once, in the order in which they come first."""
    return tuple({id(layout): layout for layout in layouts}.values())


@dataclass(frozen=True, slots=True)
class Catalog:
    """Where every expert is, and which tensors of the checkpoint are not experts'.

    `layer_of` gives the index into `layers` for the path of every experts module; modules that share their weights
    (tied encoder and decoder) share a layer. `parameters` gives the parameter's name for dense tensors that become
    one as they are. `encoded` are the modules whose matrix stays encoded: linear layers and embeddings. Of the
    embeddings in `embedding_rows` the rows are read from the files when they are asked for.
    """

    layers: tuple[LayerCatalog, ...]
    layer_of: Mapping[str, int]
    dense: Mapping[str, Source]
    parameters: Mapping[str, str] = field(default_factory=dict)
    encoded: Mapping[str, EncodedTensor] = field(default_factory=dict)
    embedding_rows: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)

    @property
    def record_size(self) -> int:
        """Bytes of the largest record: the size of a slot."""
        return max(layer.size for layer in self.layers)

    @property
    def experts(self) -> int:
        """Experts of all layers."""
        return sum(layer.experts for layer in self.layers)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all records."""
        return sum(layout.size for layer in self.layers for layout in layer.layouts)

    @property
    def encodings(self) -> list[Encoding]:
        """How experts are held, each encoding once."""
        found = (encoding for layer in self.layers for layout in layer.kinds for encoding in layout.encodings)
        return list(dict.fromkeys(found))

    def matrices(self) -> Iterator[Matrix]:
        """The matrices of every layout of every layer."""
        for layer in self.layers:
            for layout in layer.kinds:
                for projection in layout.projections.values():
                    yield from projection.matrices


def build_catalog(checkpoint: Checkpoint, skeleton: PreTrainedModel) -> Catalog:
    """Maps every tensor of `checkpoint` to an expert or to the dense part of `skeleton` (a model on meta).

    Raises CheckpointError when a tensor is missing for an expert, UnsupportedError for a layout that cannot be read
    in place.
    """
    modules = experts_modules(skeleton)
    parameters = {
        f"{path}.{name}" for path, module in modules.items() for name, _ in module.named_parameters(recurse=False)
    }
    binding = binding_of(type(skeleton))
    own = [*checkpoint.conversions, *(() if binding is None else binding.conversions())]
    conversions = Conversions(skeleton, parameters, own)
    sources = understood(checkpoint)
    dense = {name: source for name, source in sources.items() if not conversions.take(source)}
    dense = {name: source for name, source in dense.items() if not conversions.is_stray(source)}
    traced = conversions.run(checkpoint)
    tied = _tied(modules)
    layers = tuple(_layer(_stored(paths, traced), modules, traced, sources, checkpoint) for paths in tied)
    layer_of = {path: layer for layer, paths in enumerate(tied) for path in paths}
    return Catalog(layers, layer_of, dense, conversions.unchanged(dense))


def assert_dense_shapes(catalog: Catalog, skeleton: PreTrainedModel, directory: Path) -> None:
    """Raises CheckpointError where the configuration is of a larger model than the dense tensors are of.

    Loading would find it out too, after making room for that model.
    """
    state = skeleton.state_dict()
    renamed = catalog.parameters or Conversions(skeleton, set()).unchanged(catalog.dense)
    for name, target in renamed.items():
        found, wanted = tuple(trace(catalog.dense[name]).shape), tuple(state[target].shape)
        if found != wanted:
            raise CheckpointError(
                f"{directory} holds {target} of shape {found}, and config.json says {wanted}",
                remedy="download it again",
            )
    apart = {id(p) for module in experts_modules(skeleton).values() for p in module.parameters(recurse=False)}
    apart |= {id(skeleton.get_submodule(path).weight) for path in catalog.encoded}
    needed = sum(parameter.numel() for parameter in skeleton.parameters() if id(parameter) not in apart)
    there = sum(math.prod(source.shape) for source in catalog.dense.values())
    if needed > 2 * there + _SPARE:  # some models have parameters that are in no checkpoint
        raise CheckpointError(
            f"{directory} holds {there} dense weights, and config.json describes {needed}", remedy="download it again"
        )


def assert_choices(catalog: Catalog, config: PreTrainedConfig, directory: Path) -> None:
    """Raises CheckpointError for a token that would choose no expert, or more than there are."""
    fewest = min(layer.experts for layer in catalog.layers)
    text = vars(config.get_text_config())
    parts = [text, *(vars(part) for part in text.values() if isinstance(part, PreTrainedConfig))]
    for name, part in product(_CHOICES, parts):
        chosen = part.get(name)
        if type(chosen) is int and not 1 <= chosen <= fewest:
            raise CheckpointError(
                f"config.json of {directory} says {name} {chosen}, and a layer has {fewest} experts",
                remedy="download it again",
            )


def _tied(modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """Paths of experts modules, those with the very same parameters together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, module in modules.items():
        groups.setdefault(tuple(id(p) for p in module.parameters(recurse=False)), []).append(path)
    return list(groups.values())


def _stored(paths: list[str], traced: Mapping[str, Traced]) -> str:
    """The one of several tied paths under which the checkpoint has the weights."""
    return next((path for path in paths if any(name.startswith(f"{path}.") for name in traced)), paths[0])


def _layer(
    path: str,
    modules: Mapping[str, nn.Module],
    traced: Mapping[str, Traced],
    sources: Mapping[str, Source],
    checkpoint: Checkpoint,
) -> LayerCatalog:
    module = modules[path]
    experts: list[dict[str, Traced]] = []
    for name, parameter in module.named_parameters(recurse=False):
        full = f"{path}.{name}"
        if full not in traced:
            raise CheckpointError(f"{checkpoint.directory} has no tensors for {full}", remedy="download it again")
        if traced[full].shape != parameter.shape:
            raise CheckpointError(
                f"{checkpoint.directory} gives {full} the shape {tuple(traced[full].shape)}, and config.json"
                f" {tuple(parameter.shape)}",
                remedy="download it again",
            )
        slices = _per_expert(traced[full])
        experts = experts or [{} for _ in slices]
        for expert, part in zip(experts, slices, strict=True):
            expert[name] = part.transpose(0, 1) if _is_transposed(module) and part.ndim == 2 else part
    try:
        placed = [place_record(expert, sources) for expert in experts]
    except UntraceableError as error:
        raise unreadable(path, checkpoint, error) from error
    layouts = shared([layout for layout, _ in placed])
    return LayerCatalog(path, layouts, tuple(extents for _, extents in placed))


def shared(layouts: Sequence[Layout]) -> tuple[Layout, ...]:
    """The same layouts, equal ones as one object."""
    known: list[Layout] = []
    found = []
    for layout in layouts:
        same = next((other for other in known if other == layout), None)
        if same is None:
            known.append(layout)
        found.append(same or layout)
    return tuple(found)


def _is_transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "is_transposed", False))


def _per_expert(traced: Traced) -> list[Traced]:
    """`traced.unbind(0)` in one pass over its blocks."""
    blocks: list[list[Block]] = [[] for _ in range(traced.shape[0])]
    for block in traced.blocks:
        first, *rest = block.axes
        for index in range(first.count):
            part = replace(block, offset=block.offset + index * first.stride, axes=tuple(rest))
            blocks[first.start + index * first.step].append(part)
    return [Traced(traced.shape[1:], parts) for parts in blocks]
