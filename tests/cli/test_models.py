"""`list`, `rm`, and models by short names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_local.files import locked
from moe_local.store.store_index import folder
from moe_local.testing.hub import commit
from tests.processes import MOE, Terminal, python

from .conftest import Run, expect_error

QUICK = ("-n", "4", "--context", "128")


def download(source: Path, cache: Path, repo: str) -> Path:
    """A model as the hub's client leaves it in its cache; its snapshot."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / commit(source)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "blobs").mkdir()
    (home / "refs" / "main").write_text(snapshot.name)
    for file in source.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.name.encode()).hexdigest()
        shutil.copy2(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of `run`; nobody is asked for newer models."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def listed(run: Run) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in json.loads(run("list", "--json").stdout)}


def test_one_table_of_all(run: Run, hub: Path, qwen: Path, tmp_path: Path) -> None:
    snapshot = download(qwen, hub, "Maker/Qwen-Tiny")
    assert run("generate", "qwen-t", "hello", *QUICK).exit_code == 0
    found = listed(run)
    store = next(name for name in found if name != "Maker/Qwen-Tiny")
    assert store.startswith("Qwen-Tiny-int4-g64")
    assert found["Maker/Qwen-Tiny"] | {"used": ""} == {
        "name": "Maker/Qwen-Tiny", "kind": "download", "format": "fp32", "used": "", "where": str(snapshot),
        "size": sum(file.stat().st_size for file in qwen.iterdir()), "model": "Maker/Qwen-Tiny", "whole": True,
    }  # fmt: skip
    assert (found[store]["kind"], found[store]["model"]) == ("store", "Maker/Qwen-Tiny")
    table = " ".join(run("ls").stdout.split())
    assert "name format size used where" in table and "fp32" in table and "now" in table


def test_downloads_in_part_and_gguf_files(run: Run, hub: Path, qwen: Path, tmp_path: Path) -> None:
    snapshot = download(qwen, hub, "a/b")
    next(snapshot.glob("*-of-*.safetensors")).unlink()
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        (tmp_path / "gguf").mkdir(exist_ok=True)
        (tmp_path / "gguf" / name).write_bytes(b"GGUF" + bytes(96))
    download(tmp_path / "gguf", hub, "a/m-GGUF")
    found = listed(run)
    assert (found["a/b"]["whole"], "in part" in run("list").stdout) == (False, True)
    assert (found["a/m-GGUF:Q8_0"]["format"], found["a/m-GGUF:Q8_0"]["size"]) == ("GGUF Q8_0", 100)
    assert "frees 100 B" in run("rm", "a/m-GGUF:Q4_K_M", "--yes").stderr
    assert "a/m-GGUF" in listed(run)  # it is the only one now
    assert len(list((hub / "models--a--m-GGUF" / "blobs").iterdir())) == 1


def test_short_names(run: Run, hub: Path, qwen: Path) -> None:
    for repo in ("Maker/Qwen-Tiny", "Maker/Qwen-Tiny-Instruct", "other/Mix"):
        download(qwen, hub, repo)
    for name in ("qwen-tiny", "Maker/Qwen-Tiny", "mi", "other/mix"):
        assert run("show", name).exit_code == 0, name
    expect_error(run("show", "qwen"), "may be Maker/Qwen-Tiny or Maker/Qwen-Tiny-Instruct", code=3)
    expect_error(run("chat", "qwen-tinny"), "did you mean", code=3)
    expect_error(run("chat", "mixtral-8x7b-instruct"), "did you mean mistralai/Mixtral-8x7B-Instruct-v0.1?", code=3)


def test_a_store_is_enough_where_its_download_is_gone(run: Run, hub: Path, qwen: Path) -> None:
    download(qwen, hub, "Maker/Qwen-Tiny")
    first = run("generate", "Maker/Qwen-Tiny", "hello", *QUICK, "--seed", 1)
    assert "removed Maker/Qwen-Tiny (" in run("rm", "Maker/Qwen-Tiny", "--yes").stdout
    assert not list(hub.glob("models--*"))
    for name in ("Maker/Qwen-Tiny", "qwen-tiny"):
        again = run("generate", name, "hello", *QUICK, "--seed", 1)
        assert (again.stdout, f"{name} is run from " in again.stderr) == (first.stdout, True)
    expect_error(run("generate", "Maker/Qwen-Tiny", "hello", "--no-pack"), "HF_HUB_OFFLINE", code=7)


def test_a_store_with_other_settings_is_said(run: Run, qwen: Path) -> None:
    run("pack", qwen, "--format", "int8")
    result = run("generate", qwen, "hello", *QUICK)
    assert f"{qwen.name} was packed with other settings: " in result.stderr
    assert list(listed(run)) == [store.name for store in folder().iterdir() if "int8" in store.name]


def test_rm_refuses(run: Run, hub: Path, qwen: Path) -> None:
    download(qwen, hub, "Maker/Qwen-Tiny")
    run("generate", "qwen-tiny", "hello", *QUICK)
    expect_error(run("rm", "nonesuch", "--yes"), "no model 'nonesuch'", code=3)
    expect_error(run("rm", "qwen-tiny-", "nonesuch", "--yes"), "nonesuch")
    expect_error(run("rm", "qwen", "--yes"), "may be", code=3)
    assert "give --yes" in run("rm", "qwen-tiny-i").stderr
    (store,) = folder().iterdir()
    with locked(folder() / f"{store.name}.lock"):
        assert f"{store.name} is being packed" in run("rm", store.name, "--yes").stderr
    outside = folder().parent / "elsewhere"
    store.rename(outside)
    store.symlink_to(outside)
    assert run("rm", store.name, "--yes").exit_code == 0
    assert (outside / "moe-local.json").exists() and not store.is_symlink()
    assert len(listed(run)) == 1


def test_rm_leaves_files_outside_the_caches(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from moe_local.testing import architecture
    from moe_local.testing.gguf import write_tiny_gguf

    file = tmp_path / "mine-Q8_0.gguf"
    write_tiny_gguf(architecture("qwen3_moe"), file, "Q8_0")
    assert run("generate", file, "hello", *QUICK).exit_code == 0
    found = listed(run)
    assert (found[file.name]["kind"], found[file.name]["format"]) == ("gguf", "GGUF Q8_0")
    expect_error(run("rm", file.name, "--yes"), "outside the caches")
    assert file.exists()


def test_rm_of_a_model_in_use(
    run: Run, process: Callable[..., subprocess.Popen[str]], endless: Path, tmp_path: Path
) -> None:
    child = process("generate", endless, "-p", "hello", "--context", "100000")
    assert child.stdout is not None
    child.stdout.read(1)
    (store,) = folder().iterdir()
    expect_error(run("rm", store.name, "--yes"), f"in use by process {child.pid}")
    child.kill()
    child.wait()
    assert run("rm", store.name, "--yes").exit_code == 0


def test_rm_asks_at_a_terminal(run: Run, qwen: Path, tmp_path: Path) -> None:
    run("generate", qwen, "hello", *QUICK)
    (store,) = folder().iterdir()
    for answer, code in (("n", 1), ("y", 0)):
        terminal = Terminal([*MOE, "rm", "qwen3_moe"], env={"MOE_LOCAL_HOME": str(tmp_path / "home")})
        terminal.wait_for(r"frees .*B")
        terminal.wait_for(r"\[y/N\]")
        assert store.exists()
        terminal.type(f"{answer}\n")
        assert terminal.finish() == code
    assert not store.exists()


def test_completion_of_model_names(run: Run, hub: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(qwen, hub, "Maker/Qwen-Tiny")
    for words in ("moe-local chat Qw", "moe-local chat -m Qw", "moe-local rm Qw"):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        monkeypatch.setenv("_MOE_LOCAL_COMPLETE", "complete_bash")
        assert run_completion(run) == ["Qwen-Tiny"], words


def run_completion(run: Run) -> list[str]:
    from typer.testing import CliRunner

    from moe_local.cli.main import app

    return CliRunner().invoke(app, [], prog_name="moe-local").stdout.split()


LIGHT = (("--help",), ("list",), ("rm", "x"), ("pull", "/no/such"), ("inspect", "/no/such"), ("chat", "/no/such"),
         ("generate", "/no/such", "-p", "x", "--think", "off"), ("eval", "/no/such", "-f", "README.md"),
         ("serve", "--help"),
         ("verify", "/no/such"), ("pack", "/no/such"), ("chat", "-ngl", "9"),
         ("ps",), ("stop",), ("chat", "--server", "127.0.0.1:1"), ("bench", "serve", "--help"),
         ("bench", "/no/such"))  # fmt: skip


@pytest.mark.parametrize("command", LIGHT, ids=" ".join)
def test_what_needs_no_torch_imports_none(command: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[0] = 'moe-local'\nfrom moe_local.cli.main import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "found = {'torch', 'transformers', 'numpy'} & sys.modules.keys()\nassert not found, found"
    )
    environment = {**os.environ, "MOE_LOCAL_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    python(code, *command, env=environment)
