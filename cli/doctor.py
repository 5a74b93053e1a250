"""`moe-local doctor`: what this machine has, and what moe-local would choose on it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_local.errors import MoeLocalError
from moe_local.paths import cache_dir
from moe_local.units import GIB, format_size

from . import options as opt
from .output import Console, echo, echo_json
from .versions import PACKAGES, installed, notes

if TYPE_CHECKING:
    from moe_local.memory.accelerator import Accelerator


def doctor(
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure what experts that a GPU lacks cost, uploaded and on the CPU, for --misses auto.",
        ),
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Check the machine: devices, memory, disk speed, versions, and what would be chosen.

    Writes a temporary file of 256 MiB into the cache folder to measure its disk. With --calibrate instead measures
    each GPU, for some seconds, and keeps the figures in the cache folder.
    """
    if calibrate:
        _calibrate(as_json=as_json)
        return
    found = examine()
    if as_json:
        echo_json(found)
    else:
        _show(found)


def examine() -> dict[str, Any]:
    """Everything `doctor` tells; sizes in bytes, speeds in GB/s (10^9 bytes)."""
    import platform

    from moe_local.memory.accelerator import cpu_capability, gpus
    from moe_local.memory.limits import cores, memory_available, memory_limit
    from moe_local.planning.machines import detect, profiles
    from moe_local.planning.plan_load import vram_budgets

    there = gpus()
    found = [_gpu(each) for each in there]
    first = found[0] if found else {}
    cache = cache_dir()
    versions = {name: installed(name) for name in PACKAGES}
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "notes": notes(versions),
        "cores": cores(),
        "cpu_capability": cpu_capability(),
        "kernels": _kernels(),
        "gpus": found,
        "memory": memory_limit(),
        "memory_available": memory_available(),
        "cache_folder": str(cache),
        "disk": _disk(cache),
        "chosen": {
            "device": "cuda" if found else "cpu",
            "tiers": ["device", "host", "disk"] if found else ["device (RAM)", "disk"],
            "ram": int(memory_available() * 0.9),
            "vram": vram_budgets(there[0])[2] if there else None,
            "profile": detect(first.get("name"), first.get("total")).name,
        },
        "profiles": list(profiles()),
    }


def _calibrate(*, as_json: bool) -> None:
    """Measures and writes down what misses cost on each GPU. Raises UnsupportedError where there is none."""
    from moe_local.bench.calibrate import calibrate
    from moe_local.memory.accelerator import find, gpus
    from moe_local.planning.calibration import write_calibration

    from .load import progress

    found = []
    for each in gpus() or [find("cpu")]:
        with progress() as report:
            found.append(calibrate(each, report))
        file = write_calibration(found[-1])
    if as_json:
        echo_json([asdict(one) for one in found])
        return
    for one in found:
        rows = ", ".join(f"{1e-9 / each:.1f} at {rows}" for rows, each in one.multiply.items())
        echo(f"{one.device}: uploads {1e-9 / one.upload:.1f} GB/s; a round trip {one.round_trip * 1e6:.0f} us")
        echo(f"CPU, {one.threads} threads: multiplies by experts at GB/s (rows): {rows}")
    echo(f"kept in {file}")


def _kernels() -> dict[str, Any]:
    """The processor that the native kernels compute as, or why there are none; who multiplies what on this CPU."""
    from moe_local.formats.registry import packable_names
    from moe_local.kernels import native

    why_not, remedy = native.missing(), native.REMEDY
    if os.environ.get(native.VARIABLE) == "off":
        remedy = f"unset {native.VARIABLE}"
    processor = threads = None
    if why_not is None:
        from moe_local.kernels.native._native import team_kind

        threads = team_kind()
        try:
            processor = native.machine().processor
        except MoeLocalError as error:
            why_not, remedy = str(error.__cause__), error.remedy or remedy
    return {
        "native": processor,
        "why_not": why_not,
        "remedy": remedy if why_not else None,
        "threads": threads,
        "formats": {name: _multiplies(name, processor) for name in packable_names()},
    }


def _multiplies(name: str, processor: str | None) -> str:
    """The kernel for a packed format on a CPU."""
    import torch

    from moe_local.formats.registry import packed_encoding
    from moe_local.kernels.cpu import NATIVE
    from moe_local.kernels.matrix import kernel_for

    kernel = kernel_for(packed_encoding(name), torch.device("cpu"), (2048, 2048))
    return kernel.name if kernel is not NATIVE else f"native {processor}" if processor else "none"


def _gpu(gpu: Accelerator) -> dict[str, Any]:
    from moe_local.kernels.triton_probe import trouble

    free, total = gpu.memory()
    told = {"name": gpu.name, "total": total, "free": free, "compute_capability": gpu.capability}
    return {**told, "no_kernels": trouble(gpu.device)}


def _disk(folder: Path) -> dict[str, Any]:
    from moe_local.bench.machine import measure_disk

    disk = measure_disk(folder)
    if disk.read is None or disk.write is None:
        return {"free": disk.free, "write": None, "read": None, "note": "too full to measure"}
    return {"free": disk.free, "write": round(disk.write, 3), "read": round(disk.read, 3), "note": None}


def _show(found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for label, value in _rows(found):
        table.add_row(label, escape(value))
    console = Console()
    console.print(table)
    for note in found["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}")


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    disk, chosen = found["disk"], found["chosen"]
    speed = disk["note"] or f"reads {disk['read']:.2f} GB/s, writes {disk['write']:.2f} GB/s"
    gpus = [
        f"{gpu['name']}, {format_size(gpu['total'])}, {format_size(gpu['free'])} free,"
        f" compute {gpu['compute_capability']}, {_gpu_kernels_told(gpu['no_kernels'])}"
        for gpu in found["gpus"]
    ]
    budgets = f"--ram {chosen['ram'] / GIB:.1f}GiB" + (
        f" --vram {chosen['vram'] / GIB:.1f}GiB" if chosen["vram"] else ""
    )
    return [
        ("system", f"{found['platform']}, Python {found['python']}"),
        (
            "versions",
            ", ".join(f"{name} {number or 'missing'}" for name, number in found["versions"].items()),
        ),
        ("processor", f"{found['cores']} cores, {found['cpu_capability']}"),
        ("kernels", _kernels_told(found["kernels"])),
        ("GPU", "; ".join(gpus) or "none that torch can use"),
        (
            "memory",
            f"{format_size(found['memory'])} for this process, {format_size(found['memory_available'])} available",
        ),
        ("cache folder", f"{found['cache_folder']}: {format_size(disk['free'])} free, {speed}"),
        ("would choose", f"device {chosen['device']}, {budgets}, tiers {' > '.join(chosen['tiers'])}"),
        ("nearest profile", chosen["profile"]),
        ("profiles", ", ".join(found["profiles"])),
    ]


def _gpu_kernels_told(trouble: str | None) -> str:
    return "multiplies by Triton kernels" if trouble is None else f"decodes at every use: {trouble}"


def _kernels_told(kernels: dict[str, Any]) -> str:
    if kernels["native"] is None:
        return f"none of our own: {kernels['why_not']}; {kernels['remedy']}"
    ours = [name for name, kernel in kernels["formats"].items() if kernel.startswith("native")]
    threads = "OpenMP's threads" if kernels["threads"] == "OpenMP" else "threads of their own"
    return f"{kernels['native']} for {', '.join(ours)}, on {threads}; other formats are decoded first"
