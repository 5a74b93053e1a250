"""Live measurement on a tiny model: its figures add up, and the replay of its recording agrees with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_local.bench.compare import BETTER, SAME, UNTOLD, WORSE, compare, compare_within
from moe_local.bench.energy import EnergyMeter
from moe_local.bench.live import Request, measure, summary
from moe_local.bench.record import write_trace
from moe_local.bench.replay import replay
from moe_local.bench.routing_stats import routing
from moe_local.bench.tables import METRICS
from moe_local.bench.trace import Trace, read_trace
from moe_local.bench.trace_driver import Route
from moe_local.bench.workload import OWN, Prompt, read_prompts
from moe_local.engine import Engine, load
from moe_local.errors import MoeLocalError
from moe_local.planning.options import Options
from moe_local.policies import POLICIES
from moe_local.policies.belady import BELADY
from moe_local.units import MIB

PROMPTS = (*OWN[:3], Prompt("long", "One and two and three. " * 30, {"category": "long"}))


def _quiet(stage: str, fraction: float) -> None:
    assert 0 <= fraction <= 1


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_replay_agrees_with_live(qwen: Path, tmp_path: Path, policy: str, share: float) -> None:
    """Layer by layer, prompts of many tokens and the cold start included; without a difference at all."""
    request = Request(PROMPTS, new_tokens=12, repeat=1, record=tmp_path / "trace.npz")
    with load(qwen, Options(context=512, experts=share, policy=policy)) as engine:
        run = measure(engine, request, _quiet)
    trace = read_trace(tmp_path / "trace.npz")
    assert trace.names == tuple(prompt.name for prompt in PROMPTS)
    assert trace.steps.max() > 100
    (found, belady) = replay(trace, [POLICIES[policy], BELADY], [tuple(run["slots"]["device"])])
    assert found.misses.tolist() == run["cold"]["misses"]
    assert found.lookups.tolist() == [h + m for h, m in zip(run["cold"]["hits"], run["cold"]["misses"], strict=True)]
    assert belady.misses.sum() < found.misses.sum()


def test_replay_agrees_with_live_over_three_tiers(qwen: Path, tmp_path: Path) -> None:
    request = Request(PROMPTS, new_tokens=12, repeat=1, record=tmp_path / "trace.npz")
    options = Options(context=512, vram=400 * MIB, experts=0.3, host_experts=0.6, device="cpu")
    with load(qwen, options) as engine:
        run = measure(engine, request, _quiet)
    slots = run["slots"]
    (found,) = replay(
        read_trace(tmp_path / "trace.npz"),
        [POLICIES["lfru"]],
        [tuple(slots["device"])],
        host_slots=tuple(slots["host"]),
    )
    assert (found.misses - found.host_misses).tolist() == run["cold"]["host_hits"]
    assert sum(run["cold"]["host_hits"]) > 0
    assert run["links"]["upload"]["bytes"] == sum(run["layers"]["misses"]) * engine.plan.needs.slot
    assert run["summary"]["misses_uploaded_ahead"]["high"] == 0  # on a CPU


def test_the_figures_add_up(qwen: Path) -> None:
    request = Request(OWN[:4], new_tokens=8, repeat=2, by="category")
    with load(qwen, Options(context=256, experts=0.5, prefetch="off")) as engine:
        run = measure(engine, request, _quiet)
        slot = engine.plan.needs.slot
    assert run["summary"].keys() == METRICS.keys() - {
        "prefetch_recall",
        "misses_uploaded_ahead",
    }  # nothing was predicted
    assert run["summary"]["prefetch_on_share"]["high"] == 0
    for spread in run["summary"].values():
        assert spread["low"] <= spread["median"] <= spread["high"]
    hits, misses = sum(run["layers"]["hits"]), sum(run["layers"]["misses"])
    assert run["links"]["disk"]["bytes"] == misses * slot
    rates = run["summary"]["hit_rate"]
    assert rates["low"] - 1e-6 <= hits / (hits + misses) <= rates["high"] + 1e-6
    assert sum(map(sum, run["resident"])) == sum(run["slots"]["device"])
    usage = np.array(run["routing"]["usage"])
    assert (usage.sum(axis=1) == run["routing"]["tokens"] * engine.plan.needs.top_k[0]).all()
    assert run["routing"]["groups"]["names"] == ["code", "knowledge"]
    assert run["memory"]["ram"]["peak"] > 0
    timeline = run["timeline"]
    assert {span["kind"] for span in timeline["spans"]} >= {"compute"}
    assert all(0 <= span["begin"] <= span["end"] <= timeline["seconds"] for span in timeline["spans"])


def test_a_route_drives_the_routing(qwen: Path, tmp_path: Path) -> None:
    """Always the same experts: all hits after the first token, whatever the model's own routers want."""
    with load(qwen, Options(context=256, experts=0.5)) as engine:
        needs = engine.plan.needs
        ids = np.zeros((3, len(needs.experts), needs.top_k[0]), np.uint8) + np.arange(needs.top_k[0], dtype=np.uint8)
        trace = Trace(ids, np.array([3], np.int32), ("same",), needs.experts[0], meta={"experts": needs.experts[0]})
        write_trace(trace, tmp_path / "route.npz")
        request = Request(OWN[:2], new_tokens=8, repeat=1, route=read_trace(tmp_path / "route.npz"))
        run = measure(engine, request, _quiet)
        assert run["summary"]["hit_rate"]["low"] == 1
        assert run["routing"] is None
        with pytest.raises(MoeLocalError, match="the trace is of"):
            Route(replace(trace, ids=ids[:, :1]), needs)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"new_tokens": 1}, "no decoding"),
        ({"repeat": 0}, "--repeat 0"),
        ({"record": Path("a"), "route": object()}, "both given"),
    ],
)
def test_requests_that_make_no_sense(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(MoeLocalError, match=said):
        Request(OWN, **wrong)  # type: ignore[arg-type]


def test_the_engine_is_as_it_was(qwen: Path, tmp_path: Path) -> None:
    with load(qwen, Options(context=256, experts=0.5)) as engine:
        before = _answer(engine)
        measure(engine, Request(OWN[:1], new_tokens=4, repeat=1), _quiet)
        assert _answer(engine) == before


def _answer(engine: Engine) -> list[int]:
    from moe_local import Sampling

    engine.model.generation_config.eos_token_id = None
    return engine.generate("Hello", Sampling(max_new_tokens=8, temperature=0)).token_ids


# Prompts


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"prompt": "a"}', "a"),
        ('{"question": "b", "answer": "no"}', "b"),
        ('{"instruction": " c "}', "c"),
        ('{"turns": ["d", "e"]}', "d"),
        ('{"messages": [{"role": "user", "content": "f"}, {"role": "assistant", "content": "g"}]}', "f"),
    ],
)
def test_prompt_files(line: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"{line}\n\n{line}\n")
    assert [prompt.text for prompt in read_prompts(file)] == [text, text]
    assert len(read_prompts(file, 1)) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no prompts"),
        (b"\n\n", "no prompts"),
        (b'{"prompt": ""}', "line 1 .* has no prompt"),
        (b'{"prompt": "a"}\n{"answer": "b"}', "line 2 .* has no prompt"),
        (b"[1]", "line 1 .* has no prompt"),
        (b'{"prompt": ', "line 1 .* is not JSON"),
        (b"[" * 100_000, "line 1 .* is not JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_prompt_files_that_are_none(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(MoeLocalError, match=said):
        read_prompts(file)


def test_plain_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n{two}\n")
    assert [prompt.text for prompt in read_prompts(file)] == ["one", "{two}"]
    with pytest.raises(MoeLocalError, match="cannot read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(MoeLocalError, match="cannot read"):
        read_prompts(tmp_path / "bad.jsonl.gz")


# Balance, energy, comparison


def test_balance_by_hand() -> None:
    """Two prompts of two tokens; one layer of four experts, two a token."""
    ids = np.array([[[0, 1]], [[0, 1]], [[0, 2]], [[2, 0]]], np.uint8)
    trace = Trace(ids, np.array([2, 2], np.int32), ("a", "b"), 4)
    found = routing(trace, ["x", "y"])
    assert found["usage"] == [[4, 2, 2, 0]]
    assert found["dead"] == [0.25]
    assert found["hot"] == [0.25]
    assert found["adjacent_reuse"] == [1.0]
    assert found["entropy"] == [0.75]  # (1/2 * 1 + 2 * 1/4 * 2) bits of 2
    assert found["reuse_distance"]["share"] == [0.125, 0.5, 0, 0]  # 0 1 | 0 1 | 0 2 | 2 0
    assert found["groups"]["overlap"][0] == [1.0, 0.5]
    assert found["groups"]["marked"][0][0] == {"layer": 0, "expert": 1, "lift": 2.0, "share": 0.5}


def test_energy_of_a_counter_that_begins_again(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package: counted in it
    (zone / "energy_uj").write_text("900000")
    (zone / "max_energy_range_uj").write_text("1000000")
    meter = EnergyMeter(tmp_path)
    (zone / "energy_uj").write_text("400000")
    assert meter.joules() == pytest.approx(0.5)
    assert EnergyMeter(tmp_path / "none").joules() is None


def _report(median: float, spread: float, **config: object) -> dict[str, Any]:
    found = {"median": median, "low": median - spread, "high": median + spread}
    summary = {"decode_tokens_per_second": found, "time_to_first_token": found}
    return {"kind": "live", "runs": [{"config": config, "summary": summary}]}


def _together(*reports: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "live", "runs": [run for report in reports for run in report["runs"]]}


def test_reports_are_paired_by_what_varies_and_differ_in_the_rest() -> None:
    def report(policy: str, version: str, cores: int) -> dict[str, Any]:
        runs = _together(*(_report(10 * ram, 1, ram=ram, policy=policy, context=None) for ram in (1, 2, 3)))
        return {**runs, "version": version, "machine": {"cores": cores}, "date": version}

    before, after = report("lru", "1", 2), report("lfru", "2", 4)
    after["runs"] = after["runs"][1:]
    found = compare(before, after)
    assert found.differences == [("version", "1", "2"), ("machine cores", 2, 4), ("policy", "lru", "lfru")]
    assert {one.config for one in found.comparisons} == {"ram 2", "ram 3"}
    assert all(one.ratio == 1 for one in found.comparisons)


def test_runs_of_one_report_are_compared_by_one_setting() -> None:
    runs = [
        _report(ram * len(policy), 0, ram=ram, policy=policy) for ram in (1, 2) for policy in ("lru", "lfru", "lfu")
    ]
    found = [one for one in compare_within(_together(*runs), "policy") if one.metric == "decode_tokens_per_second"]
    assert [(one.config, one.ratio) for one in found] == [
        ("ram 1: policy lfru against lru", 4 / 3), ("ram 1: policy lfu against lru", 1),
        ("ram 2: policy lfru against lru", 4 / 3), ("ram 2: policy lfu against lru", 1),
    ]  # fmt: skip
    with pytest.raises(MoeLocalError, match="no two runs differ by io alone"):
        compare_within(_together(*runs), "io")


def test_trials_that_took_turns() -> None:
    """Load that comes over both is no difference; what is in every pair is one, however the load moves."""

    def run(policy: str, speeds: list[float]) -> dict[str, Any]:
        trials = [{"decode_tokens_per_second": speed, "time_to_first_token": 1 / speed} for speed in speeds]
        return {"config": {"policy": policy}, "summary": summary(trials), "trials": trials}

    load = [1.0, 0.9, 0.5, 0.6, 1.0, 0.4, 0.8, 0.7]
    noisy = [1.01, 0.98, 1.0, 1.02, 0.99, 1.0, 1.01, 0.985]
    lru = run("lru", [10 * share for share in load])
    same = run("lfu", [10 * share * noise for share, noise in zip(load, noisy, strict=True)])
    faster = run("lfru", [10.6 * share * noise for share, noise in zip(load, noisy, strict=True)])
    report = {"kind": "live", "model": {"workload": {"interleaved": True}}, "runs": [lru, same, faster]}
    found = {(one.config, one.metric): one for one in compare_within(report, "policy")}
    for metric in ("decode_tokens_per_second", "time_to_first_token"):
        assert found["policy lfu against lru", metric].verdict == SAME
        assert found["policy lfru against lru", metric].verdict == BETTER
    low, high = found["policy lfru against lru", "decode_tokens_per_second"].interval or (0, 0)
    assert 1.04 < low < 1.06 < high < 1.08
    report["model"]["workload"]["interleaved"] = False
    assert {one.verdict for one in compare_within(report, "policy")} == {SAME}
    few = {**report, "model": {"workload": {"interleaved": True}}, "runs": [run("a", [1, 2]), run("b", [3, 4])]}
    assert {one.verdict for one in compare_within(few, "policy")} == {UNTOLD}


def test_comparison_and_its_noise() -> None:
    better, worse = compare(_report(10, 1, ram=1), _report(20, 1, ram=1)).comparisons
    assert (better.verdict, better.ratio, worse.verdict) == (BETTER, 2, WORSE)
    assert {one.verdict for one in compare(_report(10, 1, ram=1), _report(11.5, 1, ram=1)).comparisons} == {SAME}
    with pytest.raises(MoeLocalError, match="no configuration in common"):
        compare(_together(_report(10, 1, ram=1), _report(1, 0, ram=3)), _report(10, 1, ram=2))
    with pytest.raises(MoeLocalError, match="one report is"):
        compare(_report(10, 1), {"kind": "replay"})
