"""Building a transformers model whose experts modules are ours, and loading its dense part.

Experts classes are replaced by subclasses without parameters while the model is built, so that expert tensors are
never materialised: to transformers they are unexpected keys, and are left in the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_local.checkpoint.architecture import experts_modules
from moe_local.checkpoint.bindings import binding_of
from moe_local.checkpoint.bindings.base import classes_replaced
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import Source
from moe_local.errors import CheckpointError, UnsupportedError
from moe_local.experts.layer import ExpertLayer
from moe_local.kernels import native
from moe_local.memory.accelerator import is_out_of_memory, on_cpu
from moe_local.memory.files import ReadAt
from moe_local.model.attention import use_products
from moe_local.model.kv_cache import grow_in_place
from moe_local.model.modules import EmbeddingOnDisk, embeddings_on_disk, encoded_module, load_arrays, with_modules
from moe_local.model.transformers_api import mark_loaded, quiet
from moe_local.store.open import ModelFiles
from moe_local.store.tensors import read_tensor


def load_dense(files: ModelFiles, read_at: ReadAt, device: torch.device, *, exact: bool = True) -> PreTrainedModel:
    """The model with its dense weights on `device` and its experts modules of `ExpertLayer`, not yet connected.

    Encoded matrices are multiplied by `exact` activations, or by activations rounded to 8 bits.

    Raises CheckpointError naming the tensors that are missing or of a wrong shape, or a block not captured.
    """
    catalog, skeleton, dtype = files.catalog, files.skeleton, files.dtype
    dense = catalog.dense
    lazy = {name: LazyTensor(source, read_at, dtype) for name, source in dense.items()}
    experts = experts_modules(skeleton)
    others = dict.fromkeys(catalog.encoded, encoded_module) | dict.fromkeys(catalog.embedding_rows, EmbeddingOnDisk)
    with paged_experts(type(skeleton), {type(module) for module in experts.values()}), quiet():
        try:
            model, info = with_modules(type(skeleton), others).from_pretrained(
                None,
                config=deepcopy(files.config),
                state_dict=lazy,
                dtype=dtype,
                device_map={"": device},
                ignore_mismatched_sizes=True,  # they are ours to refuse, by name
                output_loading_info=True,
            )
        except RuntimeError as error:  # an operation of a conversion failed
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"the dense weights of {_directory(dense)} do not convert ({' '.join(str(error).split())})",
                remedy="download it again",
            ) from error
        except ValueError as error:
            raise UnsupportedError(
                f"{type(skeleton).__name__} cannot be built with paged experts ({' '.join(str(error).split())})",
                remedy="report this architecture",
            ) from error
    _check_loaded(model, info, dense)
    use_products(model)
    grow_in_place(model)
    if on_cpu(device):
        _use_native(model)
    captured = {path for path, module in model.named_modules() if isinstance(module, ExpertLayer)}
    if captured != set(experts):
        missed = ", ".join(sorted(set(experts) - captured))
        raise CheckpointError(f"these MoE blocks were not captured: {missed}", remedy="report this architecture")

    def read(entry: TensorEntry) -> Tensor:
        return read_tensor(entry, read_at, entry.dtype).to(device)

    load_arrays(model, catalog.encoded, read, exact=exact)
    embeddings_on_disk(model, catalog.embedding_rows, read_at, read)
    return model


def _use_native(model: PreTrainedModel) -> None:
    """Has a model on a CPU computed by native kernels wherever they equal transformers' own operations."""
    if native.missing() is None and model.dtype == torch.bfloat16:
        from moe_local.model.native_eager import use_native_eager
        from moe_local.model.native_norms import use_native_norms
        from moe_local.model.native_rotary import use_native_rotary
        from moe_local.model.native_routers import use_native_routers
        from moe_local.model.replay import use_replay

        use_native_eager(model)
        use_native_norms(model)
        use_native_rotary(model)
        use_native_routers(model)
        use_replay(model, _decoder_layers(model))


def _decoder_layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The modules of the outermost lists that experts are in."""
    experts = [path for path, module in model.named_modules() if isinstance(module, ExpertLayer)]
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for path, layers in lists.items():
        inner = any(path.startswith(f"{other}.") for other in lists)
        if not inner and any(each.startswith(f"{path}.") for each in experts):
            yield from layers


class LazyTensor:
    """A tensor that is read when `[...]` is asked of it, as transformers' loader does."""

    def __init__(self, source: Source, read_at: ReadAt, dtype: torch.dtype) -> None:
        self._source = source
        self._read_at = read_at
        self._dtype = dtype  # of what is held encoded

    def __getitem__(self, index: object) -> Tensor:
        return read_tensor(self._source, self._read_at, self._dtype)


def paged_experts(model: type[nn.Module], experts: set[type[nn.Module]]) -> AbstractContextManager[None]:
    """While inside, this model is built with its binding's classes, and paged subclasses of these experts classes."""
    paged = {cls: _paged_subclass(cls) for cls in experts}
    binding = binding_of(model)
    bound = {} if binding is None else binding.classes
    return classes_replaced(paged | {theirs: paged.get(ours) or _loaded(ours) for theirs, ours in bound.items()})


def _loaded(block: type[nn.Module]) -> type[nn.Module]:
    """A block that transformers does not initialise, as it does not know the experts in it."""

    def initialize(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        block.__init__(self, *args, **kwargs)
        mark_loaded(self)

    return type(block.__name__, (block,), {"__init__": initialize, "__module__": block.__module__})


def _paged_subclass(original: type[nn.Module]) -> type[nn.Module]:
    def initialize(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original.__init__(self, *args, **kwargs)
        for name in list(self._parameters):
            delattr(self, name)
            # Some models' own initialisation reaches into their experts: there must be something to reach.
            self.__dict__[name] = torch.empty(0)
        mark_loaded(self)

    members = {"__init__": initialize, "__module__": original.__module__}
    return type(original.__name__, (ExpertLayer, original), members)


def _check_loaded(model: PreTrainedModel, info: Mapping[str, Any], dense: Mapping[str, Source]) -> None:
    directory = _directory(dense)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{directory} lacks {_some(missing)}", remedy="download it again")
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise CheckpointError(
            f"{directory} holds {name} of shape {tuple(found)}, and config.json says {tuple(wanted)}",
            remedy="download it again",
        )


def _directory(dense: Mapping[str, Source]) -> str:
    if not dense:
        return "the checkpoint"
    source = next(iter(dense.values()))
    entry = source if isinstance(source, TensorEntry) else next(iter(source.parts.values()))
    return str(entry.file.parent)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
