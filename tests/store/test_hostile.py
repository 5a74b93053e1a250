"""A store is trusted no more than a checkpoint: a manifest whose digest fits may say anything."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_local.engine import load
from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.store import MANIFEST, first_use, pack, stores, verify
from moe_local.store.body import digest


@pytest.fixture(scope="module")
def packed(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(
        first_use.plan(qwen, first_use.choose("int8", dense="int8")), tmp_path_factory.mktemp("stores") / "store"
    )


def edit(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest, and computes its digest again."""
    body = json.loads((store / MANIFEST).read_text())
    body.pop("digest")
    change(body)
    (store / MANIFEST).write_text(json.dumps({"digest": digest(body), **body}))


def _layout(body: dict[str, Any]) -> Any:
    return body["layers"][0]["layout"]


def _first(body: dict[str, Any]) -> Any:
    return next(iter(_layout(body)["projections"].values()))["matrices"][0]


def _array(body: dict[str, Any]) -> Any:
    return _first(body)["arrays"]["blocks"]


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    **{
        f"no {key}": lambda b, key=key: b.pop(key)
        for key in ("source", "layers", "layer_of", "dense", "headers", "files")
    },
    "no source name": lambda b: b["source"].pop("name"),
    "source of a list": lambda b: b.__setitem__("source", [1]),
    "formats of numbers": lambda b: b["formats"].__setitem__("experts", 5),
    "a header elsewhere": lambda b: b["headers"].__setitem__("../../x.safetensors", 0),
    "a file elsewhere": lambda b: b["files"].__setitem__("/etc/passwd", "0"),
    "a file of dots": lambda b: b["files"].__setitem__("..", "0"),
    "a layer's file elsewhere": lambda b: b["layers"][0].__setitem__("file", "../x"),
    "a layer's file of no header": lambda b: b["layers"][0].__setitem__("file", "x.safetensors"),
    "no checksums": lambda b: b["layers"][0].__setitem__("checksums", []),
    "checksums of text": lambda b: b["layers"][0].__setitem__("checksums", ["a"] * 8),
    "fewer experts": lambda b: b["layers"][0]["checksums"].pop(),
    "layer_of nothing": lambda b: b["layer_of"].__setitem__(next(iter(b["layer_of"])), 99),
    "a size below": lambda b: _layout(b).__setitem__("size", -1),
    "a size too small": lambda b: _layout(b).__setitem__("size", 64),
    "a size of text": lambda b: _layout(b).__setitem__("size", "4096"),
    "no projections": lambda b: _layout(b).__setitem__("projections", {}),
    "another projection": lambda b: _layout(b)["projections"].__setitem__(
        "x", _layout(b)["projections"].pop("down_proj")
    ),
    "no matrices": lambda b: next(iter(_layout(b)["projections"].values())).__setitem__("matrices", []),
    "a bias": lambda b: next(iter(_layout(b)["projections"].values())).__setitem__("bias", _array(b)),
    "another shape": lambda b: _first(b).__setitem__("shape", [8, 8]),
    "a huge shape": lambda b: _first(b).__setitem__("shape", [1 << 40, 1 << 40]),
    "a shape of one": lambda b: _first(b).__setitem__("shape", [8]),
    "an unknown encoding": lambda b: _first(b)["encoding"].__setitem__("format", "nonesuch"),
    "an encoding that is read only": lambda b: _first(b).__setitem__("encoding", {"format": "gptq", "bits": 4}),
    "an encoding of odd options": lambda b: _first(b).__setitem__(
        "encoding", {"format": "int4", "group": 0, "layout": 0}
    ),
    "an encoding of a list": lambda b: _first(b).__setitem__("encoding", []),
    "an unknown type": lambda b: _array(b).__setitem__("dtype", "float13"),
    "another type": lambda b: _array(b).__setitem__("dtype", "int32"),
    "a position outside": lambda b: _array(b).__setitem__("position", 1 << 30),
    "an odd position": lambda b: _array(b).__setitem__("position", 1),
    "strides": lambda b: _array(b).__setitem__("strides", [1 << 20, 1]),
    "strides below": lambda b: _array(b).__setitem__("strides", [-1, 1]),
    "an array too many": lambda b: _first(b)["arrays"].__setitem__("x", _array(b)),
    "a matrix of a kind": lambda b: b["matrices"][0].__setitem__("kind", "conv"),
    "a matrix nowhere": lambda b: b["matrices"][0].__setitem__("path", "nonesuch"),
    "a matrix of a norm": lambda b: b["matrices"][0].__setitem__("path", "model.norm"),
    "a matrix of another shape": lambda b: b["matrices"][0].__setitem__("shape", [64, 4096]),
    "a matrix of another encoding": lambda b: b["matrices"][0].__setitem__("encoding", {"format": "fp32"}),
    "layouts without numbers": lambda b: b["layers"][0].__setitem__("layouts", [b["layers"][0].pop("layout")]),
    "numbers of no layout": lambda b: b["layers"][0].update(
        layouts=[b["layers"][0].pop("layout")], layout_of=[7] * 8
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_a_manifest_says_is_checked(case: str, packed: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(packed, tmp_path / "store"))
    edit(store, EDITS[case])
    with pytest.raises(CheckpointError, match="store") as caught:
        plan_load(store, Options(device="cpu", context=64))
    assert caught.value.remedy
    with contextlib.suppress(MoeLocalError):
        verify(store)


def test_an_edit_of_nothing_is_no_damage(packed: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(packed, tmp_path / "store"))
    edit(store, lambda body: None)
    assert verify(store) == []
    load(store, Options(device="cpu", context=64)).close()


@pytest.mark.parametrize("case", ["no source name", "source of a list", "no layers", "formats of numbers"])
def test_one_bad_store_does_not_end_the_list(
    case: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path))
    for name in ("a", "b", "c"):
        shutil.copytree(packed, tmp_path / "stores" / name)
    edit(tmp_path / "stores" / "b", EDITS[case])
    (tmp_path / "stores" / "c" / MANIFEST).write_bytes(b"\xff{")
    first, second, third = stores()
    assert first.formats == "int8, dense int8"
    for damaged in (second, third):
        assert damaged.formats.startswith("damaged: remove it (")
        assert MANIFEST in damaged.formats
