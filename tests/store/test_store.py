"""Stores: the same model again, resumed to the same bytes, damage named, never half there."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from moe_local.checkpoint.architecture import experts_modules
from moe_local.engine import load
from moe_local.errors import CheckpointError, MoeLocalError, StorageError
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.store import first_use, is_store, open_store, pack, stores, verify
from moe_local.store.body import MANIFEST, digest
from moe_local.store.known import known_models
from moe_local.store.removal import remove
from moe_local.testing import architecture, architectures, tiny_inputs, whole_architectures, write_tiny_checkpoint
from tests.processes import MOE, start

GREEDY = Sampling(max_new_tokens=8, temperature=0)
CANNOT = ("diffusion_gemma", "qwen3_omni_moe-Qwen3OmniMoeTalkerTextExperts")
RUN = [found for found in (*architectures(), *whole_architectures()) if found.id not in CANNOT]


def _packed(source: Path, target: Path, *names: object) -> Path:
    return pack(first_use.plan(source, first_use.choose(*names)), target)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of int8. Do not change it: copy it."""
    return _packed(qwen, tmp_path_factory.mktemp("stores") / "qwen", "int8", 32, "int8")


@pytest.mark.parametrize("found", RUN, ids=lambda found: found.id)
def test_every_architecture_packs(found: object, tmp_path: Path) -> None:
    """In the checkpoint's own numbers the logits are the very same; with everything in int8 they are near."""
    write_tiny_checkpoint(found, tmp_path / "source")
    inputs = tiny_inputs(found)
    logits = {}
    for name, names in {"plain": ("fp32", 32, "keep"), "int8": ("int8", 32, "int8")}.items():
        _packed(tmp_path / "source", tmp_path / name, *names)
    for name in ("source", "plain", "int8"):
        with load(tmp_path / name, Options(device="cpu", context=64, experts=0.5)) as engine, torch.no_grad():
            out = engine.model(**inputs)
            logits[name] = out.logits if "logits" in out else out[0]
    torch.testing.assert_close(logits["plain"], logits["source"], rtol=1e-5, atol=1e-5)
    assert logits["int8"].isfinite().all()


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "mixtral", "deepseek_v3"])
def test_what_is_computed_is_what_is_decoded(name: str, tmp_path: Path) -> None:
    """Experts of an int8 store against transformers' eager experts with the numbers that the store stands for."""
    found = architecture(name)
    write_tiny_checkpoint(found, tmp_path / "source")
    _packed(tmp_path / "source", tmp_path / "store", "int8", 32, "keep")
    reference = found.model_class.from_pretrained(tmp_path / "source", experts_implementation="eager").float().eval()
    for module in experts_modules(reference).values():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3:
                _round_to_int8(parameter.data, transposed=module.is_transposed)
    inputs = tiny_inputs(found)
    with load(tmp_path / "store", Options(device="cpu", context=64)) as engine, torch.no_grad():
        got = engine.model(**inputs).logits
        wanted = reference(**inputs).logits
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05 * wanted.abs().max().item())


def _round_to_int8(weight: torch.Tensor, *, transposed: bool) -> None:
    """In place, [experts, out, in] or [experts, in, out]."""
    view = weight.transpose(1, 2) if transposed else weight
    scales = (view.abs().amax(dim=2, keepdim=True) / 127).to(torch.bfloat16).float()
    view.copy_((view / scales).round().clamp(-127, 127) * scales)


def test_a_store_is_used_like_a_checkpoint(qwen: Path, store: Path) -> None:
    load_plan = plan_load(store)
    assert [str(e) for e in load_plan.catalog.layers[0].kinds[0].encodings] == ["int8"]
    assert load_plan.catalog.layers[0].kinds[0].size % 4096 == 0
    assert all(x.offset % 4096 == 0 for layer in load_plan.catalog.layers for (x,) in layer.records)
    assert load_plan.plan.needs.dense < plan_load(qwen).plan.needs.dense
    with load(store, Options(context=128)) as whole, load(store, Options(context=128, experts=0.3)) as paged:
        assert whole.generate("hello", GREEDY).token_ids == paged.generate("hello", GREEDY).token_ids
        assert paged.stats()["misses"] > 0


def test_the_same_bytes_every_time(qwen: Path, store: Path, tmp_path: Path) -> None:
    again = _packed(qwen, tmp_path / "again", "int8", 32, "int8")
    for file in sorted(store.iterdir()):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert not (tmp_path / "again.partial").exists()


