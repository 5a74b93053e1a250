"""`moe-local plan`: what a model would do on a machine nobody has bought yet, from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_local.errors import BudgetError
from moe_local.formats.registry import GROUP_SIZES
from moe_local.planning.weights import DENSE_FORMATS, EXPERT_FORMATS, Formats, dense_bytes, needs_of
from moe_local.units import parse_budget

from . import options as opt
from .output import echo_json

if TYPE_CHECKING:
    from moe_local.planning.estimate import Estimate
    from moe_local.planning.locality import Locality
    from moe_local.planning.machines import Machine, Profile
    from moe_local.planning.sizes import ModelSizes

    # The machine's, with twice as much of each memory, and without Triton's kernels where that is slower.
    Row = tuple[Estimate, dict[str, Estimate], Estimate | None]

DEFAULT_CONTEXT = 4096
MACHINE = "Machine"


@dataclass(frozen=True)
class PlanFlags:
    """What is to be estimated, and for which machines, as typed."""

    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="A machine, like rtx-3060-12gb; may be given again, or as a list with commas. Default: all.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    format: Annotated[
        str,
        typer.Option(
            help=f"Of the experts: {', '.join(EXPERT_FORMATS)}; auto is int4, or mxfp4 for a model that comes in it.",
            rich_help_panel=opt.MODEL,
        ),
    ] = "auto"
    group_size: Annotated[
        int,
        typer.Option(
            help=f"Columns that share a scale in int4: {', '.join(map(str, GROUP_SIZES))}.", rich_help_panel=opt.MODEL
        ),
    ] = 64
    dense_format: Annotated[
        str,
        typer.Option(
            help=f"Of linear layers outside the experts: {', '.join(DENSE_FORMATS)}.", rich_help_panel=opt.MODEL
        ),
    ] = "int8"
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx-size",
            "-c",
            help="Tokens of context to reserve memory for. Default: 4096, or the model's.",
            rich_help_panel=opt.MEMORY,
        ),
    ] = None
    vram: Annotated[
        str | None,
        typer.Option(
            help="GPU memory, like 16GiB, instead of the profile's; 0 leaves the GPU out.", rich_help_panel=opt.MEMORY
        ),
    ] = None
    ram: Annotated[
        str | None, typer.Option(help="RAM, like 64GiB, instead of the profile's.", rich_help_panel=opt.MEMORY)
    ] = None
    locality: Annotated[
        str,
        typer.Option(
            help="How unevenly experts are used: auto is the curve measured on the model most alike; uniform, the"
            " pessimist's, gives a cache of a quarter of the experts a quarter of the hits; or a curve's name.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto"

    def formats(self, sizes: ModelSizes) -> Formats:
        expert_format = self.format
        if expert_format == "auto":
            expert_format = "mxfp4" if sizes.quantised == "mxfp4" else "int4"
        return Formats(expert_format, self.group_size, self.dense_format)

    def curve(self, sizes: ModelSizes) -> Locality:
        from moe_local.planning.locality import get_locality, nearest

        return nearest(sizes.experts[0], sizes.top_k) if self.locality == "auto" else get_locality(self.locality)

    def tokens(self, sizes: ModelSizes) -> int:
        return min(DEFAULT_CONTEXT, sizes.positions or DEFAULT_CONTEXT) if self.context is None else self.context

    def machines(self) -> list[Machine]:
        """The machines asked for, each once; all that are known where none is."""
        from moe_local.planning.machines import get_profile, profiles

        asked = [name.strip() for given in self.profile or () for name in given.split(",") if name.strip()]
        known = [get_profile(name) for name in dict.fromkeys(asked)] or list(profiles().values())
        if self.vram and not asked and parse_budget(self.vram, lambda: 1):
            known = [profile for profile in known if profile.vram]
        return [self._machine(profile) for profile in known]

    def _machine(self, profile: Profile) -> Machine:
        from moe_local.planning.machines import Machine

        ram = None if self.ram is None else parse_budget(self.ram, lambda: profile.ram)
        vram = None if self.vram is None else parse_budget(self.vram, lambda: profile.vram)
        return Machine.of(profile, ram=ram, vram=vram)


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint or store directory, a config.json, a hub id in the Hugging Face cache, or one of the"
            " models that moe-local knows the sizes of, like Qwen/Qwen3-30B-A3B.",
            show_default=False,
        ),
    ],
    as_json: opt.Json = False,
    *,
    flags: PlanFlags,
) -> None:
    """Estimate what a model would do on a machine you do not have: what fits where, tokens/s, what limits it.

    Arithmetic on sizes and bandwidths: no weights, no network, under a second. Tokens/s are a range: from nothing
    overlapping to the slowest link alone deciding, or the host that a GPU waits for. GPUs are taken to have Triton's
    kernels; without them see tokens/s of decoding. On the machine itself, `moe-local inspect` plans exactly.

    Every machine that moe-local knows: `moe-local plan openai/gpt-oss-120b`.

    One in detail, and what more memory would buy: `moe-local plan Qwen/Qwen3-30B-A3B --profile rtx-3060-12gb`.

    The same with other memory and a longer context: `moe-local plan Qwen/Qwen3-30B-A3B --profile rtx-3060-12gb
    --ram 64GiB --context 32768`.
    """
    from moe_local.planning.known_models import find_sizes

    from .plan_tables import show

    sizes = find_sizes(model)
    formats, curve, tokens, machines = flags.formats(sizes), flags.curve(sizes), flags.tokens(sizes), flags.machines()
    rows = [_estimate(machine, sizes, formats, tokens, curve) for machine in machines]
    refused = [row for row in rows if isinstance(row, BudgetError)]
    if len(refused) == len(rows):
        raise refused[0]
    described = describe(sizes, formats, tokens, curve, gpu=any(machine.vram for machine in machines))
    described["machines"] = [_describe_row(*pair) for pair in zip(machines, rows, strict=True)]
    if as_json:
        echo_json(described)
    else:
        show(described)


def _estimate(
    machine: Machine, sizes: ModelSizes, formats: Formats, context: int, curve: Locality
) -> Row | BudgetError:
    from moe_local.planning.estimate import doubled, estimate

    try:
        found = estimate(sizes, machine, formats, context, curve)
    except BudgetError as error:
        return error
    larger = {what: estimate(sizes, more, formats, context, curve) for what, more in doubled(machine).items()}
    decoding = estimate(sizes, machine, formats, context, curve, kernels=False)
    return found, larger, decoding if decoding.bytes != found.bytes else None


def describe(sizes: ModelSizes, formats: Formats, context: int, curve: Locality, *, gpu: bool) -> dict[str, Any]:
    """What is estimated, sizes in bytes; those of activations on a GPU or in RAM."""
    needs = needs_of(sizes, formats, context, gpu=gpu)
    return {
        "estimate": True,
        "model": sizes.name,
        "architecture": sizes.architecture,
        "parameters": sizes.parameters,
        "active_parameters": sizes.dense_read + sizes.token_set * sizes.expert_parameters,
        "moe_layers": len(sizes.experts),
        "experts": needs.all_experts,
        "experts_per_token": needs.token_set,
        "format": formats.experts,
        "group_size": formats.group if formats.experts == "int4" or formats.dense == "int4" else None,
        "dense_format": formats.dense,
        "context": context,
        "locality": curve.name,
        "record_bytes": needs.slot,
        "expert_bytes": needs.all_experts * needs.slot,
        "dense_bytes": needs.dense,
        "dense_bytes_per_token": dense_bytes(sizes, formats)[1],
        "kv_cache_bytes": needs.kv_cache,
        "workspace_bytes": needs.workspace,
        "notes": list(sizes.notes),
    }


def _describe_row(machine: Machine, row: Row | BudgetError) -> dict[str, Any]:
    """One machine's figures; all keys are there, None where they do not apply or the model does not fit."""
    about: dict[str, Any] = {
        "profile": machine.name,
        "title": machine.title,
        "ram": machine.ram,
        "vram": machine.vram,
        "fits": not isinstance(row, BudgetError),
    }
    if isinstance(row, BudgetError):
        return {**_NOTHING, **about, "refused": row.message, "remedy": row.remedy, "least_bytes": row.minimum}
    found, more, decoding = row
    figures = {
        "tokens_per_second": _range(found),
        "tokens_per_second_decoding": None if decoding is None else _range(decoding),
        "bound_by": found.bound_by,
        "device_share": found.device_share,
        "host_share": found.host_share,
        "disk_only_share": 1 - found.memory_share,
        "device_hit_rate": found.device_hits,
        "host_hit_rate": found.host_hits,
        "load_seconds": found.load_seconds,
        "warm_seconds": found.warm_seconds,
        "memory_bytes_per_token": round(found.bytes[machine.device_memory]),
        **{f"{link}_bytes_per_token": round(found.bytes[link]) for link in ("pcie", "disk") if link in found.bytes},
        **{f"tokens_per_second_twice_{what}": _range(twice) for what, twice in more.items()},
    }
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    return {**_NOTHING, **about, **rounded}


_NOTHING: dict[str, Any] = dict.fromkeys((
    "profile", "title", "ram", "vram", "fits", "tokens_per_second", "tokens_per_second_decoding", "bound_by",
    "device_share", "host_share", "disk_only_share", "device_hit_rate", "host_hit_rate",
    "memory_bytes_per_token", "pcie_bytes_per_token",
    "disk_bytes_per_token", "load_seconds", "warm_seconds", "tokens_per_second_twice_vram",
    "tokens_per_second_twice_ram", "refused", "remedy", "least_bytes",
))  # fmt: skip


def _range(found: Estimate) -> list[float]:
    return [round(speed, 2) for speed in found.tokens_per_second]
