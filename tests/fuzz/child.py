"""The process in which damaged files are opened: a line of JSON in, `[target, number, seed]`, and a line out.

Each answer says what came of it, how long it took, and by how many bytes memory had grown at its peak.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

ROOM = 6 << 30  # bytes of address space beyond what the process has once everything is imported


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _forget_peak() -> int:
    """Begins to watch for a new peak. Returns the memory that is held now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _outcome(target: Any) -> dict[str, Any]:
    from moe_local.errors import MoeLocalError

    before, began = _forget_peak(), time.perf_counter()
    try:
        target.open()
        said, trace = "answer", ""
    except MoeLocalError as error:
        said, trace = type(error).__name__, ""
    except BaseException as error:
        said, trace = f"! {type(error).__name__}: {error}"[:300], traceback.format_exc()[-3000:]
    seconds = time.perf_counter() - began
    return {"said": said, "trace": trace, "seconds": seconds, "grown": max(0, _status("VmHWM") - before)}


def main() -> None:
    import torch

    from tests.fuzz.targets import TARGETS, seed_of

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anybody else prints
    room = _status("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="moe-local-fuzz-") as folder:
        os.environ["MOE_LOCAL_HOME"] = folder
        for line in sys.stdin:
            name, number, seed = json.loads(line)
            if name not in made:
                (Path(folder) / name).mkdir()
                made[name] = TARGETS[name](Path(folder) / name)
                answers.write(json.dumps({"ready": name}) + "\n")
                answers.flush()
            made[name].damage(Random(seed_of(name, number, seed)))
            answers.write(json.dumps(_outcome(made[name])) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
