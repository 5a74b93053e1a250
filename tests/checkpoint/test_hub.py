"""Models by name, and downloads from a hub: a small one on loopback that speaks the real one's protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from moe_local.checkpoint.hub import locate
from moe_local.errors import CheckpointError, DownloadError
from moe_local.testing import architecture
from moe_local.testing.gguf import write_tiny_gguf
from moe_local.testing.hub import LocalHub, local_hub
from tests.forked import run
from tests.processes import python

NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}
OFFLINE = {"HF_HUB_OFFLINE": "1", **NOWHERE}
NOT_NEEDED = ("pytorch_model.bin", "consolidated.safetensors", "picture.png", "README.md", "original/params.json")


@pytest.fixture
def hub(mixtral: Path, tmp_path: Path) -> Iterator[LocalHub]:
    """Has owner/model, and files in it that nobody needs."""
    published = Path(shutil.copytree(mixtral, tmp_path / "published" / "owner" / "model"))
    (published / "original").mkdir()
    for name in NOT_NEEDED:
        (published / name).write_bytes(b"not needed")
    with local_hub(tmp_path / "published") as server:
        yield server


def _moe(hub: LocalHub, cache: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {**hub.environment(cache), "HF_TOKEN": "hf_secret", "MOE_LOCAL_HOME": str(cache / "home"), **more}
    return run(arguments, env=environment)


def _pull(hub: LocalHub, cache: Path, *model: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The whole of a model: how one is packed while it comes is tested in tests/cli/test_download.py."""
    return _moe(hub, cache, "pull", "--keep-original", *(model or ("owner/model",)), **more)


def _inspect(hub: LocalHub, cache: Path, model: str, **more: str) -> subprocess.CompletedProcess[str]:
    return _moe(hub, cache, "inspect", model, "--context", "64", "--json", **more)


def _names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_pull_takes_what_is_needed_and_the_token(hub: LocalHub, tmp_path: Path, mixtral: Path) -> None:
    done = _pull(hub, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert _names(folder) == _names(mixtral)
    assert all((folder / file.name).read_bytes() == file.read_bytes() for file in mixtral.iterdir())
    assert f"\nowner/model: {len(_names(mixtral))} files, " in done.stderr
    assert "Bearer hf_secret" in hub.tokens
    served = len(hub.served)
    assert _pull(hub, tmp_path / "cache").returncode == 0
    assert len(hub.served) == served


def test_a_cut_download_resumes(hub: LocalHub, tmp_path: Path) -> None:
    """The second attempt asks for the rest only. (The client keeps what came in pieces of 10 MB.)"""
    large = hub.root / "owner" / "model" / "model.safetensors"
    large.write_bytes(os.urandom(24_000_000))
    hub.cut = 15_000_000
    _pull(hub, tmp_path / "cache")
    hub.cut = None
    done = _pull(hub, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == large.read_bytes()
    assert any(asked for name, asked in hub.served if name == large.name)


def test_a_model_that_is_not_there(hub: LocalHub, tmp_path: Path) -> None:
    done = _pull(hub, tmp_path / "cache", "owner/other")
    assert done.returncode == 7
    assert done.stderr.startswith("error: the hub has no model owner/other")
    assert len(done.stderr.splitlines()) == 1


def test_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="owner/model is not here"):
        locate("owner/model")


@pytest.mark.parametrize("how", [OFFLINE, NOWHERE], ids=["HF_HUB_OFFLINE", "no connection"])
def test_what_was_pulled_runs_without_the_hub(hub: LocalHub, tmp_path: Path, how: dict[str, str]) -> None:
    """By its plain name, and by that of a revision, each with the files of its own."""
    other = Path(shutil.copytree(hub.root / "owner" / "model", hub.root / "owner" / "model@v1"))
    (other / "generation_config.json").write_text('{"max_new_tokens": 3}')
    cache = tmp_path / "cache"
    assert _pull(hub, cache, "owner/model@v1").returncode == 0
    alone = _inspect(hub, cache, "owner/model", **how)
    assert alone.returncode == 7
    assert "here there is owner/model@v1" in alone.stderr
    assert _pull(hub, cache, "owner/model").returncode == 0
    for name in ("owner/model", "owner/model@v1", "https://hf.co/owner/model/tree/v1"):
        done = _inspect(hub, cache, name, **how)
        assert done.returncode == 0, done.stderr
        folder = Path(json.loads(done.stdout)["model"])
        own = json.loads((folder / "generation_config.json").read_text()).get("max_new_tokens") == 3
        assert own == ("v1" in name)
    again = _pull(hub, cache, **how)
    assert again.returncode == 0
    assert "the copy that was here" in again.stderr


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "tokenizer.json"])
def test_what_is_here_in_part_says_so(hub: LocalHub, tmp_path: Path, lost: str) -> None:
    cache = tmp_path / "cache"
    folder = Path(_pull(hub, cache).stdout.strip())
    (folder / lost).unlink()
    done = _inspect(hub, cache, "owner/model", **OFFLINE)
    assert done.returncode == 7, done.stderr
    assert "owner/model is here in part" in done.stderr


