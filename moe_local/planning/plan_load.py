"""From a model's name and the user's budgets to a plan, before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from moe_local.errors import MoeLocalError
from moe_local.experts.misses import CPU, UPLOAD, ZERO_COPY
from moe_local.kernels import native
from moe_local.kernels.triton_probe import trouble
from moe_local.memory.accelerator import AUTO, Accelerator, find
from moe_local.memory.limits import memory_available, memory_limit, process_memory
from moe_local.memory.pages import can_release
from moe_local.model.buffers import columns
from moe_local.model.embeddings import bytes_of_rows, leave_on_disk, readable_by_rows
from moe_local.paths import cache_dir
from moe_local.planning.calibration import read_calibration
from moe_local.planning.footprint import measure
from moe_local.planning.machines import DRIVER, SYSTEM
from moe_local.planning.needs import Needs
from moe_local.planning.options import Options
from moe_local.planning.placement import Plan, make_plan, spare_slots
from moe_local.store.open import ModelFiles, in_dtype, open_model
from moe_local.units import MIB, format_size

DEFAULT_CONTEXT = 4096
_KEEP_FREE = 0.1  # of what is available, where no budget was given
ROUND = 16 * MIB  # of what the process holds: the same plan from one run to the next
_LOADED = 24 * MIB  # that loading leaves beside weights: libraries, the model's objects, what is open
_WORD = 330  # bytes that a tokenizer keeps for each of 150,000 words


@dataclass(frozen=True)
class LoadPlan(ModelFiles):
    """What was understood, and planned, and not yet loaded."""

    accelerator: Accelerator
    context: int
    sequences: int  # that are generated at once, at most
    kv_tokens: int  # that their KV caches hold together, padding included
    options: Options
    plan: Plan
    notes: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where the dense weights and the device tier are."""
        return self.accelerator.device

    @property
    def exact(self) -> bool:
        """Whether activations are multiplied as they are: asked for, or by computing in float32."""
        return self.options.activations != "int8" or self.dtype == torch.float32

    @property
    def fence(self) -> int | None:
        """Bytes that torch may take of the device's own memory; None where nobody said how many."""
        own = self.accelerator.has_own_memory and self.options.vram is not None
        return self.plan.vram - DRIVER if own and self.plan.vram is not None else None

    @property
    def warm_file(self) -> Path:
        """Where the hot experts of this model are remembered from one run to the next."""
        return cache_dir() / "warm" / f"{self.checkpoint.directory.name[:80]}-{self.config_hash}.json"

    @property
    def prefill_chunk(self) -> int:
        """Tokens of a prompt that go through the model at once, at most."""
        return self.plan.needs.chunk

    @property
    def direct_io(self) -> bool:
        """Whether to read past the page cache: it pays where that could not hold the experts anyway."""
        if self.options.io != "auto":
            return self.options.io == "direct"
        left = memory_available() + process_memory() - self.plan.ram_used
        return left < self.catalog.expert_bytes


def plan_load(model: str | Path | ModelFiles, options: Options | None = None) -> LoadPlan:
    """What goes where when a model is loaded: of one by name, whose headers are read, or of files that were opened
    with the options' dtype. No weights are read. Leaves the skeleton of the files fit for loading alone.

    Raises BudgetError when it cannot fit, CheckpointError and UnsupportedError for what cannot be run.
    """
    options = options or Options()
    notes: list[str] = []
    files = model if isinstance(model, ModelFiles) else open_model(model, options.dtype)
    context = _context(files.config, options.context)
    accelerator = _accelerator(options)
    files = _in_dtype_of(accelerator, files, options, notes)
    if accelerator.has_own_memory and not options.other_machine and (reason := trouble(accelerator.device)):
        notes.append(f"what is encoded is decoded at every use on {accelerator.name}, which is slow: {reason}")
    rows = readable_by_rows(files.skeleton, files.catalog)
    needs = measure(
        files.skeleton,
        files.catalog,
        context,
        files.dtype,
        device=accelerator.device,
        logits=options.logits_per_pass,
        sequences=options.max_sequences,
        each=min(options.tokens_per_sequence, context),
    )
    needs = replace(needs, embedding_rows=bytes_of_rows(rows, files.dtype))
    # An encoder's passes are not seen before they begin.
    elastic = accelerator.is_cpu and (options.other_machine or can_release()) and not files.config.is_encoder_decoder
    loading = _LOADED + _WORD * files.config.get_text_config().vocab_size
    plan = _plan(needs, accelerator, options, loading, notes, elastic=elastic)
    notes += _about_misses(plan, accelerator, options)
    sequences = plan.needs.sequences
    if plan.needs.embedding_rows_on_disk:
        files = replace(files, catalog=leave_on_disk(files.catalog, rows))
    return LoadPlan(
        **vars(files),
        accelerator=accelerator,
        context=context,
        sequences=sequences,
        kv_tokens=max(columns(context), sequences * columns(min(options.tokens_per_sequence, context))),
        options=options,
        plan=plan,
        notes=tuple(notes),
    )


def _accelerator(options: Options) -> Accelerator:
    """What is computed on: this machine's device, or, where none is named, another's: a GPU if it has VRAM."""
    if not options.other_machine or options.device != AUTO:
        return find(options.device)
    return Accelerator(torch.device("cpu" if options.vram is None else "cuda"))


