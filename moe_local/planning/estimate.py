"""What a model would do on a machine nobody has bought yet: arithmetic on sizes and bandwidths, nothing measured.

A token reads the dense part, the KV cache and its experts from the device tier's memory. Experts that are not there
come from RAM over PCIe, and those that RAM has not come from the disk first. How often, a locality curve says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moe_local.errors import BudgetError, MoeLocalError
from moe_local.planning.locality import Locality
from moe_local.planning.machines import Profile
from moe_local.planning.placement import Needs, Plan, make_plan
from moe_local.planning.sizes import Matrices, ModelSizes
from moe_local.units import GIB, MIB, format_size

SYSTEM = 2 * GIB  # of RAM: an idle desktop takes about 1.5 GiB, the interpreter with torch and transformers 0.5
DRIVER = GIB // 2  # of VRAM: the driver's context and the libraries' kernels
REACHED = 0.6  # of a memory's rated bandwidth: our 4-bit kernel reads 25 GB/s of RAM that gives 40
PER_LAYER = 0.4e-3  # seconds of transformers' Python for a layer and token, measured on one slow core
PREFILL_CHUNK = 512  # tokens of a prompt that go through the model at once

EXPERT_FORMATS = ("int4", "int8", "nf4", "mxfp4", "bf16")
DENSE_FORMATS = ("keep", "int8", "int4")
GROUPS = (32, 64, 128)
_LEAST = 1 << 12  # numbers: smaller dense matrices stay bf16
_PAGE = 4096  # bytes: what records are aligned to
_ANY = 1 << 200  # bytes: a budget that is not in question


@dataclass(frozen=True)
class Formats:
    """How weights are held; `group` is int4's. Raises MoeLocalError for what does not exist."""

    experts: str = "int4"
    group: int = 64
    dense: str = "int8"

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--format", self.experts, EXPERT_FORMATS),
            ("--group-size", self.group, GROUPS),
            ("--dense-format", self.dense, DENSE_FORMATS),
        ):
            if value not in known:
                raise MoeLocalError(f"{option} {value} is unknown", remedy=f"use one of {', '.join(map(str, known))}")


def encoded_bytes(matrices: Matrices, format: str, group: int = 64) -> int:
    """Bytes of matrices with their scales; int8 for those that a format cannot hold, as packing does it.

    Bits a weight: int4 4 + 32/group (scale and offset, bf16), int8 8 + 16/width (a bf16 scale a row), nf4 4.5 (a
    float32 for 64 numbers), mxfp4 4.25 (a byte for 32), bf16 16.
    """
    out, width = matrices.out, matrices.width
    numbers = out * width
    if format == "bf16":
        each = 2 * numbers
    elif format == "int4" and out % 64 == 0 and width % group == 0:
        each = numbers // 2 + numbers // group * 4
    elif format == "nf4" and numbers % 64 == 0:
        each = numbers // 2 + numbers // 64 * 4
    elif format == "mxfp4" and width % 32 == 0:
        each = numbers // 2 + numbers // 32
    else:
        each = numbers + 2 * out
    return each * matrices.count


