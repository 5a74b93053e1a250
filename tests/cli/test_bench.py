"""`moe-local bench`, as users meet it."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_local.bench.record import write_trace
from moe_local.bench.trace import Trace, read_trace
from moe_local.policies import POLICIES
from moe_local.prediction import PREDICTORS
from tests.processes import wait_until

from .conftest import Run, expect_error

QUICK = ("--new-tokens", 4, "--repeat", 1, "--limit", 2, "--context", 256, "--no-pack")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((60, 3, 16)), axis=2)[:, :, :2].astype(np.uint8)
    names = ("code/1", "code/2", "story/1")
    write_trace(
        Trace(ids, np.array([20, 20, 20], np.int32), names, 16, meta={"model": "x", "experts": 16}),
        path := tmp_path / "t.npz",
    )
    return path


def test_a_run_and_its_replay(run: Run, qwen: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.npz"
    arguments = ("--experts", "50%", "--policy", "lru", "--record", kept, "--by", "category", "--json")
    result = run("bench", qwen, *QUICK, *arguments)
    assert result.exit_code == 0, result.output
    live = json.loads(result.stdout)
    assert (live["schema"], live["kind"], len(live["runs"])) == ("moe-local-bench/1", "live", 1)
    assert live["runs"][0]["config"]["experts"] == 0.5
    result = run("bench", "replay", kept, "--capacity", "50%", "--policy", "lru", "--json")
    assert result.exit_code == 0, result.output
    lru, belady = json.loads(result.stdout)["replay"]["results"]
    cold = live["runs"][0]["cold"]
    rates = [h / (h + m) for h, m in zip(cold["hits"], cold["misses"], strict=True)]
    assert lru["layer_hit_rates"] == pytest.approx(rates, abs=1e-6)
    assert belady["hit_rate"] >= lru["hit_rate"]


def test_for_people(run: Run, qwen: Path, trace: Path) -> None:
    result = run("bench", "live", qwen, *QUICK, "--by", "category")
    assert result.exit_code == 0, result.output
    for said in ("decode, tokens/s", "cold start", "disk", "GB/s", "prefers"):
        assert said in result.stdout
    asked = ("--capacity", "25%,50%", "--scope", "both", "--predictor", "all")
    result = run("bench", "replay", trace, *asked)
    assert result.exit_code == 0, result.output
    for said in ("lru", "belady", "25", "50", "global", "transitions", "blend", "of the needed"):
        assert said in result.stdout


def test_the_help_names_what_there_is(run: Run) -> None:
    said = run("bench", "replay", "--help").stdout
    assert all(name in said for name in (*POLICIES, *PREDICTORS))
    assert "{policies}" not in said and "{predictors}" not in said


def test_a_sweep_is_one_table(run: Run, qwen: Path, tmp_path: Path) -> None:
    """Each configuration in a process of its own; one that cannot be is said, and the others are measured."""
    table = tmp_path / "sweep.csv"
    result = run("bench", qwen, *QUICK, "--ram", "4GiB,1MiB", "--policy", "lru,lfru", "--csv", table, "--json")
    assert result.exit_code != 0
    assert "2 of 4 configurations failed" in result.stderr
    found = json.loads(result.stdout)["runs"]
    assert [(r["config"]["ram"], r["config"]["policy"]) for r in found] == [
        (4 << 30, "lru"), (4 << 30, "lfru"), (1 << 20, "lru"), (1 << 20, "lfru"),
    ]  # fmt: skip
    assert ["error" in r for r in found] == [False, False, True, True]
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [float(row["decode_tokens_per_second_median"] or 0) > 0 for row in rows] == [True, True, False, False]


def test_formats_are_packed_into(run: Run, qwen: Path) -> None:
    result = run("bench", qwen, *QUICK, "--format", "int8", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"]["format"] == "int8"


def test_pages_and_pictures(run: Run, trace: Path, tmp_path: Path) -> None:
    page, pictures, table = tmp_path / "page.html", tmp_path / "pictures", tmp_path / "t.csv"
    result = run("bench", "replay", trace, "--plot", pictures, "--html", page, "--csv", table)
    assert result.exit_code == 0, result.output
    assert "<svg" in page.read_text()
    assert {file.suffix for file in pictures.iterdir()} == {".png", ".svg"}
    assert {row["policy"] for row in csv.DictReader(table.open())} == {"lru", "lfu", "lfru", "successor", "belady"}


def test_capacities_that_cannot_be_are_left_out(run: Run, trace: Path) -> None:
    asked = ("bench", "replay", trace, "--capacity", "1%,50%,2%", "--policy", "lru")
    found = json.loads(run(*asked, "--json").stdout)["replay"]
    assert found["capacities"] == [0.5] and {each["capacity"] for each in found["results"]} == {0.5}
    assert [each["capacity"] for each in found["left_out"]] == [0.01, 0.02]
    shown = " ".join(run(*asked).stdout.split())
    assert "note: 1.0% is left out: a capacity of 0.01 is 0 of" in shown
    assert "Hit rates under each policy" in shown and "shares of all experts" in shown
    expect_error(run("bench", "replay", trace, "--capacity", "1%,2%"), "one token needs")


def test_predictions_for_a_machine(run: Run, trace: Path) -> None:
    arguments = ("bench", "replay", trace, "--profile", "rtx-3060-12gb", "--model", "openai/gpt-oss-20b")
    result = run(*arguments, "--host", "60%", "--json")
    assert result.exit_code == 0, result.output
    for found in json.loads(result.stdout)["replay"]["results"]:
        low, high = found["tokens_per_second"]
        assert 0 < low < high
    assert run(*arguments).exit_code == 0


def test_compare(run: Run, qwen: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(run("bench", qwen, *QUICK, "--json").stdout)
    result = run("bench", "compare", tmp_path / "a.json", tmp_path / "b.json", "--json")
    assert result.exit_code == 0, result.output
    compared = json.loads(result.stdout)
    hits = next(one for one in compared["comparisons"] if one["metric"] == "hit_rate")
    assert (hits["ratio"], hits["verdict"], compared["differences"]) == (1.0, "within noise", [])
    assert "ratio" in run("bench", "compare", tmp_path / "a.json", tmp_path / "b.json").stdout
    (tmp_path / "no.json").write_text('{"schema": "other/1"}')
    expect_error(run("bench", "compare", tmp_path / "a.json", tmp_path / "no.json"), "not a report of schema")
    expect_error(run("bench", "compare", tmp_path / "a.json", tmp_path / "none.json"), "cannot read")


def test_a_sweep_is_compared_within_itself(run: Run, qwen: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.json"
    sweep.write_text(run("bench", qwen, *QUICK, "--experts", "50%,100%", "--md", tmp_path / "x.md", "--json").stdout)
    out = run("bench", "compare", "--within", sweep, "--by", "experts", "--json").stdout
    hits = next(one for one in json.loads(out)["comparisons"] if one["metric"] == "decode_hit_rate")
    assert hits["config"] == "experts 1.0 against 0.5"
    assert hits["before"] < hits["after"] == 1.0 and hits["verdict"] == "better"
    expect_error(run("bench", "compare", "--within", sweep, "--by", "policy"), "they differ by experts")
    expect_error(run("bench", "compare", "--within", sweep), "belong together")
    expect_error(run("bench", "compare", sweep), "two reports are compared")
    expect_error(run("bench", "compare"), "two reports are compared")
    page = (tmp_path / "x.md").read_text()
    assert page.startswith("# moe-local bench: ") and "| decode, tokens/s |" in page and "prompts' hash" in page


def test_configurations_take_turns(run: Run, qwen: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.json"
    done = run("bench", qwen, *QUICK, "--repeat", "2", "--experts", "50%,100%", "--interleave", "--json")
    assert done.exit_code == 0, done.stderr
    sweep.write_text(done.stdout)
    report = json.loads(done.stdout)
    assert report["model"]["workload"]["interleaved"]
    assert [len(one["trials"]) for one in report["runs"]] == [2, 2]
    out = json.loads(run("bench", "compare", "--within", sweep, "--by", "experts", "--json").stdout)
    assert "too few trials" in {one["verdict"] for one in out["comparisons"]}
    expect_error(run("bench", qwen, *QUICK, "--interleave"), "for several configurations")


def test_routing_strategies(run: Run, qwen: Path, tmp_path: Path) -> None:
    """Live, then from what was kept: the same report; as tables, a page and a picture."""
    kept = tmp_path / "scores.npz"
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 30)
    arguments = ("--text", tmp_path / "text", "--tokens", 80, "--context", 64, "--batch", 16, "--no-pack")
    done = run("bench", "routing", qwen, *arguments, "--save", kept, "--json")
    assert done.exit_code == 0, done.stderr
    live, again = json.loads(done.stdout), json.loads(run("bench", "routing", kept, "--batch", 16, "--json").stdout)
    assert live["strategies"] == again["strategies"]
    assert live["strategies"]["tokens"] == 78  # of two pieces all but the last
    files = ("--html", tmp_path / "x.html", "--md", tmp_path / "x.md", "--csv", tmp_path / "x.csv")
    shown = run(
        "bench", "routing", kept, "--strategy", "top-k,expert-choice", *files, "--plot", tmp_path / "pictures"
    )
    assert shown.exit_code == 0, shown.stderr
    assert "expert choice" in shown.stdout and "Switch" not in shown.stdout
    assert "cannot decode token by token" in (tmp_path / "x.md").read_text()
    assert "hit_rate_belady_0.25" in (tmp_path / "x.csv").read_text()
    assert (tmp_path / "pictures" / "strategies.png").stat().st_size > 10_000
    expect_error(run("bench", "routing", kept, "--strategy", "topk"), "did you mean top-k?")
    expect_error(run("bench", "routing", kept, "--policy", "lur"), "no policy 'lur'")
    expect_error(run("bench", "routing", qwen, "--tokens", "1"), "too few to route")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--capacity", "1%"), "one token needs 2"),
        (("--capacity", "0%"), "not a share"),
        (("--policy", "fifo"), "no policy 'fifo'"),
        (("--scope", "tier"), "--scope tier"),
        (("--predictor", "router"), "needs the model's hidden states"),
        (("--profile", "abacus"), "no hardware profile"),
        (("--profile", "rtx-3060-12gb"), "is not here"),
        (("--limit", "0"), "leaves no prompt"),
        (("--html", "/proc/none/page.html"), "cannot write"),
        (("--csv", "/proc/none/t.csv"), "cannot write"),
        (("--plot", "/proc/none"), "/proc/none"),
    ],
)
def test_replays_that_cannot_be(run: Run, trace: Path, arguments: tuple[str, ...], said: str) -> None:
    expect_error(run("bench", "replay", trace, *arguments), said)


def test_runs_that_cannot_be(run: Run, qwen: Path, trace: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "empty.jsonl").write_text("")
    expect_error(run("bench", qwen, *QUICK, "--prompts", empty), "has no prompts")
    expect_error(run("bench", qwen, *QUICK, "--route", trace), "the trace is of")
    expect_error(run("bench", qwen, *QUICK, "--record", "/proc/none/t.npz"), "cannot write")
    expect_error(run("bench", qwen, *QUICK, "--by", "colour"), "no field 'colour'")
    expect_error(run("bench", qwen, *QUICK, "--policy", "lru,fifo"), "no policy 'fifo'")
    expect_error(run("bench", qwen, *QUICK, "--policy", "lru,lfu", "--record", trace), "one configuration")
    expect_error(run("bench", qwen, "--limit", 0), "leaves no prompt")
    expect_error(run("bench", qwen, "--context", 8, "--no-pack"), "the context holds 8")
    expect_error(run("bench", qwen, *QUICK, "--ram", "1MiB,2MiB"), "every configuration failed")
    expect_error(run("bench", tmp_path / "none"), "none")


def test_an_interrupted_recording_is_kept(endless: Path, process: Callable[..., Any], tmp_path: Path) -> None:
    kept = tmp_path / "kept.npz"
    child = process("bench", endless, "--no-pack", "--new-tokens", 100_000, "--record", kept, "--context", 200_000)
    part = tmp_path / "kept.npz.part" / "forwards"
    wait_until(lambda: part.exists() and part.stat().st_size > 200, child)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert read_trace(kept).tokens > 40