def test_packing_again_finds_it_done(qwen: Path, store: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in store.iterdir()}
    _packed(qwen, store, "int8", 32, "int8")
    assert before == {file: file.stat().st_mtime_ns for file in store.iterdir()}
    with pytest.raises(MoeLocalError, match="another format"):
        _packed(qwen, store, "fp32", 32, "keep")


def test_a_folder_that_is_something_else_is_left_alone(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(MoeLocalError, match="not a store"):
        _packed(qwen, tmp_path, "int8")
    assert (tmp_path / "precious").read_text() == "x"


def _packing(source: Path, target: Path) -> subprocess.Popen[str]:
    command = [*MOE, "pack", source, "-o", target, "--format", "int8", "--dense-format", "int8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MOE_LOCAL_HOME": str(target.parent / "home")}
    return start(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_killed_and_resumed_to_the_same_bytes(qwen: Path, store: Path, tmp_path: Path) -> None:
    """Files are taken away and cut as kills leave them; then real kills; it always ends in the same store."""
    target, rng = tmp_path / "store", random.Random(5)
    for _ in range(4):
        started = _packing(qwen, target)
        time.sleep(rng.uniform(2, 4.5))
        started.send_signal(signal.SIGKILL)
        started.wait()
        assert is_store(target) or not target.exists()
    assert _packing(qwen, target).wait() == 0
    for file in sorted(store.iterdir()):
        assert file.read_bytes() == (target / file.name).read_bytes(), file.name


@pytest.mark.parametrize("keep", range(0, 6))
def test_every_stage_resumes(qwen: Path, store: Path, tmp_path: Path, keep: int, monkeypatch: object) -> None:
    """As if killed after `keep` files, with half of the next one written and half a line in the journal."""
    target = tmp_path / "store"
    partial = tmp_path / "store.partial"
    manifest = open_store(store).manifest
    partial.mkdir()
    checksums = {layer.file: list(layer.checksums) for layer in manifest.layers}
    checksums |= {name: list(checks.values()) for name, checks in manifest.dense.items()}
    identity = {name: manifest.source[name] for name in ("fingerprint", "packing")}
    lines = [json.dumps(identity)]
    for name in list(checksums)[:keep]:
        shutil.copyfile(store / name, partial / name)
        lines.append(json.dumps({"file": name, "checksums": checksums[name]}))
    (partial / "journal.jsonl").write_text("\n".join(lines) + '\n{"file": "exp')
    (partial / "experts-00001.safetensors.partial").write_bytes(b"half")
    _packed(qwen, target, "int8", 32, "int8")
    for file in sorted(store.iterdir()):
        assert file.read_bytes() == (target / file.name).read_bytes(), file.name


def test_two_at_once_make_one(qwen: Path, store: Path, tmp_path: Path) -> None:
    both = [_packing(qwen, tmp_path / "store") for _ in range(2)]
    assert [started.wait() for started in both] == [0, 0]
    assert verify(tmp_path / "store") == []


def test_any_flipped_byte_is_named(store: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    files = sorted(copy.iterdir())
    for file in [*files, *rng.choices(files, k=20)]:
        content = bytearray(file.read_bytes())
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        original = file.read_bytes()
        file.write_bytes(content)
        if file.name == MANIFEST:
            with pytest.raises(CheckpointError, match=r"moe-local\.json"):
                verify(copy)
        else:
            (said,) = verify(copy)[:1]
            assert file.name in said
        file.write_bytes(original)
    assert verify(copy) == []


def test_a_record_is_named_by_layer_and_expert(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    extent = plan_load(copy).catalog.layers[2].records[5][0]
    with extent.file.open("r+b") as stream:
        stream.seek(extent.offset + 100)
        stream.write(b"\xff\x00\xff")
    (said,) = verify(copy)
    assert "layer 2, expert 5" in said


@pytest.mark.parametrize(
    "file", ["config.json", "experts-00001.safetensors", "dense-00000.safetensors", "tokenizer.json"]
)
def test_loading_refuses_files_that_disagree(store: Path, tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load(copy)
    (copy / file).write_bytes((store / file).read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=file):
        load(copy)


def test_a_manifest_that_was_edited_is_refused(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace('"int8"', '"int4"', 1))
    with pytest.raises(CheckpointError, match="digest"):
        load(copy)


def _as_of_another_version(directory: Path) -> None:
    body = json.loads((directory / MANIFEST).read_text())
    del body["digest"]
    body["version"] = 1
    (directory / MANIFEST).write_text(json.dumps({"digest": digest(body), **body}))


def test_a_store_of_another_version_is_packed_again(qwen: Path, store: Path, tmp_path: Path) -> None:
    old = shutil.copytree(store, tmp_path / "a store")
    _as_of_another_version(old)
    with pytest.raises(CheckpointError, match="another version") as caught:
        load(old, Options(device="cpu"))
    assert caught.value.remedy is not None
    command = shlex.split(caught.value.remedy.partition(": ")[2])
    assert command == ["moe-local", "pack", str(qwen), "-o", str(old)]
    _packed(qwen, old, "int8", 32, "int8")
    verify(old)
    assert (old / MANIFEST).read_bytes() == (store / MANIFEST).read_bytes()


def test_what_another_version_began_is_not_gone_on_with(qwen: Path, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "again.partial")
    _as_of_another_version(tmp_path / "again.partial")
    made = _packed(qwen, tmp_path / "again", "int8", 32, "int8")
    assert (made / MANIFEST).read_bytes() == (store / MANIFEST).read_bytes()


def test_half_a_store_is_not_one(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / MANIFEST).unlink()
    with pytest.raises(CheckpointError):
        load(copy)


def test_a_store_cannot_be_packed(store: Path, tmp_path: Path) -> None:
    with pytest.raises(MoeLocalError, match="store already"):
        _packed(store, tmp_path / "again", "int4")


def test_both_spellings_of_a_packing_are_one(qwen: Path, tmp_path: Path) -> None:
    """`auto` on an unquantised model is int4."""
    store = _packed(qwen, tmp_path / "store", "auto", 64, "int8")
    assert _packed(qwen, store, "int4", 64, "int8") == store


def test_a_changed_tokenizer_is_another_source(qwen: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(qwen, tmp_path / "source"))
    _packed(source, tmp_path / "store", "int8", 32, "int8")
    (source / "tokenizer_config.json").write_text("{}")
    with pytest.raises(MoeLocalError, match="something else"):
        _packed(source, tmp_path / "store", "int8", 32, "int8")


def test_what_is_in_the_way_is_left_alone(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial" / "thesis").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("store", "file", "link"):
        with pytest.raises(MoeLocalError, match=r"in the way|not a store"):
            _packed(qwen, tmp_path / name, "int8")
    for target in (tmp_path / "file" / "x", Path("/proc/store")):
        with pytest.raises(StorageError, match="cannot pack"):
            _packed(qwen, target, "int8")
    assert (tmp_path / "store.partial" / "thesis").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "store.partial"]


def test_a_checkpoint_may_have_a_manifest_of_its_own(qwen: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(qwen, tmp_path / "source"))
    (source / "manifest.json").write_text('{"name": "app"}')
    assert not is_store(source)
    plan_load(source)


def test_the_library_knows_its_own(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path))
    files, _ = first_use.ensure_packed(qwen, lambda stage, fraction: None)
    made = files.checkpoint.directory
    (tmp_path / "stores" / "mine").mkdir()
    (tmp_path / "stores" / "mine" / "file").write_text("precious")
    (made / MANIFEST).write_text("{")
    (stored,) = stores()
    assert "damaged" in stored.formats
    (known,) = known_models()
    remove(known)
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["mine"]


@pytest.mark.parametrize("journal", [True, False])
def test_killed_just_before_the_end(journal: bool, qwen: Path, store: Path, tmp_path: Path) -> None:
    """The manifest is written; the journal may still be there, and the folder has its first name."""
    partial = Path(shutil.copytree(store, tmp_path / "store.partial"))
    if journal:
        manifest = open_store(store).manifest
        identity = {name: manifest.source[name] for name in ("fingerprint", "packing")}
        checksums = {layer.file: list(layer.checksums) for layer in manifest.layers}
        checksums |= {name: list(checks.values()) for name, checks in manifest.dense.items()}
        lines = [identity, *({"file": name, "checksums": sums} for name, sums in checksums.items())]
        (partial / "journal.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    target = _packed(qwen, tmp_path / "store", "int8", 32, "int8")
    assert sorted(file.name for file in target.iterdir()) == sorted(file.name for file in store.iterdir())
    for file in sorted(store.iterdir()):
        assert file.read_bytes() == (target / file.name).read_bytes(), file.name


def test_packing_leaves_nothing_beside_the_store(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock, there or among temporary files; a store that is there takes no lock at all."""
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    where = tmp_path / "stores"
    _packed(qwen, where / "one", "int8")
    assert [file.name for file in where.iterdir()] == ["one"]
    (where / "one.lock").symlink_to(tmp_path / "elsewhere")
    _packed(qwen, where / "one", "int8")
    with pytest.raises(StorageError, match="cannot pack into"):
        (where / "two.lock").symlink_to(tmp_path / "elsewhere")
        _packed(qwen, where / "two", "int8")
    assert not (tmp_path / "elsewhere").exists()
    assert not list(temporary.iterdir())