def record_bytes(sizes: ModelSizes, formats: Formats) -> int:
    """Bytes of one expert, in whole pages; biases are bf16."""
    matrices = sum(encoded_bytes(matrix, formats.experts, formats.group) for matrix in sizes.expert)
    return -(-(matrices + 2 * sizes.expert_biases) // _PAGE) * _PAGE


def dense_bytes(sizes: ModelSizes, formats: Formats) -> tuple[int, int]:
    """Bytes of the dense part: held, and read for every token. With encoded linear layers, embeddings are int8."""

    def held(matrix: Matrices, format: str) -> int:
        return encoded_bytes(matrix, "bf16" if _stays_plain(matrix, formats) else format, formats.group)

    embedding = held(sizes.embedding, "int8")
    read = sum(held(matrix, formats.dense) for matrix in sizes.linear) + 2 * sizes.plain
    return read + embedding, read + (embedding if sizes.tied else 0)


def needs_of(sizes: ModelSizes, formats: Formats, context: int) -> Needs:
    """What the model takes at `context` tokens, the KV cache and activations in bf16."""
    return Needs(
        dense=dense_bytes(sizes, formats)[0],
        kv_bytes=2 * sizes.kv_per_token * context,
        workspace=workspace_bytes(sizes, context),
        workspaces=((1, workspace_bytes(sizes, context, 1)),),
        slot=record_bytes(sizes, formats),
        experts=sizes.experts,
        top_k=(sizes.top_k,) * len(sizes.experts),
        rows=0 if sizes.tied else embedding_rows(sizes, formats),
    )


def embedding_rows(sizes: ModelSizes, formats: Formats) -> int:
    """Bytes of the embedding without its scales."""
    numbers = sizes.embedding.parameters
    return 2 * numbers if _stays_plain(sizes.embedding, formats) else numbers


def _stays_plain(matrix: Matrices, formats: Formats) -> bool:
    """Whether a dense matrix is held in bf16, whatever the others are."""
    return formats.dense == "keep" or matrix.out * matrix.width < _LEAST


def workspace_bytes(sizes: ModelSizes, context: int, tokens: int = PREFILL_CHUNK) -> int:
    """Temporaries at the peak of a forward pass: 64 MiB for the allocator and, for more than one token, 64 for blocks
    of attention scores, one layer's keys and values twice as cached and twice as multiplied, a mask (3 bytes a pair),
    rows of hidden states (float32, three a choice of expert and twelve more), and eight copies of the logits.
    """
    tokens = min(tokens, context)
    layer_kv = 2 * sizes.kv_per_token * context // sizes.layers
    rows = tokens * (3 * sizes.top_k + 12) * sizes.hidden * 4
    logits = 8 * sizes.embedding.out * 4
    blocks = (128 if tokens > 1 else 64) * MIB
    return blocks + layer_kv * (2 + 2 * sizes.kv_expansion) + 3 * tokens * context + rows + logits


@dataclass(frozen=True)
class Machine:
    """Memory in bytes, bandwidths in GB/s (10^9 bytes). Without VRAM the device tier is RAM."""

    name: str
    title: str
    ram: int
    vram: int | None
    memory_bandwidth: float  # of the device tier
    pcie_bandwidth: float
    disk_bandwidth: float

    @classmethod
    def of(cls, profile: Profile, *, ram: int | None = None, vram: int | None = None) -> Machine:
        """The profile's machine, with other amounts of memory where given; 0 of VRAM leaves the GPU out.

        Raises MoeLocalError for VRAM on a machine without a GPU.
        """
        if vram and not profile.vram:
            raise MoeLocalError(f"{profile.name} has no GPU", remedy="leave out --vram, or choose another --profile")
        vram = profile.vram if vram is None else vram
        bandwidth = profile.vram_bandwidth if vram else profile.ram_bandwidth
        return cls(
            profile.name, profile.title, profile.ram if ram is None else ram, vram or None, bandwidth,
            profile.pcie_bandwidth, profile.disk_bandwidth,
        )  # fmt: skip

    @property
    def device_memory(self) -> str:
        return "ram" if self.vram is None else "vram"

    def bandwidth(self, link: str) -> float:
        return {"pcie": self.pcie_bandwidth, "disk": self.disk_bandwidth}.get(link, self.memory_bandwidth)


@dataclass(frozen=True)
class Estimate:
    """One model on one machine, decoding in the steady state: bytes and seconds are of one token."""

    machine: Machine
    plan: Plan
    device_hits: float  # of all requests for experts
    host_hits: float | None  # of those that the device misses; None without a host tier
    bytes: Mapping[str, float]  # over each link: vram or ram, pcie, disk
    seconds: Mapping[str, float]  # of each link alone, at its full bandwidth
    software_seconds: float

    @property
    def device_share(self) -> float:
        return self.plan.share

    @property
    def host_share(self) -> float | None:
        """Of all experts; what the device holds is in RAM too, as far as it fits."""
        slots = self.plan.host_slots
        return None if slots is None else sum(slots) / self.plan.needs.all_experts

    @property
    def memory_share(self) -> float:
        """The share of experts that are not on the disk alone."""
        return max(self.device_share, self.host_share or 0.0)

    @property
    def tokens_per_second(self) -> tuple[float, float]:
        """Low: nothing overlaps, memory gives `REACHED` of its bandwidth, and the software takes its time. High: all
        overlaps, and the slowest link alone decides.
        """
        return speed_range(self.seconds, self.machine.device_memory, self.software_seconds)

    @property
    def bound_by(self) -> str:
        return max(self.seconds, key=lambda link: self.seconds[link])

    @property
    def load_seconds(self) -> float:
        """Reading the dense part, after which the first prompt can be taken."""
        return self.plan.needs.dense / (self.machine.disk_bandwidth * 1e9)

    @property
    def warm_seconds(self) -> float:
        """Reading as many experts as memory holds, which happens as they are asked for."""
        held = self.memory_share * self.plan.needs.all_experts * self.plan.needs.slot
        return held / (self.machine.disk_bandwidth * 1e9)


def speed_range(seconds: Mapping[str, float], memory: str, software: float) -> tuple[float, float]:
    """Tokens/s from the seconds of each link, of which `memory` is the device tier's; see `Estimate`."""
    slow = sum(seconds.values()) + seconds[memory] * (1 / REACHED - 1) + software
    return 1 / slow, 1 / max(seconds.values())


def estimate(sizes: ModelSizes, machine: Machine, formats: Formats, context: int, locality: Locality) -> Estimate:
    """Raises BudgetError when the dense part and one token's experts do not fit the device tier, MoeLocalError for a
    context that the model does not have.
    """
    _check_context(sizes, context)
    needs = needs_of(sizes, formats, context)
    if machine.vram is None:
        needs = needs.with_rows_on_disk(machine.ram - SYSTEM)
    plan = _place(needs, machine)
    host_share = None if plan.host_slots is None else sum(plan.host_slots) / needs.all_experts
    device_hits = locality.hit_rate(plan.share)
    held_hits = max(device_hits, locality.hit_rate(host_share or 0.0))  # in either memory
    carried = {
        machine.device_memory: float(computed_bytes(sizes, formats, needs)),
        "pcie": (1 - device_hits) * needs.token_set * needs.slot,  # what the disk gave goes on over it
        "disk": (1 - held_hits) * needs.token_set * needs.slot,
    }
    if machine.vram is None:
        del carried["pcie"]
    return Estimate(
        machine=machine,
        plan=plan,
        device_hits=device_hits,
        host_hits=None if host_share is None else _among(held_hits, device_hits),
        bytes=carried,
        seconds={link: amount / (machine.bandwidth(link) * 1e9) for link, amount in carried.items()},
        software_seconds=sizes.layers * PER_LAYER,
    )


def _check_context(sizes: ModelSizes, context: int) -> None:
    if context < 1:
        raise MoeLocalError(f"--context {context} is not a number of tokens")
    if sizes.positions is not None and context > sizes.positions:
        raise MoeLocalError(f"--context {context} is more than this model's {sizes.positions} positions")


def computed_bytes(sizes: ModelSizes, formats: Formats, needs: Needs) -> int:
    """Bytes that one token's arithmetic reads."""
    return dense_bytes(sizes, formats)[1] + needs.kv_cache + needs.token_set * needs.slot


def _among(held: float, device: float) -> float:
    """P(in RAM | not on the device), where RAM has what the device has: 1 if nothing misses."""
    return (held - device) / (1 - device) if device < 1 else 1.0


def _place(needs: Needs, machine: Machine) -> Plan:
    least = _least(needs, machine)
    budget, what, option = (machine.ram, "RAM", "--ram") if machine.vram is None else (machine.vram, "VRAM", "--vram")
    if budget < least:
        raise BudgetError(
            f"{machine.name}: {format_size(budget)} of {what} is too small: the dense weights need"
            f" {format_size(needs.dense)}, the KV cache {format_size(needs.kv_cache)}, activations"
            f" {format_size(needs.workspace)}, one token's {needs.token_set} experts"
            f" {format_size(needs.token_set * needs.slot)}",
            minimum=least,
            remedy=f"at least {option} {-(-least >> 20)}MiB would do, or a smaller --format or --context",
        )
    return _plan(needs, machine.ram, machine.vram)


def _least(needs: Needs, machine: Machine) -> int:
    """The smallest budget of the device tier that keeps one token's experts."""
    overhead = SYSTEM if machine.vram is None else DRIVER
    return _plan_device(
        needs, overhead + needs.resident_bytes + needs.all_experts * needs.slot, machine
    ).useful_minimum


def _plan_device(needs: Needs, budget: int, machine: Machine) -> Plan:
    return _plan(needs, budget, None) if machine.vram is None else _plan(needs, _ANY, budget)


def _plan(needs: Needs, ram: int, vram: int | None) -> Plan:
    in_ram = vram is None
    return make_plan(
        needs, ram=ram, vram=vram, ram_overhead=SYSTEM, vram_overhead=0 if in_ram else DRIVER, elastic=in_ram
    )


def doubled(machine: Machine) -> dict[str, Machine]:
    """The machine with twice as much of one memory, by its name."""
    more = {"ram": replace(machine, ram=2 * machine.ram)}
    return more if machine.vram is None else {"vram": replace(machine, vram=2 * machine.vram), **more}
