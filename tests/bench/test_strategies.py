"""Routing strategies: what each promises of its choices, against its paper by hand, and the report of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.bench.routing_report import RoutingQuestion, routing_report
from moe_local.bench.scores import Scores, read_scores, record_scores, write_scores
from moe_local.bench.strategies import STRATEGIES
from moe_local.bench.strategies.base import LayerScores, places
from moe_local.engine import load
from moe_local.errors import MoeLocalError, StorageError
from moe_local.planning.options import Options

BATCHES = (slice(0, 16), slice(16, 30))


def _layer(seed: int, experts: int = 8, top_k: int = 2) -> LayerScores:
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (30, experts)).astype(np.float32)
    return LayerScores(scores, rng.integers(0, 50, 30), BATCHES, top_k)


@pytest.mark.parametrize("name", STRATEGIES)
@given(seed=st.integers(0, 1000), experts=st.sampled_from([4, 8, 11]))
@settings(max_examples=15, deadline=None)
def test_choices_are_different_experts(name: str, seed: int, experts: int) -> None:
    layer = _layer(seed, experts)
    ids = STRATEGIES[name].route(layer)
    assert len(ids) == 30
    assert ids.min() >= 0 and ids.max() <= experts
    for row in ids:
        chosen = row[row < experts]
        assert len(set(chosen)) == len(chosen)
    assert (STRATEGIES[name].route(layer) == ids).all()


def _loads(ids: np.ndarray, experts: int, batch: slice) -> np.ndarray:
    return np.bincount(ids[batch].ravel(), minlength=experts + 1)[:experts]


@pytest.mark.parametrize("seed", range(5))
def test_capacities_hold(seed: int) -> None:
    layer = _layer(seed)
    best = layer.scores.argmax(axis=1)
    switch = STRATEGIES["switch"].route(layer)[:, 0]
    for batch, capacity in zip(BATCHES, (3, 3), strict=True):  # 1.25 * 16 / 8 and 1.25 * 14 / 8, rounded up
        assert _loads(switch, 8, batch).max() <= capacity
        seen: dict[int, int] = {}
        for wanted, given_ in zip(best[batch], switch[batch], strict=True):
            full = seen.get(wanted, 0) >= capacity
            assert given_ == (8 if full else wanted)
            seen[wanted] = seen.get(wanted, 0) + 1
    gshard = STRATEGIES["gshard"].route(layer)
    assert all(_loads(gshard, 8, batch).max() <= 4 for batch in BATCHES)
    assert set(gshard[:, 0]) <= {*best.tolist(), 8}


@pytest.mark.parametrize("seed", range(5))
def test_balance_is_what_is_promised(seed: int) -> None:
    layer = _layer(seed)
    base = STRATEGIES["base"].route(layer)
    assert _loads(base, 8, BATCHES[0]).tolist() == [2] * 8
    assert _loads(base, 8, BATCHES[1]).max() <= 2
    choice = STRATEGIES["expert-choice"].route(layer)
    for batch, count in zip(BATCHES, (4, 4), strict=True):  # 16 * 2 / 8 and 14 * 2 / 8, rounded up
        assert _loads(choice, 8, batch).tolist() == [count] * 8
    top, bias = (STRATEGIES[name].route(layer) for name in ("top-k", "bias"))
    whole = slice(0, 30)
    assert _loads(bias, 8, whole).max() <= _loads(top, 8, whole).max()


def test_base_finds_the_best_assignment() -> None:
    """Two tokens want the first expert; the one that loses less gives way."""
    scores = np.array([[5.0, 4.0], [5.0, 1.0]], dtype=np.float32)
    ids = STRATEGIES["base"].route(LayerScores(scores, np.array([0, 1]), (slice(0, 2),), 1))
    assert ids.tolist() == [[1], [0]]


def test_a_hash_knows_nothing_but_the_token() -> None:
    layer = _layer(0)
    ids = STRATEGIES["hash"].route(layer)[:, 0]
    for token in set(layer.tokens.tolist()):
        assert len(set(ids[layer.tokens == token])) == 1


def test_places() -> None:
    assert places(np.array([2, 1, 2, 2, 1]), 3).tolist() == [0, 0, 1, 2, 1]


def _scores(tokens: int = 60, layers: int = 3, experts: int = 8) -> Scores:
    rng = np.random.default_rng(3)
    found = rng.normal(0, 2, (tokens, layers, experts)).astype(np.float16)
    return Scores(found, rng.integers(0, 90, tokens).astype(np.int32), np.array([tokens - 20, 20], np.int32), 2)


def test_the_report() -> None:
    report = routing_report(_scores(), RoutingQuestion(batch=16), "1", lambda stage, fraction: None)
    found = {one["strategy"]: one for one in report["strategies"]["results"]}
    assert list(found) == list(STRATEGIES)
    assert found["top-k"]["experts_per_token"] == 2
    assert found["top-k"]["dropped"] == 0 < found["switch"]["dropped"]
    assert found["hash"]["experts_per_token"] == 1
    assert "cannot decode token by token" in found["expert-choice"]["note"]
    assert not found["expert-choice"]["hits"]
    hits = {(hit["policy"], hit["capacity"]): hit["hit_rate"] for hit in found["top-k"]["hits"]}
    assert hits["lfru", 0.25] < hits["belady", 0.25] < hits["belady", 0.5]
    json.dumps(report)
    small = routing_report(_scores(), RoutingQuestion(capacities=(0.125, 0.5)), "1", lambda stage, fraction: None)
    shares = {one["strategy"]: {hit["capacity"] for hit in one["hits"]} for one in small["strategies"]["results"]}
    assert shares["top-k"] == {0.5}  # an eighth of eight experts is one, and a token needs two
    assert shares["hash"] == {0.125, 0.5}
    with pytest.raises(MoeLocalError, match=r"no routing strategy .swich.; did you mean switch"):
        _ = RoutingQuestion(strategies=("swich",)).chosen
    with pytest.raises(MoeLocalError, match="routes no tokens together"):
        RoutingQuestion(batch=1)


def test_scores_of_a_model_choose_what_it_chose(qwen: Path) -> None:
    """The best of the recorded scores are the experts that the model asks for."""
    chosen: list[list[set[int]]] = []

    def tap(layer: int, index: object, weights: object) -> tuple[object, object]:
        if layer == 0:
            chosen.append([])
        chosen[-1].append([set(row) for row in index.tolist()])  # type: ignore[attr-defined]
        return index, weights

    with load(qwen, Options(context=64)) as engine:
        engine.tap(tap)  # type: ignore[arg-type]
        scores = record_scores(engine, [[3, 4, 5, 6, 7, 8], [9, 10, 11]], lambda stage, fraction: None)
    assert scores.scores.shape[0] == 7
    assert scores.tokens.tolist() == [3, 4, 5, 6, 7, 9, 10]
    routed = [[choice for part in chosen for choice in part[layer]] for layer in range(scores.scores.shape[1])]
    for layer, of in enumerate(routed):
        best = np.argsort(-scores.scores[:, layer].astype(np.float32), axis=1)[:, : scores.top_k]
        agreed = [set(row) == other for row, other in zip(best.tolist(), of, strict=True)]
        assert np.mean(agreed) > 0.8  # halves have ties


def test_files_of_scores(tmp_path: Path) -> None:
    scores, file = _scores(), tmp_path / "scores.npz"
    write_scores(scores, file)
    again = read_scores(file)
    assert (again.scores == scores.scores).all() and (again.tokens == scores.tokens).all() and again.top_k == 2
    for content in (b"", b"PK\x03\x04rest", file.read_bytes()[:200]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(MoeLocalError, match="holds no scores"):
            read_scores(tmp_path / "bad.npz")
    with pytest.raises(MoeLocalError, match="chooses 9 of 8"):
        Scores(scores.scores, scores.tokens, scores.lens, 9)
    with pytest.raises(MoeLocalError, match="add up"):
        Scores(scores.scores, scores.tokens, scores.lens[:1], 2)
    with pytest.raises(StorageError, match="cannot write"):
        write_scores(scores, tmp_path / "no" / "such" / "scores.npz")
