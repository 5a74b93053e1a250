"""From a model's name and the user's budgets to a plan, before any weights are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from moe_local.checkpoint.architecture import (
    assert_all_captured,
    build_skeleton,
    compute_dtype,
    load_config,
    model_class,
)
from moe_local.checkpoint.catalog import Catalog, assert_choices, assert_dense_shapes, build_catalog
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.hub import locate
from moe_local.config import MIB, format_size
from moe_local.errors import MoeLocalError, UnsupportedError
from moe_local.formats import supports
from moe_local.memory.limits import memory_available, memory_limit, process_memory
from moe_local.memory.pages import can_release
from moe_local.memory.placement import Needs, Plan, make_plan
from moe_local.policies import DEFAULT_POLICY, get_policy
from moe_local.prediction import get_predictor
from moe_local.runtime.footprint import measure, prefill_chunk
from moe_local.runtime.kv import columns
from moe_local.runtime.rows import bytes_of_rows, leave_on_disk, readable_by_rows
from moe_local.store import is_store, open_store

DEFAULT_CONTEXT = 4096
IO_MODES = ("auto", "direct", "buffered")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_MOST_THREADS = 1024
_KEEP_FREE = 0.1  # of what is available, where no budget was given
_ROUND = 16 * MIB  # of what the process holds: the same plan from one run to the next


@dataclass(frozen=True)
class Options:
    """What a user may choose about loading. Sizes in bytes; None lets moe-local choose.

    On a CPU, `vram` bounds a device tier that is itself in RAM, and so a part of `ram`.
    """

    device: str = "auto"
    ram: int | None = None
    vram: int | None = None
    context: int | None = None
    dtype: str = "auto"
    experts: float = 1.0  # cap on the share of experts in the device tier
    host_experts: float = 1.0  # and in the host tier
    policy: str = DEFAULT_POLICY  # which experts are kept: a name of `POLICIES`
    prefetch: str = "router"  # what is read ahead: a name of `PREDICTORS`, or "off"
    io: str = "auto"  # how experts are read: direct (past the page cache), buffered, or what suits
    warm: bool = False  # begin with the experts that the last run of this kind ended with
    elsewhere: bool = False  # plan for another machine: what this one has does not bound the budgets
    sequences: int = 1  # that `Engine.batch` generates at once, at most
    each: int = 512  # tokens of such a sequence, on average, that memory is kept for
    threads: int | None = None  # that compute: torch's for the whole process; None: one for each core
    logits: int = 1  # tokens of a forward pass whose logits are wanted: generating takes the last one's

    def __post_init__(self) -> None:
        get_policy(self.policy)
        if self.io not in IO_MODES:
            raise MoeLocalError(f"--io {self.io} is unknown", remedy=f"use {', '.join(IO_MODES)}")
        if self.prefetch != "off":
            get_predictor(self.prefetch)
        if self.sequences < 1 or self.each < 1:
            raise MoeLocalError(f"{self.sequences} sequences of {self.each} tokens cannot be generated")
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise MoeLocalError(f"--threads {self.threads} is not a number from 1 to {_MOST_THREADS}")
        for name, share in (("experts", self.experts), ("host experts", self.host_experts)):
            if not 0 < share <= 1:
                raise MoeLocalError(f"a share of {share} of the {name} is not above 0 and at most 1")
        for name, size in (("--ram", self.ram), ("--vram", self.vram)):
            if size is not None and size < 0:
                raise MoeLocalError(f"{name} {size} is not a number of bytes")


@dataclass(frozen=True)
class Understood:
    """A checkpoint or store: its model on meta, and where everything is."""

    checkpoint: Checkpoint
    config: PreTrainedConfig
    skeleton: PreTrainedModel
    catalog: Catalog
    dtype: torch.dtype

    @property
    def expert_format(self) -> str:
        """How the experts are held."""
        return " and ".join(map(str, self.catalog.encodings))

    @property
    def config_hash(self) -> str:
        """Of config.json, to tell models apart."""
        return hashlib.sha256(self.config.to_json_string(use_diff=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Prepared(Understood):
    """What was understood, and planned, and not yet loaded."""

    device: torch.device
    context: int
    sequences: int  # that are generated at once, at most
    kv_tokens: int  # that their KV caches hold together, padding included
    options: Options
    plan: Plan
    notes: tuple[str, ...]

    @property
    def prefill_chunk(self) -> int:
        """Tokens of a prompt that go through the model at once, at most."""
        return prefill_chunk(self.skeleton, self.context, self.dtype)

    @property
    def direct_io(self) -> bool:
        """Whether to read past the page cache: it pays where that could not hold the experts anyway."""
        if self.options.io != "auto":
            return self.options.io == "direct"
        left = memory_available() + process_memory() - self.plan.ram_used
        return left < self.catalog.expert_bytes


def prepare(model: str | Path, options: Options | None = None) -> Prepared:
    """Reads a checkpoint's headers and makes the plan; no weights are read.

    Raises BudgetError when it cannot fit, CheckpointError and UnsupportedError for what cannot be run.
    """
    options = options or Options()
    found = understand(model, options.dtype)
    context = _context(found.config, options.context)
    device = _device(options.device)
    rows = readable_by_rows(found.skeleton, found.catalog) if device.type == "cpu" else {}
    needs = measure(
        found.skeleton,
        found.catalog,
        context,
        found.dtype,
        device=device,
        logits=options.logits,
        sequences=options.sequences,
        each=min(options.each, context),
    )
    needs = replace(needs, rows=bytes_of_rows(rows, found.dtype))
    # An encoder's passes are not seen before they begin.
    elastic = device.type == "cpu" and can_release() and not found.config.is_encoder_decoder
    plan, notes = _plan(needs, device, options, elastic=elastic)
    sequences = plan.needs.sequences
    if plan.needs.rows_on_disk:
        found = replace(found, catalog=leave_on_disk(found.catalog, rows))
    return Prepared(
        **vars(found),
        device=device,
        context=context,
        sequences=sequences,
        kv_tokens=max(columns(context), sequences * columns(min(options.each, context))),
        options=options,
        plan=plan,
        notes=notes,
    )


def understand(model: str | Path, dtype: str = "auto") -> Understood:
    """Reads the headers of a checkpoint or store.

    Raises CheckpointError and UnsupportedError for what cannot be run.
    """
    directory = locate(str(model))
    store = open_store(directory) if is_store(directory) else None
    checkpoint = store.checkpoint if store else Checkpoint.open(directory)
    config = load_config(checkpoint)
    chosen = _dtype(dtype) or compute_dtype(config, checkpoint)
    skeleton = build_skeleton(model_class(config), config, chosen)
    assert_all_captured(skeleton)
    catalog = store.catalog(skeleton) if store else build_catalog(checkpoint, skeleton)
    _assert_supported(catalog, checkpoint)
    assert_dense_shapes(catalog, skeleton, checkpoint.directory)
    assert_choices(catalog, config, checkpoint.directory)
    return Understood(checkpoint, config, skeleton, catalog, chosen)


def _dtype(name: str) -> torch.dtype | None:
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise MoeLocalError(f"--dtype {name} is unknown", remedy=f"use auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise MoeLocalError(f"--device {name} is unknown", remedy="use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MoeLocalError("torch sees no CUDA device", remedy="use --device cpu, or install torch for CUDA")
    return torch.device(name)


def _context(config: PreTrainedConfig, wanted: int | None) -> int:
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT
    if wanted is None:
        return int(min(DEFAULT_CONTEXT, most))
    if wanted < 1:
        raise MoeLocalError(f"--context {wanted} is not a number of tokens")
    if wanted > most:
        raise MoeLocalError(f"--context {wanted} is more than this model's {most} positions")
    return wanted


def _assert_supported(catalog: Catalog, checkpoint: Checkpoint) -> None:
    for layer in catalog.layers:
        for layout in layer.kinds:
            if not supports(layout):
                raise UnsupportedError(
                    f"{checkpoint.directory} holds the experts of {layer.path} as"
                    f" {' and '.join(map(str, layout.encodings))}, which cannot be read",
                    remedy="use the model's bf16, fp16 or fp32 weights",
                )


def _plan(needs: Needs, device: torch.device, options: Options, *, elastic: bool) -> tuple[Plan, tuple[str, ...]]:
    notes: list[str] = []
    vram, vram_overhead = options.vram, 0
    if device.type == "cuda" and not options.elsewhere:
        free, total = torch.cuda.mem_get_info()
        vram_overhead = total - free
        vram = vram if vram is not None else int(total - free * _KEEP_FREE)
    ram_overhead = -(-process_memory() // _ROUND) * _ROUND  # the device's runtime, begun above, included
    ram = options.ram if options.ram is not None else ram_overhead + int(memory_available() * (1 - _KEEP_FREE))
    if ram > memory_limit() and not options.elsewhere:
        notes.append(
            f"the RAM budget of {format_size(ram)} is more than this machine gives;"
            f" {format_size(memory_limit())} is used instead"
        )
        ram = memory_limit()
    budget, overhead = (ram, ram_overhead) if vram is None else (vram, vram_overhead)
    room = budget - overhead
    plan = make_plan(
        needs.with_rows_on_disk(room).with_fewer_sequences(room),
        ram=ram,
        vram=vram,
        ram_overhead=ram_overhead,
        vram_overhead=vram_overhead,
        device_in_ram=device.type == "cpu" and not options.elsewhere,
        device_share=options.experts,
        host_share=options.host_experts,
        elastic=elastic,
        slack=0 if options.elsewhere else _ROUND,
    )
    if plan.too_small_to_cache:
        notes.append(_too_small(plan, options))
    return plan, tuple(notes)


def _too_small(plan: Plan, options: Options) -> str:
    option, budget = ("--ram", plan.ram) if plan.vram is None else ("--vram", plan.vram)
    if budget >= plan.useful_minimum and options.experts < 1:
        remedy = f"--experts {plan.needs.useful_share:.0%}"
    else:
        remedy = f"{option} {-(-plan.useful_minimum >> 20)}MiB"
    return (
        f"{plan.device_experts} experts fit and one token needs {plan.needs.token_set}: below that caching only"
        f" costs; {remedy} would hold a token's set"
    )
