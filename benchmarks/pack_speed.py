"""How fast `moe-local pack` is beside a plain copy of the same files, and whether killing it loses anything.

    python benchmarks/pack_speed.py CHECKPOINT FOLDER [--ram 3GiB] [--kills 20]

Copies the checkpoint into FOLDER (each file synced) and packs it, each from a dropped page cache; the packing is held
in a memory cgroup. Then packs again, killed (SIGKILL) at random moments and resumed, and compares the bytes. Needs
Linux, root and room for a copy.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import confined

from moe_local.units import format_size, parse_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ram", default="3GiB")
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    size = sum(file.stat().st_size for file in given.checkpoint.glob("*.safetensors"))
    copied = size / copy(given.checkpoint, given.folder / "copy") / 1e9
    shutil.rmtree(given.folder / "copy")
    seconds, peak = pack(given.checkpoint, given.folder / "store", parse_size(given.ram))
    packed = size / seconds / 1e9
    print(
        f"copy {copied:.2f} GB/s, pack {packed:.2f} GB/s of source: {packed / copied:.2f}x; peak {format_size(peak)}"
    )
    if given.kills:
        kills = kill_and_resume(given.checkpoint, given.folder / "again", given.kills, seconds)
        compare(given.folder / "store", given.folder / "again")
        print(f"killed {kills} times, resumed to the same bytes")


def copy(source: Path, target: Path) -> float:
    """Seconds to copy the weights, synced."""
    target.mkdir()
    confined.drop_caches()
    began = time.perf_counter()
    for file in sorted(source.glob("*.safetensors")):
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as stream:
            os.fsync(stream.fileno())
    return time.perf_counter() - began


def command(checkpoint: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "moe_local.cli.main", "pack", str(checkpoint), "-o", str(target)]


def pack(checkpoint: Path, target: Path, limit: int) -> tuple[float, int]:
    """Seconds and peak resident bytes of a packing in a memory cgroup of `limit` bytes."""
    shutil.rmtree(target, ignore_errors=True)
    began = time.perf_counter()
    done = confined.run(command(checkpoint, target), limit)
    if done.status:
        sys.exit(f"packing ended with {done.status}")
    return time.perf_counter() - began, done.peak


def kill_and_resume(checkpoint: Path, target: Path, kills: int, seconds: float) -> int:
    """Packs, killed at random moments until it has been so often; returns how often it was."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(f"{target}.partial", ignore_errors=True)
    rng, done = random.Random(0), 0
    while done < kills:
        started = subprocess.Popen(command(checkpoint, target), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            started.wait(rng.uniform(0, 2.5 * seconds / kills + 6))
        except subprocess.TimeoutExpired:
            started.send_signal(signal.SIGKILL)
            started.wait()
            done += 1
            continue
        shutil.rmtree(target)  # it came to its end: once more from the beginning
    subprocess.run(command(checkpoint, target), check=True, capture_output=True)
    return done


def compare(one: Path, other: Path) -> None:
    subprocess.run(["diff", "-r", str(one), str(other)], check=True)


if __name__ == "__main__":
    main()
