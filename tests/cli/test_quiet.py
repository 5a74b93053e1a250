"""What commands say beside their output: nothing, but for what is told here. Libraries' warnings are no news."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.processes import run

# Each command in one process, with what comes on its stderr, whoever writes it, and its exit code.
SCRIPT = """
import io, json, os, sys, tempfile
from moe_local.cli.main import main
said = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["moe-local", *command]
    with tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as out:
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        err.seek(0), out.seek(0)
        said.append([code or 0, err.read().decode(), len(out.read())])
print(json.dumps(said))
"""
SHORT = ("-n", "2", "--context", "128")
BENCH = ("--limit", "1", "--new-tokens", "3", "--repeat", "1", "--context", "128")
COMMANDS = {
    ("--help",): [],
    ("list",): [],
    ("config",): [],
    ("doctor", "--json"): [],
    ("inspect", "model"): [],
    ("plan", "Qwen/Qwen3-30B-A3B", "--profile", "rtx-3090"): [],
    ("pack", "model", "-o", "store"): [" to ", "experts in ", "off the original"],
    ("verify", "store"): [],
    ("generate", "store", "-p", "hi", *SHORT): [],
    ("generate", "model", "-p", "hi", "--no-pack", *SHORT): [],
    ("generate", "model", "-p", "hi", *SHORT): ["packed model once, into "],
    ("batch", "text", "store", "-o", "out.jsonl", "-n", "2"): [" lines "],
    ("eval", "store", "--text", "text", "--limit", "40"): [],
    ("bench", "store", *BENCH, "--record", "t.npz"): [],
    ("bench", "replay", "t.npz", "--capacity", "50%"): [],
    ("bench", "routing", "store", "--tokens", "40", "--context", "64", "--capacity", "50%"): [],
    ("rm", "--yes", "qwen3_moe-int4"): ["frees "],
}  # fmt: skip


def test_commands_are_quiet(qwen: Path, tmp_path: Path) -> None:
    """With whatever transformers and torch are installed: their news of tomorrow's changes are seen here first."""
    (tmp_path / "model").symlink_to(qwen)
    (tmp_path / "text").write_text("the hen and the fox\n" * 20)
    homes = {"MOE_LOCAL_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    given = json.dumps([*COMMANDS])
    done = run([sys.executable, "-c", SCRIPT, given], cwd=tmp_path, env={**os.environ, **homes})
    assert done.returncode == 0, done.stderr
    for (command, wanted), (code, said, written) in zip(COMMANDS.items(), json.loads(done.stdout), strict=True):
        lines = said.splitlines()
        assert code == 0, (command, said)
        assert written > 0 or "-o" in command, command
        assert len(lines) == len(wanted), (command, said)
        assert all(part in line for part, line in zip(wanted, lines, strict=True)), (command, said)