def _in_dtype_of(accelerator: Accelerator, files: ModelFiles, options: Options, notes: list[str]) -> ModelFiles:
    """In float16, where no dtype was asked for and the device only imitates the files' bfloat16."""
    asked, known = options.dtype != "auto", not options.other_machine
    if asked or files.dtype != torch.bfloat16 or not known or accelerator.computes_bfloat16:
        return files
    notes.append(
        f"{accelerator.name} has no instructions for bfloat16: float16 is computed in instead;"
        " --dtype bfloat16 or float32, both slower, for a model whose numbers are too large for it"
    )
    return in_dtype(files, torch.float16)


def _context(config: PreTrainedConfig, wanted: int | None) -> int:
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT
    if wanted is None:
        return int(min(DEFAULT_CONTEXT, most))
    if wanted < 1:
        raise MoeLocalError(f"--context {wanted} is not a number of tokens")
    if wanted > most:
        raise MoeLocalError(f"--context {wanted} is more than this model's {most} positions")
    return wanted


@dataclass(frozen=True)
class _Budgets:
    """Bytes that a process may use of each memory, and what it uses before anything is loaded."""

    ram: int
    ram_overhead: int
    vram: int | None  # None where the device has no memory of its own, or none that is bounded
    vram_overhead: int = 0


def vram_budgets(accelerator: Accelerator) -> tuple[int, int, int]:
    """Bytes of a device's memory: what this process holds before anything is loaded, what it may have at most, and
    what it takes where no budget is given, which leaves a tenth of what is free.

    What other programs hold is in none of them.
    """
    held, (free, _) = DRIVER + accelerator.held_memory(), accelerator.memory()
    return held, held + free, held + int(free * (1 - _KEEP_FREE))


def rounded(memory: int) -> int:
    """Bytes that the process holds, as plans count them."""
    return -(-memory // ROUND) * ROUND


def _budgets(needs: Needs, options: Options, accelerator: Accelerator, loading: int, notes: list[str]) -> _Budgets:
    """What was asked for; where nothing was, what is free but for a tenth. Says in `notes` what was cut.

    `loading` is bytes that the process does not hold yet, and will beside weights once they are loaded. Of memory
    that is a part of RAM a device has all but what experts pass through on their way there.
    """
    vram, vram_overhead = options.vram, 0
    if options.other_machine:
        vram_overhead = 0 if vram is None else DRIVER
    elif accelerator.has_own_memory:
        vram_overhead, most, chosen = vram_budgets(accelerator)
        vram = chosen if vram is None else _cut(vram, most, "VRAM", "is free", notes)
    # The device's runtime, begun above, is a part of this process.
    held, loading = (SYSTEM, 0) if options.other_machine else (process_memory(), loading)
    ram_overhead = rounded(held + loading) + options.beside
    free_ram = int(memory_available() * (1 - _KEEP_FREE))
    ram = options.ram if options.ram is not None else rounded(held) + options.beside + free_ram
    if not options.other_machine:
        ram = _cut(ram, memory_limit(), "RAM", "this machine gives", notes)
    if not options.other_machine and accelerator.shares_ram:
        vram_overhead, (free, _) = accelerator.held_memory(), accelerator.memory()
        most = vram_overhead + free
        through = needs.least_slots_bytes + spare_slots(needs) * needs.slot
        chosen = min(most, max(0, ram - ram_overhead - through))
        vram = chosen if vram is None else _cut(vram, most, "VRAM", "is recommended", notes)
    return _Budgets(ram, ram_overhead, vram, vram_overhead)


def _cut(budget: int, most: int, memory: str, whose: str, notes: list[str]) -> int:
    if budget <= most:
        return budget
    notes.append(
        f"the {memory} budget of {format_size(budget)} is more than {whose}; {format_size(most)} is used instead"
    )
    return most


def _plan(
    needs: Needs, accelerator: Accelerator, options: Options, loading: int, notes: list[str], *, elastic: bool
) -> Plan:
    budgets = _budgets(needs, options, accelerator, loading, notes)
    available = budgets.ram - budgets.ram_overhead if budgets.vram is None else budgets.vram - budgets.vram_overhead
    needs = needs.with_embeddings_on_disk(available).with_long_passes(available, elastic=elastic)
    plan = make_plan(
        needs.with_fewer_sequences(available),
        **vars(budgets),
        device_in_ram=not accelerator.has_own_memory and not options.other_machine,
        device_share=options.experts,
        host_share=options.host_experts,
        elastic=elastic,
        slack=0 if options.other_machine else ROUND,
    )
    if plan.too_small_to_cache:
        notes.append(_too_small(plan, options))
    return plan


def _about_misses(plan: Plan, accelerator: Accelerator, options: Options) -> list[str]:
    """What to say of experts that a device lacks, where a CPU could multiply by them and does not."""
    if plan.host_slots is None or options.misses in (UPLOAD, ZERO_COPY) or options.other_machine:
        return []
    if why_not := native.missing():
        told = f"this CPU has no kernels to multiply with ({why_not}): what the device lacks is uploaded"
        return [told] if options.misses == CPU else []
    measured = not accelerator.has_own_memory or read_calibration(accelerator.name, torch.get_num_threads())
    if options.misses == CPU or measured or plan.share == 1:
        return []
    return [
        "experts that the GPU lacks are uploaded; whether this CPU would be faster at some of them,"
        " `moe-local doctor --calibrate` measures, once"
    ]


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
