"""`load` a model under a budget and get an `Engine`: generate, chat, stats, close."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from moe_local.checkpoint.architecture import (
    assert_all_captured,
    build_skeleton,
    compute_dtype,
    experts_modules,
    load_config,
    model_class,
)
from moe_local.checkpoint.catalog import Catalog, build_catalog
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.hub import locate
from moe_local.config import format_size
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError, first_line
from moe_local.formats import supports
from moe_local.generation.chat import ChatSession, has_template, render
from moe_local.generation.sampling import Sampling
from moe_local.generation.text import Generation, TextGenerator
from moe_local.memory.disk import FileReader, ReadAt, RecordReader
from moe_local.memory.limits import memory_available, memory_limit, peak_memory, process_memory
from moe_local.memory.placement import Needs, Plan, make_plan
from moe_local.memory.slab import Slab
from moe_local.policies import POLICIES
from moe_local.runtime.binding import load_dense
from moe_local.runtime.cache import ExpertCache, Tier
from moe_local.runtime.experts import PagedLayer
from moe_local.runtime.footprint import measure

DEFAULT_CONTEXT = 4096
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_KEEP_FREE = 0.1  # of what is available, where no budget was given
Report = Callable[[str, float], None]  # (stage, fraction done)


@dataclass(frozen=True)
class Options:
    """What a user may choose about loading. Sizes in bytes; None lets moe-local choose."""

    device: str = "auto"
    ram: int | None = None
    vram: int | None = None
    context: int | None = None
    dtype: str = "auto"
    experts: float = 1.0  # cap on the share of experts in the device tier
    host_experts: float = 1.0  # and in the host tier


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that was understood and planned, and not yet loaded."""

    checkpoint: Checkpoint
    config: PreTrainedConfig
    skeleton: PreTrainedModel
    catalog: Catalog
    dtype: torch.dtype
    device: torch.device
    context: int
    plan: Plan
    notes: tuple[str, ...]


def prepare(model: str | Path, options: Options | None = None) -> Prepared:
    """Reads a checkpoint's headers and makes the plan; no weights are read.

    Raises BudgetError when it cannot fit, CheckpointError and UnsupportedError for what cannot be run.
    """
    options = options or Options()
    checkpoint = Checkpoint.open(locate(str(model)))
    config = load_config(checkpoint)
    dtype = _dtype(options.dtype) or compute_dtype(config, checkpoint)
    skeleton = build_skeleton(model_class(config), config, dtype)
    assert_all_captured(skeleton)
    catalog = build_catalog(checkpoint, skeleton)
    _assert_supported(catalog, checkpoint)
    context = _context(config, options.context)
    device = _device(options.device)
    needs = measure(skeleton, catalog, context, dtype)
    plan, notes = _plan(needs, device, options)
    return Prepared(checkpoint, config, skeleton, catalog, dtype, device, context, plan, notes)


def load(
    model: str | Path,
    options: Options | None = None,
    *,
    report: Report | None = None,
    read_at: Callable[[FileReader], ReadAt] = lambda reader: reader,
) -> Engine:
    """Loads a checkpoint directory or hub id within its budgets.

    `read_at` may wrap the file reader (see `moe_local.testing` for slow and failing disks).
    """
    began = perf_counter()
    report = report or (lambda stage, fraction: None)
    report("planning", 0.0)
    prepared = prepare(model, options)
    report("dense weights", 0.1)
    files = FileReader()
    try:
        files.open(prepared.checkpoint.files)
        reader = read_at(files)
        network = load_dense(
            prepared.skeleton,
            prepared.config,
            prepared.catalog.dense,
            reader,
            dtype=prepared.dtype,
            device=prepared.device,
        )
        report("expert cache", 0.9)
        cache = make_cache(prepared, reader)
        network.generation_config = _generation_config(prepared)
        tokenizer = _tokenizer(prepared.checkpoint)
    except BaseException:
        files.close()
        raise
    report("ready", 1.0)
    return Engine(prepared, network, tokenizer, cache, files, load_seconds=perf_counter() - began)