def test_a_lost_shard_is_named(hub: LocalHub, qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen, hub.root / "owner" / "shards")
    cache = tmp_path / "cache"
    folder = Path(_pull(hub, cache, "owner/shards").stdout.strip())
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    done = _inspect(hub, cache, "owner/shards", **OFFLINE)
    assert done.returncode == 7
    assert f"owner/shards is here in part, without {shard.name}" in done.stderr


def test_what_others_downloaded_is_used(hub: LocalHub, tmp_path: Path, mixtral: Path) -> None:
    """File by file, as transformers does: the cache then has no list of what there is."""
    code = (
        "import sys; from huggingface_hub import hf_hub_download\n"
        "for name in sys.argv[1:]: hf_hub_download('owner/model', name)"
    )
    cache = tmp_path / "cache"
    python(code, *_names(mixtral), env={**os.environ, **hub.environment(cache)})
    assert _inspect(hub, cache, "owner/model", **OFFLINE).returncode == 0


def test_what_the_index_names_is_downloaded(hub: LocalHub, qwen: Path, tmp_path: Path) -> None:
    """Whatever it is called, and nothing that it does not name."""
    published = Path(shutil.copytree(qwen, hub.root / "owner" / "odd"))
    index = json.loads((published / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"] |= {
        name: "experts-fp8.safetensors" for name, shard in index["weight_map"].items() if shard == shards[0]
    }
    (published / shards[0]).rename(published / "experts-fp8.safetensors")
    save_file({"x": load_file(published / shards[1]).popitem()[1]}, published / "consolidated.safetensors")
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    done = _pull(hub, tmp_path / "cache", "owner/odd")
    assert done.returncode == 0, done.stderr
    found = {name for name in _names(Path(done.stdout.strip())) if name.endswith(".safetensors")}
    assert found == {*shards[1:], "experts-fp8.safetensors"}
    assert _inspect(hub, tmp_path / "cache", "owner/odd").returncode == 0


def test_an_index_that_names_what_there_is_not(hub: LocalHub, qwen: Path, tmp_path: Path) -> None:
    published = Path(shutil.copytree(qwen, hub.root / "owner" / "lacking"))
    shard = sorted(published.glob("*.safetensors"))[0]
    shard.unlink()
    done = _pull(hub, tmp_path / "cache", "owner/lacking")
    assert done.returncode == 3
    assert f"owner/lacking lacks {shard.name}" in done.stderr
    assert not any(name.endswith(".safetensors") for name, _ in hub.served)


@pytest.fixture
def quants(hub: LocalHub) -> LocalHub:
    """Has owner/quants too: two GGUF models, one in a folder, and a projector."""
    pytest.importorskip("gguf")
    where = hub.root / "owner" / "quants"
    write_tiny_gguf(architecture("qwen3_moe"), where / "tiny-Q8_0.gguf", "Q8_0")
    write_tiny_gguf(architecture("qwen3_moe"), where / "F32" / "tiny-F32.gguf", "F32", parts=3)
    (where / "mmproj-F16.gguf").write_bytes(b"not needed")
    (where / "config.json").write_text("{}")
    return hub


def test_gguf_models_of_a_repository(quants: LocalHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    several = _inspect(quants, cache, "owner/quants")
    assert several.returncode == 3
    assert "owner/quants holds 2 GGUF models: F32, Q8_0; name one, like owner/quants:" in several.stderr
    nonsense = _pull(quants, cache, "owner/quants:latest")
    assert "no GGUF model 'latest': F32, Q8_0" in nonsense.stderr
    assert not quants.served
    done = _pull(quants, cache, "owner/quants:f32")
    assert done.returncode == 0, done.stderr
    assert len(quants.served) == 3
    for name in ("owner/quants:F32", "owner/quants", done.stdout.strip(), "hf.co/owner/quants:f32"):
        assert _inspect(quants, cache, name, **OFFLINE).returncode == 0
    other = _inspect(quants, cache, "owner/quants:Q8_0", **OFFLINE)
    assert other.returncode == 7
    assert "here in part" in other.stderr
    file = "https://huggingface.co/owner/quants/blob/main/tiny-Q8_0.gguf"
    assert json.loads(_inspect(quants, cache, file).stdout)["expert_format"] == "gguf-Q8_0"
    both = _inspect(quants, cache, "owner/quants", **OFFLINE)
    assert both.returncode == 3
    assert "holds 2 GGUF models" in both.stderr


def test_every_command_understands_a_name(quants: LocalHub, tmp_path: Path) -> None:
    """A quantisation by its name, from the first packing to a batch."""
    cache, name = tmp_path / "cache", "owner/quants:Q8_0"
    (question := tmp_path / "in.txt").write_text("the hen\n")
    short = ("--context", "64", "-n", "2")
    for command in (
        ("generate", name, "-p", "the hen", *short),
        ("generate", f"hf.co/{name}", "-p", "the hen", "--no-pack", *short),
        ("batch", str(question), name, "--raw", *short),
        ("pack", name, "-o", str(tmp_path / "store")),
        ("eval", name, "--text", str(question), "--context", "64"),
        ("bench", name, "--new-tokens", "2", "--repeat", "1", "--limit", "1", "--context", "64", "--json"),
    ):
        done = _moe(quants, cache, *command)
        assert done.returncode == 0, (command, done.stderr)


def test_plan_reads_the_cache_by_any_name(hub: LocalHub, qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen, hub.root / "owner" / "qwen")
    cache = tmp_path / "cache"
    assert _pull(hub, cache, "owner/qwen").returncode == 0
    for name in ("owner/qwen", "owner/qwen@main", "https://huggingface.co/owner/qwen/tree/main"):
        assert _moe(hub, cache, "plan", name, "--profile", "cpu-only", **OFFLINE).returncode == 0, name


def test_paths_come_first(qwen: Path, tmp_path: Path) -> None:
    assert locate(str(qwen)) == qwen
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(str(tmp_path / "absent"))
    for typo in ("./typo", "../typo", "~/typo"):
        with pytest.raises(CheckpointError, match="does not exist"):
            locate(typo)
    with pytest.raises(CheckpointError, match="is a file"):
        locate(str(qwen / "config.json"))


def test_paths_as_people_paste_them(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (f" {qwen} ", f"'{qwen}'", f'"{qwen}"', qwen.as_uri(), f"{qwen}/"):
        assert locate(text) == qwen
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "some").mkdir(parents=True)
    for name in ("a-Q4_0.gguf", "b-Q8_0.gguf"):
        (tmp_path / "models" / "some" / name).write_bytes(b"")
    assert locate("models/some:q8_0") == Path("models/some/b-Q8_0.gguf")
    with pytest.raises(CheckpointError, match="no GGUF model 'Q5_0': Q4_0, Q8_0"):
        locate("./models/some:Q5_0")
    for nothing in ("", "  ", '""'):
        with pytest.raises(CheckpointError, match="is empty"):
            locate(nothing)
    assert locate(".") == Path()
    for typo in ("models/typo.gguf", "models/some/typo.gguf", "~nobody-has-this-name/x", "a\0b", "x" * 5000):
        with pytest.raises(CheckpointError, match="does not exist"):
            locate(typo)
