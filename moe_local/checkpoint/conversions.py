"""transformers' conversions of one model's experts, run on traced tensors in place of weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import TensorEntry, assert_known
from moe_local.checkpoint.record import (
    Source,
    trace,
)
from moe_local.checkpoint.tracing import Traced, UntraceableError
from moe_local.errors import CheckpointError, UnsupportedError


class Conversions:
    """transformers' conversions of one model, fed with traced tensors and limited to experts' parameters.

    Follows the renaming and collecting steps of `convert_and_load_state_dict_in_model`.
    """

    def __init__(self, skeleton: PreTrainedModel, parameters: set[str], own: Sequence[WeightTransform] = ()) -> None:
        self.skeleton = skeleton
        self.parameters = parameters
        self.state = skeleton.state_dict()
        transforms = [*own, *get_model_conversion_mapping(skeleton)]
        self.renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self.converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self.by_pattern = {p: c for c in reversed(self.converters) for p in c.source_patterns}  # the first one's
        self.pending: dict[str, WeightTransform] = {}
        self.sources: dict[str, dict[str, list[Source]]] = {}  # parameter -> pattern -> tensors

    def take(self, entry: Source) -> bool:
        """Collects a tensor if it is (part of) an experts' parameter; says whether it was."""
        target, pattern = self._renamed(entry.name)
        if target not in self.parameters:
            return False
        if isinstance(entry, TensorEntry):
            assert_known(entry)
        if target not in self.pending:
            rename = WeightRenaming(entry.name, target)
            self.pending[target] = rename if pattern is None else deepcopy(self.by_pattern[pattern])
        self.sources.setdefault(target, {}).setdefault(pattern or entry.name, []).append(entry)
        return True

    def is_stray(self, source: Source) -> bool:
        """Whether it is a tensor that cannot be read, and that the model does not have.

        Raises UnsupportedError if it has it.
        """
        if not isinstance(source, TensorEntry) or source.unknown is None:
            return False
        target, _ = self._renamed(source.name)
        if target in self.state:
            assert_known(source)
        return True

    def unchanged(self, names: Iterable[str]) -> dict[str, str]:
        """The parameters that these tensors become by no more than a new name."""
        renamed = {name: self._renamed(name) for name in names}
        return {
            name: target for name, (target, pattern) in renamed.items() if pattern is None and target in self.state
        }

    def _renamed(self, name: str) -> tuple[str, str | None]:
        prefix = self.skeleton.base_model_prefix
        target, pattern = rename_source_key(name, self.renamings, self.converters, prefix, self.state)
        if target not in self.state and name in self.state:
            target, pattern = rename_source_key(name, [], [], prefix, self.state)
        return target, pattern

    def run(self, checkpoint: Checkpoint) -> dict[str, Traced]:
        """The experts' parameters, traced to the files. Keys are full parameter names."""
        results: dict[str, Traced] = {}
        for target, transform in self.pending.items():
            self._check_complete(target, checkpoint)
            for pattern, entries in self.sources[target].items():
                for entry in sorted(entries, key=_place):
                    source = trace(entry)
                    transform.add_tensor(target, entry.name, pattern, lambda source=source: source)
            try:
                converted = transform.convert(target, model=self.skeleton, config=self.skeleton.config)
            except (UntraceableError, RuntimeError) as error:  # torch's, of no tensors or of odd ones
                raise unreadable(target, checkpoint, error) from error
            for name, traced in converted.items():
                results[name] = traced[0] if isinstance(traced, list) else traced
        return results

    def stacked(self) -> dict[str, tuple[Source, ...]]:
        """The parameters that are no more than tensors of the checkpoint, as they are, one below the other."""
        found = {}
        for target, transform in self.pending.items():
            operations = transform.operations if isinstance(transform, WeightConverter) else []
            plain = all(isinstance(each, Concatenate) and each.dim == 0 for each in operations)
            if plain and len(operations) < 2 and len(self.sources[target]) == 1:
                ((_, entries),) = self.sources[target].items()
                found[target] = tuple(sorted(entries, key=lambda entry: dot_natural_key(entry.name)))
        return found

    def _check_complete(self, target: str, checkpoint: Checkpoint) -> None:
        """Every expert must have every part: no gaps in the numbering, as many of each pattern."""
        groups = [[entry.name for entry in entries] for entries in self.sources[target].values()]
        everything = {_numbered(name, groups) for names in groups for name in names}
        for names in groups:
            numbers = {_numbered(name, groups) for name in names}
            wanted = everything | set(range(max(everything) + 1))
            if missing := sorted(wanted - numbers):
                example = re.sub(r"(\D)\d+(?=\D*$)", rf"\g<1>{missing[0]}", names[0])
                raise CheckpointError(
                    f"{checkpoint.directory} lacks tensor {example!r} for expert {missing[0]} of {target}",
                    remedy="download it again",
                )


def _numbered(name: str, groups: Iterable[list[str]]) -> int:
    """The expert's number in a per-expert tensor name: its last number; 0 for a tensor that fuses all experts."""
    fused = all(len(names) == 1 for names in groups)
    return 0 if fused else max(0, _last_number(name))


def _last_number(name: str) -> int:
    numbers = re.findall(r"(?:\.|expert_)(\d+)\.", name)
    return int(numbers[-1]) if numbers else -1


def _place(entry: Source) -> tuple[int, list[tuple[object, ...]]]:
    """By which the tensors of several experts are put in order."""
    return _last_number(entry.name), dot_natural_key(entry.name)


def unreadable(target: str, checkpoint: Checkpoint, error: Exception) -> UnsupportedError:
    """What is raised of a parameter whose bytes are not a matrix's, one after the other."""
    return UnsupportedError(
        f"{checkpoint.directory} stores {target} in a way that cannot be read in place ({error})",
        remedy="report this architecture",
    )
