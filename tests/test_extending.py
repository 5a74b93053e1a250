"""What docs/extending.md promises: a new policy, predictor, format, scheme or architecture is a file and a line.

Each is added to a copy of the package, as a contributor would add it, and then found by the commands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from moe_local.bench.record import write_trace
from moe_local.bench.trace import Trace
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.quantised import rewrite_checkpoint
from tests.processes import MOE, run

ROOT = Path(__file__).parent.parent
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
Moe = Callable[..., str]

# File -> its text, and file -> the line that is put before the one it names, all as docs/extending.md shows them.
FILES = {
    found[1]: found[2] for found in re.finditer(r"^```python\n# (moe_local/\S+)\n(.*?)^```", EXTENDING, re.M | re.S)
}
LINES = {
    "moe_local/policies/__init__.py": ('        "lru": "lru.LRU",', '        "fifo": "fifo.FIFO",'),
    "moe_local/prediction/__init__.py": ('        "router": "routers.make",', '        "again": "again.make",'),
    "moe_local/formats/registry.py": (
        '    Declaration("fp32"',
        '    Declaration("fp16x2", "fp16x2.Fp16x2", _plain(4)),',
    ),
    "moe_local/checkpoint/schemes/__init__.py": (
        '    "awq": Scheme(',
        '    "half-again": Scheme("half_again.half_again", Packed.ALWAYS),',
    ),
    "moe_local/checkpoint/bindings/__init__.py": ('        "llama4": "', '        "jetmoe": "jetmoe.JETMOE",'),
    "moe_local/planning/families.py": ('    "mixtral": Family(', '    "newtral": Family(width="intermediate_size"),'),
}

# What the page shows as it is: it is taken out of the copy first.
SHOWN = "moe_local/checkpoint/bindings/jetmoe.py"


def _take_out(root: Path) -> None:
    assert FILES[SHOWN] == (root / SHOWN).read_text()
    (root / SHOWN).unlink()
    registry = "moe_local/checkpoint/bindings/__init__.py"
    text = (root / registry).read_text()
    (root / registry).write_text(text.replace(f"{LINES[registry][1]}\n", ""))


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Moe:
    """Runs commands of the package with the additions, which must succeed; -> what they print."""
    root = tmp_path_factory.mktemp("extended")
    for source, target in (("moe_local", "moe_local"), ("cli", "moe_local/cli"), ("profiles", "moe_local/hardware")):
        shutil.copytree(ROOT / source, root / target, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(FILES) == 5
    _take_out(root)
    for name, text in FILES.items():
        assert not (root / name).exists()
        (root / name).write_text(text)
    for name, (before, line) in LINES.items():
        assert line.strip() in EXTENDING
        text = (root / name).read_text()
        assert text.count(before) == 1
        (root / name).write_text(text.replace(before, f"{line}\n{before}"))
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200", "MOE_LOCAL_HOME": str(root / "home")}

    def command(*words: object) -> str:
        done = run([*MOE, *words], env=environment, cwd=root)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    return command


def test_help_names_them(moe: Moe) -> None:
    said = " ".join(moe("chat", "--help").split())
    assert "fifo" in said and "again" in said
    said = " ".join(moe("bench", "replay", "--help").split())
    assert "fifo" in said and "again" in said
    assert "fp16x2" in moe("pack", "--help") and "fp16x2" in moe("plan", "--help")


def test_bench_replays_them(moe: Moe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((60, 3, 16)), axis=2)[:, :, :2].astype(np.uint8)
    trace = Trace(ids, np.array([60], np.int32), ("one",), 16, meta={"model": "x", "experts": 16})
    write_trace(trace, tmp_path / "trace.npz")
    asked = ("--capacity", "50%", "--policy", "fifo,lru", "--predictor", "again", "--json")
    report = moe("bench", "replay", tmp_path / "trace.npz", *asked)
    assert '"fifo"' in report and '"again"' in report


def test_a_model_runs_with_them(moe: Moe, qwen: Path) -> None:
    chosen = ("--policy", "fifo", "--prefetch", "again", "--experts", "50%", "--no-pack")
    assert _generates(moe, qwen, *chosen)


def _generates(moe: Moe, model: Path, *options: object) -> bool:
    said = moe("generate", model, "-p", "the hen", "-n", 4, "--raw", "--context", 64, *options, "--json")
    return bool(json.loads(said)["new_tokens"])


def test_plan_and_pack_know_the_format(moe: Moe, qwen: Path, tmp_path: Path) -> None:
    planned = json.loads(moe("plan", "Qwen/Qwen3-30B-A3B", "--format", "fp16x2", "--profile", "cpu-only", "--json"))
    assert planned["format"] == "fp16x2"
    moe("pack", qwen, "-o", tmp_path / "store", "--format", "fp16x2", "--json")
    moe("verify", tmp_path / "store")
    assert "fp16x2" in json.loads(moe("inspect", tmp_path / "store", "--json"))["expert_format"]
    assert _generates(moe, tmp_path / "store")


def test_pack_reads_the_scheme(moe: Moe, qwen: Path, tmp_path: Path) -> None:
    def halve(name: str, tensor: Tensor) -> dict[str, Tensor]:
        if ".experts." not in name:
            return {name: tensor}
        high = tensor.half()
        return {f"{name}.high": high, f"{name}.low": (tensor.float() - high.float()).half()}

    copy = rewrite_checkpoint(qwen, tmp_path / "model", halve, {"quant_method": "half-again"})
    assert json.loads(moe("inspect", copy, "--json"))["expert_format"] == "fp16x2"
    moe("pack", copy, "-o", tmp_path / "store", "--json")
    assert _generates(moe, copy, "--no-pack")


def test_plan_knows_the_architecture(moe: Moe, tmp_path: Path) -> None:
    mixtral = json.loads((ROOT / "profiles/models/mistralai--Mixtral-8x7B-Instruct-v0.1.json").read_text())["config"]
    (tmp_path / "config.json").write_text(json.dumps({**mixtral, "model_type": "newtral"}))
    said = {
        name: json.loads(moe("plan", name, "--json")) for name in (tmp_path, "mistralai/Mixtral-8x7B-Instruct-v0.1")
    }
    ours, theirs = said.values()
    assert ours["architecture"] == "newtral" and ours["parameters"] == theirs["parameters"]


def test_the_architecture_with_a_binding_runs(moe: Moe, tmp_path: Path) -> None:
    model = write_tiny_checkpoint(architecture("jetmoe"), tmp_path / "model")
    assert _generates(moe, model, "--experts", "50%", "--no-pack")
    moe("pack", model, "-o", tmp_path / "store", "--format", "int4", "--json")
    moe("verify", tmp_path / "store")
    assert _generates(moe, tmp_path / "store")
