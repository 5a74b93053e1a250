"""Packing on first use: which files a model is run from, and what is looked at to find them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from moe_local.checkpoint.architecture import load_config
from moe_local.checkpoint.files import Checkpoint
from moe_local.errors import CheckpointError
from moe_local.planning.plan_load import plan_load
from moe_local.store import MANIFEST, first_use, pack
from moe_local.store import open as open_module
from moe_local.store.finding import cached_store, find_store
from moe_local.store.first_use import Taken
from moe_local.store.manifest import Manifest
from moe_local.store.store_index import folder
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.quantised import rewrite_checkpoint
from tests.checkpoint.schemes.test_gptq import Writer
from tests.checkpoint.schemes.test_mxfp4 import CONFIG as MXFP4
from tests.checkpoint.schemes.test_mxfp4 import _quantise as mxfp4


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path / "home"))


@pytest.fixture
def model(qwen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qwen, tmp_path / "model"))


def ensure(model: Path, format: str = "auto") -> tuple[Path, bool]:
    files, taken = first_use.ensure_packed(model, lambda stage, fraction: None, format)
    return files.checkpoint.directory, taken is Taken.PACKED


def pack_by_hand(model: Path, format: str = "auto", group: int = 64) -> Path:
    job = first_use.plan(model, first_use.choose(format, group))
    return pack(job, cached_store(job))


def refuse(*given: object) -> NoReturn:
    raise AssertionError("the original was understood again")


def test_a_store_is_found_by_the_files_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a checkpoint that is elsewhere now; a folder's name is no part of it."""
    store, made = ensure(model)
    assert made
    monkeypatch.setattr("moe_local.store.open.build_catalog", refuse)
    assert ensure(model) == (store, False)
    model.rename(model.with_name("moved"))
    assert ensure(model.with_name("moved")) == (store, False)
    assert ensure(store) == (store, False)


def test_other_files_or_another_format_are_another_store(model: Path) -> None:
    store, _ = ensure(model)
    other, made = ensure(model, "int8")
    assert made
    assert other != store
    assert (ensure(model), ensure(model, "int8")) == ((store, False), (other, False))
    os.utime(model / "config.json", ns=(1, 1))
    assert ensure(model)[1] is False  # what config.json says is what counts
    os.utime(model / "tokenizer.json", ns=(1, 1))
    newer, made = ensure(model)
    assert made
    assert newer != store


@pytest.mark.parametrize(("names", "answers"), [(("int4",), True), (("int4", 32), False), (("int8",), False)])
def test_a_store_packed_by_hand_answers_where_the_same_would_come(
    model: Path, names: tuple[Any, ...], answers: bool
) -> None:
    store = pack_by_hand(model, *names)
    found = find_store(Checkpoint.open(model), first_use.choose())
    assert (found is not None and found.directory == store) == answers


def test_a_store_packed_with_other_settings_is_taken(model: Path) -> None:
    """The newest, unless the usual one is there; a format that is asked for is packed."""
    pack_by_hand(model, "int8")
    newer = pack_by_hand(model, "int4", 32)
    os.utime(newer / MANIFEST, (1e10, 1e10))
    files, taken = first_use.ensure_packed(model, lambda stage, fraction: None)
    assert (files.checkpoint.directory, taken) == (newer, Taken.OTHER_STORE)
    usual, made = ensure(model, "int4")
    assert made
    assert ensure(model) == (usual, False)


def foreign_file(store: Path) -> None:
    store.with_name(f"a-{store.name[-8:]}").write_text("precious")


def foreign_folder(store: Path) -> None:
    store.with_name(f"a-{store.name[-8:]}").mkdir()


def damaged(store: Path) -> None:
    beside = store.with_name(f"a-{store.name[-8:]}")
    beside.mkdir()
    (beside / MANIFEST).write_text("{")


def of_something_else(store: Path) -> None:
    beside = Path(shutil.copytree(store, store.with_name(f"a-{store.name[-8:]}")))
    rewrite(beside, fingerprint="0" * 64)


def without_an_error(store: Path) -> None:
    beside = Path(shutil.copytree(store, store.with_name(f"a-{store.name[-8:]}")))
    rewrite(beside, error="little")


def a_loop(store: Path) -> None:
    beside = store.with_name(f"a-{store.name[-8:]}")
    beside.symlink_to(beside)


def rewrite(store: Path, **source: str | None) -> None:
    """Changes what a manifest says of its source; what is None goes."""
    manifest = Manifest.read(store)
    said = {**manifest.source, **source}
    changed = {name: value for name, value in said.items() if value is not None}
    replace(manifest, source=changed).write(store / MANIFEST)


@pytest.mark.parametrize("put", [foreign_file, foreign_folder, damaged, of_something_else, without_an_error, a_loop])
def test_what_else_lies_in_the_cache_folder_is_passed_by(model: Path, put: Callable[[Path], None]) -> None:
    store, _ = ensure(model)
    put(store)
    assert ensure(model) == (store, False)


def test_a_damaged_store_names_itself(model: Path) -> None:
    store, _ = ensure(model)
    (store / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match=r"damaged|JSON") as caught:
        ensure(model)
    assert str(store) in str(caught.value)


def test_stores_that_do_not_say_what_was_asked_for_are_found_by_name(model: Path) -> None:
    store, _ = ensure(model)
    rewrite(store, asked=None, error=None)
    assert ensure(model) == (store, False)


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_a_quantised_checkpoint_is_packed_if_nothing_is_lost(
    exact: bool, by_hand: bool, qwen: Path, tmp_path: Path
) -> None:
    """Whether or not there is a store that somebody wanted all the same."""
    writer = Writer(group_size=32, desc_act=not exact)
    source = rewrite_checkpoint(qwen, tmp_path / "gptq", lambda n, t: writer.quantise(n, t) or {n: t}, writer.config)
    store = pack_by_hand(source) if by_hand else None
    for _ in range(2):
        directory, made = ensure(source)
        assert (directory == source) == (not exact)
        assert made == (exact and store is None)
        store = store or directory
    assert folder().is_dir() == (exact or by_hand)


def test_what_packing_would_not_make_faster_is_understood_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write_tiny_checkpoint(architecture("gpt_oss"), tmp_path / "plain")
    source = rewrite_checkpoint(plain, tmp_path / "mxfp4", lambda n, t: mxfp4(n, t) or {n: t}, MXFP4)
    understood: list[object] = []
    monkeypatch.setattr(open_module, "load_config", lambda of: understood.append(of) or load_config(of))
    files, taken = first_use.ensure_packed(source, lambda stage, fraction: None)
    load_plan = plan_load(files)
    assert (load_plan.checkpoint.directory, taken, len(understood)) == (source, Taken.AS_IT_IS, 1)
    assert not folder().exists()
