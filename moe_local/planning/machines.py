"""Machines that need not be here: how much memory they have, and how fast they move bytes.

Profiles are TOML files shipped with the package.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files

from moe_local.errors import MoeLocalError
from moe_local.registry import named
from moe_local.units import GIB

_MOST = 1e9  # of any number: GiB, or GB/s
CPU_ONLY = "cpu-only"
SYSTEM = 2 * GIB  # of RAM: an idle desktop takes about 1.5 GiB, the interpreter with torch and transformers 0.5
DRIVER = GIB // 2  # of VRAM: the driver's context and the libraries' kernels
LOCALITIES = "localities.toml"  # beside the profiles, and none itself


@dataclass(frozen=True)
class Profile:
    """One machine. Memory in GiB, bandwidths in GB/s (10^9 bytes); `gpu` is part of the device's name, lower case."""

    name: str
    title: str
    gpu: str
    vram_gib: float
    vram_bandwidth: float
    ram_gib: float
    ram_bandwidth: float
    pcie_bandwidth: float  # host to device, as measured with pinned memory
    disk_bandwidth: float  # sequential reads
    sources: tuple[str, ...]

    @property
    def vram(self) -> int:
        return int(self.vram_gib * GIB)

    @property
    def ram(self) -> int:
        return int(self.ram_gib * GIB)


@cache
def profiles() -> dict[str, Profile]:
    """All shipped profiles by name."""
    entries = files("moe_local.hardware").iterdir()
    found = (entry for entry in entries if entry.name.endswith(".toml") and entry.name != LOCALITIES)
    loaded = [_parse(entry.name.removesuffix(".toml"), entry.read_text(encoding="utf-8")) for entry in found]
    return {profile.name: profile for profile in sorted(loaded, key=lambda profile: profile.name)}


def _parse(name: str, text: str) -> Profile:
    """Raises MoeLocalError for what is no profile."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise MoeLocalError(f"hardware profile {name} is not TOML ({error})", remedy="correct it") from error
    wanted = {field.name: str(field.type) for field in fields(Profile) if field.name != "name"}
    if content.keys() != wanted.keys():
        raise MoeLocalError(
            f"hardware profile {name} does not have the fields of a profile", remedy=f"give {', '.join(wanted)}"
        )
    for key, value in content.items():
        if not _is_a(wanted[key], value):
            raise MoeLocalError(f"hardware profile {name} says {key} {value!r}", remedy="correct it")
    return Profile(name=name, **{**content, "sources": tuple(content["sources"])})


def _is_a(kind: str, value: object) -> bool:
    """Whether a value is one of a field of this type."""
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST
    if kind == "str":
        return isinstance(value, str)
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def get_profile(name: str) -> Profile:
    """Raises MoeLocalError naming the known profiles."""
    return named(profiles(), name, "hardware profile")


def detect(gpu: str | None, vram: int | None) -> Profile:
    """The profile nearest to a device: by name, then by memory; the CPU-only one where there is none.

    `gpu` is the device's name as the driver gives it, `vram` its bytes.
    """
    known = profiles()
    if gpu is None or vram is None:
        return known[CPU_ONLY]
    named = [p for p in known.values() if p.gpu and all(word in gpu.lower() for word in p.gpu.split())]
    candidates = named or [p for p in known.values() if p.gpu]
    return min(candidates, key=lambda p: (abs(p.vram - vram), -len(p.gpu)))


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

    def with_memory(self, *, ram: int | None = None, vram: int | None = None) -> Machine:
        """The same machine with other amounts of memory where given, in bytes.

        Raises MoeLocalError for VRAM where there is none: its speed is not known.
        """
        if vram is not None and self.vram is None and vram:
            raise MoeLocalError(f"{self.name} has no GPU", remedy="leave out --vram, or choose a --profile")
        if vram == 0 and self.vram is not None:
            raise MoeLocalError(
                f"how fast the RAM of {self.name} is was not measured", remedy="give --profile cpu-only"
            )
        return replace(self, ram=ram or self.ram, vram=vram or self.vram)

    @property
    def device_memory(self) -> str:
        return "ram" if self.vram is None else "vram"

    def bandwidth(self, link: str) -> float:
        return {"pcie": self.pcie_bandwidth, "disk": self.disk_bandwidth}.get(link, self.memory_bandwidth)
