"""Many damaged files, opened in a child process that is watched: `python -m tests.fuzz.run --inputs 10000`."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 20.0  # that an input may take
GROWN = 1 << 30  # bytes by which memory may grow
_PREPARING = 120.0  # seconds for a target's sound files
ROOT = Path(__file__).parents[2]


@dataclass
class Figures:
    """What came of all inputs."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (target, outcome)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")
    restarts: int = 0

    def add(self, input: str, target: str, found: dict[str, Any]) -> None:
        said = str(found["said"])
        bad = said.startswith("!")
        if not bad and found["seconds"] > SECONDS:
            bad, said = True, f"! {found['seconds']:.0f} seconds"
        if not bad and found["grown"] > GROWN:
            bad, said = True, f"! {found['grown'] >> 20} MiB more"
        self.outcomes[target, "failure" if bad else said] += 1
        if bad:
            self.failures.append(f"{input}: {said}\n{found.get('trace', '')}")
        self.slowest = max(self.slowest, (float(found["seconds"]), input))
        self.largest = max(self.largest, (int(found["grown"]), input))

    @property
    def inputs(self) -> int:
        return self.outcomes.total()

    def text(self) -> str:
        kinds: Counter[str] = Counter()
        for (_, said), count in self.outcomes.items():
            kinds[said] += count
        lines = [
            f"{self.inputs} inputs: {', '.join(f'{count} {said}' for said, count in kinds.most_common())}",
            f"slowest {self.slowest[0]:.2f} s ({self.slowest[1]}), most memory {self.largest[0] >> 20} MiB"
            f" ({self.largest[1]}), {self.restarts} restarts",
        ]
        for target in sorted({target for target, _ in self.outcomes}):
            parts = {said: n for (its, said), n in self.outcomes.items() if its == target}
            lines.append(f"  {target}: {', '.join(f'{n} {said}' for said, n in sorted(parts.items()))}")
        return "\n".join(lines)


class Child:
    """A process that opens one input after the other."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.child"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=ROOT,
        )
        self._ready: set[str] = set()
        self._rest = b""

    def open(self, target: str, number: int, seed: int) -> dict[str, Any]:
        """What came of an input; a process that ends or does not answer is a failure, and then gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([target, number, seed]).encode() + b"\n")
            self._process.stdin.flush()
            if target not in self._ready:
                self._line(_PREPARING)
                self._ready.add(target)
            began = time.perf_counter()
            answer: dict[str, Any] = json.loads(self._line(SECONDS + 10))
            return answer
        except TimeoutError:
            self.close()
            return {"said": "! no answer", "seconds": time.perf_counter() - began, "grown": 0}
        except (OSError, EOFError):
            self.close()
            return {"said": f"! ended with {self._process.returncode}", "seconds": 0.0, "grown": 0}

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise EOFError
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def fuzz(plan: Iterator[tuple[str, int]], seed: int = 0, *, report: bool = False) -> Figures:
    """Opens every input of the plan, (target, number)."""
    figures, child = Figures(), Child()
    began = time.monotonic()
    try:
        for target, number in plan:
            if not child.alive:
                child = Child()
                figures.restarts += 1
            figures.add(f"{target}:{number} (seed {seed})", target, child.open(target, number, seed))
            if report and figures.inputs % 500 == 0:
                print(
                    f"{figures.inputs} in {time.monotonic() - began:.0f} s, {len(figures.failures)} failures",
                    flush=True,
                )
    finally:
        child.close()
    return figures


def plan_of(inputs: int, targets: dict[str, float]) -> Iterator[tuple[str, int]]:
    """So many inputs over the targets by their shares, each target at least once."""
    total = sum(targets.values())
    for target, share in targets.items():
        for number in range(max(1, round(inputs * share / total))):
            yield target, number


def main() -> None:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(TARGETS))
    parser.add_argument("--number", type=int, help="one input of the target")
    given = parser.parse_args()
    shares = {name: kind.share for name, kind in TARGETS.items() if not given.only or name in given.only}
    one = ((name, given.number) for name in shares)
    plan = plan_of(given.inputs, shares) if given.number is None else one
    figures = fuzz(plan, given.seed, report=True)
    for failure in figures.failures[:60]:
        print(failure)
    print(figures.text())
    sys.exit(bool(figures.failures))


if __name__ == "__main__":
    main()