class Engine:
    """A model that is ready to generate. One generation at a time; close it, or use it in a `with`."""

    def __init__(
        self,
        prepared: Prepared,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        cache: ExpertCache,
        files: FileReader,
        *,
        load_seconds: float,
    ) -> None:
        self.prepared = prepared
        self.model = model
        self.files = files
        self.load_seconds = load_seconds
        self._tokenizer = tokenizer
        self._cache = cache
        self._connect()

    def use(self, cache: ExpertCache) -> None:
        """Runs the experts over another cache of the same checkpoint from now on."""
        self._cache.close()
        self._cache = cache
        self._connect()

    def _connect(self) -> None:
        for path, module in experts_modules(self.model).items():
            layer = self.prepared.catalog.layer_of[path]
            vars(module)["paged"] = PagedLayer(self._cache, layer, self.prepared.catalog.layers[layer].experts)

    @property
    def plan(self) -> Plan:
        return self.prepared.plan

    @property
    def generator(self) -> TextGenerator:
        """The model with its tokenizer. Raises CheckpointError if the checkpoint has none."""
        if self._tokenizer is None:
            raise CheckpointError(
                f"{self.prepared.checkpoint.directory} has no tokenizer that transformers can load",
                remedy="add tokenizer.json and tokenizer_config.json",
            )
        if not self.model.can_generate():
            raise UnsupportedError(f"{type(self.model).__name__} does not generate text")
        return TextGenerator(self.model, self._tokenizer, self._cache.counters, self.prepared.context)

    def encode(self, prompt: str, *, raw: bool = False, system: str | None = None) -> list[int]:
        """Token ids of a prompt: as a user's message in the model's chat template, or `raw` text to go on from."""
        generator = self.generator
        if raw or not has_template(generator):
            ids: list[int] = generator.tokenizer(prompt)["input_ids"]
            return ids
        messages = [{"role": "system", "content": system}] if system else []
        return render(generator, [*messages, {"role": "user", "content": prompt}])

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        *,
        raw: bool = False,
        on_text: Callable[[str], None] | None = None,
        interrupt: threading.Event | None = None,
    ) -> Generation:
        """Text (see `encode`) or token ids in, a Generation out; `on_text` gets it piece by piece."""
        ids = self.encode(prompt, raw=raw) if isinstance(prompt, str) else list(prompt)
        return self.generator.generate(ids, sampling or Sampling(), on_text=on_text, interrupt=interrupt)

    def chat(self, sampling: Sampling | None = None, *, system: str | None = None) -> ChatSession:
        """A new conversation with a KV cache of its own."""
        return ChatSession(self.generator, sampling or Sampling(), system=system)

    def stats(self) -> dict[str, Any]:
        """Totals since loading, and memory against its budget (bytes)."""
        counters = self._cache.counters
        return {
            **vars(counters),
            "hit_rate": counters.hit_rate,
            "memory": process_memory(),
            "peak_memory": peak_memory(),
            "ram_budget": self.plan.ram,
            "vram_budget": self.plan.vram,
            "load_seconds": round(self.load_seconds, 3),
            "experts_in_device_tier": self.plan.device_experts,
            "experts": self.plan.needs.all_experts,
        }

    def close(self) -> None:
        self._cache.close()
        self.files.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
        if not supports(layer.layout):
            raise UnsupportedError(
                f"{checkpoint.directory} holds the experts of {layer.path} as {layer.layout.dtype}",
                remedy="use the model's bf16, fp16 or fp32 weights",
            )


def _plan(needs: Needs, device: torch.device, options: Options) -> tuple[Plan, tuple[str, ...]]:
    notes: list[str] = []
    vram, vram_overhead = options.vram, 0
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        vram_overhead = total - free
        vram = vram if vram is not None else int(total - free * _KEEP_FREE)
    ram_overhead = process_memory()  # the device's runtime, begun above, included
    ram = options.ram if options.ram is not None else _default_ram(ram_overhead)
    if ram > memory_limit():
        notes.append(
            f"the RAM budget of {format_size(ram)} is more than this machine gives;"
            f" {format_size(memory_limit())} is used instead"
        )
        ram = memory_limit()
    plan = make_plan(
        needs,
        ram=ram,
        vram=vram,
        ram_overhead=ram_overhead,
        vram_overhead=vram_overhead,
        device_share=options.experts,
        host_share=options.host_experts,
    )
    if plan.too_small_to_cache:
        option = "--ram" if plan.vram is None else "--vram"
        notes.append(
            f"{plan.device_experts} experts fit and one token needs {needs.token_set}: below that caching only costs;"
            f" {option} {-(-plan.useful_minimum >> 20)}MiB would hold a token's set"
        )
    return plan, tuple(notes)


def _default_ram(used: int) -> int:
    return used + int(memory_available() * (1 - _KEEP_FREE))


def make_cache(prepared: Prepared, reader: ReadAt) -> ExpertCache:
    """The tiers of a plan, empty, over a reader of the checkpoint's files."""
    plan, make_policy = prepared.plan, POLICIES["lru"]
    slot = plan.needs.slot
    device = Tier.make(Slab(plan.device_experts, slot, prepared.device), plan.device_slots, make_policy)
    host = None
    if plan.host_slots is not None:
        slab = _host_slab(sum(plan.host_slots), slot, pinned=prepared.device.type == "cuda")
        host = Tier.make(slab, plan.host_slots, make_policy)
    return ExpertCache(prepared.catalog, RecordReader(reader), device, host)


def _host_slab(slots: int, slot: int, *, pinned: bool) -> Slab:
    """A slab in RAM, page-locked if asked for and possible: systems limit how much may be."""
    if pinned:
        try:
            return Slab(slots, slot, torch.device("cpu"), pinned=True)
        except RuntimeError as error:
            size = format_size(slots * slot)
            warnings.warn(f"{size} of RAM cannot be pinned ({first_line(error)}): uploads are slower", stacklevel=2)
    return Slab(slots, slot, torch.device("cpu"))


def _generation_config(prepared: Prepared) -> GenerationConfig:
    directory = prepared.checkpoint.directory
    if not (directory / "generation_config.json").exists():
        return GenerationConfig.from_model_config(prepared.config)
    try:
        return GenerationConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # validation of whatever the file says
        raise CheckpointError(
            f"{directory / 'generation_config.json'} is not valid ({first_line(error)})",
            remedy="download it again or delete it",
        ) from error


def _tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    try:
        return AutoTokenizer.from_pretrained(checkpoint.directory, local_files_only=True, trust_remote_code=False)
    except Exception:  # missing or of a kind that needs other libraries: an error when text is first asked for
        return None
