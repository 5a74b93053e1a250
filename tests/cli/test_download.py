"""Models that are packed while they are downloaded, from a hub on loopback: what it takes, and what can go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.hub import LocalHub, local_hub
from tests import forked
from tests.processes import MOE, PATIENCE, run, small_disk, start

MODEL = "owner/model"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """owner/model in some ten files, and a smaller one that was made of it."""
    root = tmp_path_factory.mktemp("published")
    write_tiny_checkpoint(architecture("qwen3_moe"), root / MODEL, dtype=torch.bfloat16, max_shard_bytes=60_000)
    (root / f"{MODEL}-GGUF").mkdir()
    return root


@pytest.fixture
def hub(published: Path) -> Iterator[LocalHub]:
    with local_hub(published) as server:
        yield server


class Machine:
    """Somebody's, with caches of its own."""

    def __init__(self, hub: LocalHub, folder: Path) -> None:
        self.hub_cache, self.home = folder / "cache", folder / "home"
        given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment = {**given, **hub.environment(self.hub_cache), "MOE_LOCAL_HOME": str(self.home)}

    def moe(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        return forked.run(arguments, env=self.environment | more)

    def pull(self, *arguments: object) -> Path:
        done = self.moe("pull", *(arguments or (MODEL,)))
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def weights(self) -> list[str]:
        """Large files in the hub's cache, whole or not, by the names of their snapshots' links and their blobs."""
        large = [file for file in self.hub_cache.glob("hub/models--*/blobs/*") if file.stat().st_size > 50_000]
        return sorted(file.name for file in [*large, *self.hub_cache.glob("hub/models--*/snapshots/*/*.safetensors")])


@pytest.fixture
def machine(hub: LocalHub, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


@pytest.fixture(scope="module")
def reference(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store of owner/model, packed from the whole of it."""
    with local_hub(published) as hub:
        machine = Machine(hub, tmp_path_factory.mktemp("reference"))
        machine.pull(MODEL, "--keep-original")
        done = machine.moe("pack", MODEL)
        assert done.returncode == 0, done.stderr
        return contents(Path(done.stdout.strip()))


def contents(store: Path) -> dict[str, bytes]:
    """Its files; of the manifest what does not tell of the folder that it was packed from."""
    found = {file.name: file.read_bytes() for file in store.iterdir()}
    manifest = json.loads(found.pop("moe-local.json"))
    del manifest["source"]["name"], manifest["digest"]
    return {**found, "manifest": json.dumps(manifest).encode()}


def test_the_same_store_as_of_the_whole_model(machine: Machine, reference: dict[str, bytes]) -> None:
    """Fingerprint and error included; and it runs without a network, by the model's name."""
    done = machine.moe("pull", MODEL)
    assert done.returncode == 0, done.stderr
    store = Path(done.stdout.strip())
    assert contents(store) == reference
    assert not machine.weights()
    told = done.stderr.splitlines()
    assert told[0] == f"{MODEL} is not here yet, or not all of it"
    assert [line.split()[0] for line in told[1:]] == ["download", "packed", "disk"]
    assert "each goes again once packed (--keep-original)" in told[1]
    answer = machine.moe("generate", MODEL, "-p", "hi", "-n", "2", "--json", HF_HUB_OFFLINE="1")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["new_tokens"] == 2
    alone = machine.moe("pull", MODEL, HF_HUB_OFFLINE="1")
    assert alone.returncode == 0
    assert "this store of it is here" in alone.stderr
    assert alone.stdout.strip() == str(store)


def test_a_store_is_of_its_revision_and_folder(published: Path, tmp_path: Path) -> None:
    """Without a network each is found by its name, and none is taken for another."""
    root = tmp_path / "published"
    shutil.copytree(published / MODEL, root / MODEL)
    shutil.copytree(published / MODEL, root / f"{MODEL}@v1")
    shutil.copytree(published / MODEL, root / "owner" / "several" / "inner")
    config = json.loads((root / MODEL / "config.json").read_text())
    (root / f"{MODEL}@v1" / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    with local_hub(root) as server:
        machine = Machine(server, tmp_path)
        main = machine.pull(MODEL)
        alone = machine.moe("pull", MODEL, "--revision", "v1", HF_HUB_OFFLINE="1")
        assert alone.returncode == 7, alone.stdout
        for other in (f"{MODEL}@v1", "hf://owner/several/inner"):
            store = machine.pull(other)
            assert store != main
            again = machine.moe("pull", other, HF_HUB_OFFLINE="1")
            assert again.stdout.strip() == str(store), again.stderr
            assert f"is run from {store}" in machine.moe("inspect", other, HF_HUB_OFFLINE="1").stderr
        assert machine.moe("pull", MODEL, HF_HUB_OFFLINE="1").stdout.strip() == str(main)


def test_what_runs_a_model_packs_it_as_it_comes(machine: Machine, reference: dict[str, bytes]) -> None:
    done = machine.moe("generate", MODEL, "-p", "hi", "-n", "2", "--json")
    assert done.returncode == 0, done.stderr
    (store,) = (machine.home / "stores").iterdir()
    assert contents(store) == reference
    assert not machine.weights()


def test_the_original_is_kept_where_it_is_asked_for(machine: Machine, reference: dict[str, bytes]) -> None:
    folder = machine.pull(MODEL, "--keep-original")
    assert len(list(folder.glob("*.safetensors"))) > 5
    assert machine.moe("generate", MODEL, "-p", "hi", "-n", "2").returncode == 0
    (store,) = (machine.home / "stores").iterdir()
    assert contents(store) == reference
    assert len(list(folder.glob("*.safetensors"))) > 5


def test_into_another_format_and_folder(machine: Machine, tmp_path: Path) -> None:
    done = machine.moe("pack", MODEL, "--format", "int8", "-o", tmp_path / "mine", "--json")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["store"] == str(tmp_path / "mine")
    assert 0 < out["error"] < 0.02
    assert not machine.weights()
    assert machine.moe("verify", tmp_path / "mine").returncode == 0


def test_what_is_run_as_it_is_comes_whole(hub: LocalHub, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from moe_local.testing.gguf import write_tiny_gguf

    root = tmp_path / "quants"
    write_tiny_gguf(architecture("qwen3_moe"), root / "owner" / "quants" / "tiny-Q8_0.gguf", "Q8_0")
    with local_hub(root) as server:
        machine = Machine(server, tmp_path)
        done = machine.moe("pull", "owner/quants")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("tiny-Q8_0.gguf")
    assert "packed" not in done.stderr


def test_a_damaged_file_is_fetched_again(hub: LocalHub, machine: Machine, reference: dict[str, bytes]) -> None:
    hub.spoilt = 1
    assert contents(machine.pull()) == reference


def test_files_that_stay_damaged(hub: LocalHub, machine: Machine, reference: dict[str, bytes]) -> None:
    """Nothing of them is packed, and nothing is left of them; the next run goes on."""
    hub.spoilt = 2
    done = machine.moe("pull", MODEL)
    assert done.returncode == 7
    assert "came damaged, twice" in done.stderr
    assert not machine.weights()
    assert contents(machine.pull()) == reference


def test_a_hub_that_dies_on_the_way(hub: LocalHub, machine: Machine, reference: dict[str, bytes]) -> None:
    """The error is the hub's, not the store's; the next run goes on."""
    hub.gone_after = 4
    done = machine.moe("pull", MODEL)
    assert done.returncode == 7, done.stderr
    assert "error: the hub did not give model-" in done.stderr
    assert done.stderr.rstrip().endswith("run the same command again: it goes on")
    hub.gone_after = None
    (partial,) = (machine.home / "stores").iterdir()
    assert (partial / "journal.jsonl").read_text().count("\n") > 1
    before, after = done.stderr.splitlines(), machine.moe("pull", MODEL).stderr.splitlines()
    assert "in 14 files" in before[1]
    assert 0 < int(re.findall(r"in (\d+) files", after[1])[0]) < 14  # what is yet to come, and what that takes
    assert _disk(after[3]) < _disk(before[3])
    assert contents(machine.pull()) == reference


def _disk(line: str) -> float:
    """The KiB of the line that says what a download takes."""
    return float(re.findall(r"disk +([\d.]+) KiB at most", line)[0])


def test_a_hub_that_falls_silent(hub: LocalHub, machine: Machine) -> None:
    """While headers are read, which are many: nobody waits for ever, and Ctrl-C does not either."""
    hub.silent_after = 8
    done = machine.moe("pull", MODEL, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert done.returncode == 7, done.stderr
    assert "timed out" in done.stderr


def test_a_header_that_lies(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published / MODEL, tmp_path / "published" / MODEL)
    shard = sorted((tmp_path / "published" / MODEL).glob("*.safetensors"))[0]
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    with local_hub(tmp_path / "published") as server:
        done = Machine(server, tmp_path).moe("pull", MODEL)
    assert done.returncode == 3
    assert shard.name in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


def test_without_room(hub: LocalHub, machine: Machine, tmp_path: Path, reference: dict[str, bytes]) -> None:
    """It is refused before anything large is fetched, with what it would take; elsewhere it goes."""
    with small_disk(tmp_path / "small", 300 << 10) as disk:
        done = machine.moe("pull", MODEL, MOE_LOCAL_HOME=str(disk))
    assert done.returncode == 6
    assert "of disk and" in done.stderr
    assert not [name for name, asked in hub.served if name.endswith(".safetensors") and not asked]
    assert contents(machine.pull()) == reference


FULL = """
import sys
from moe_local.cli import download
from moe_local.cli.main import main
from moe_local.store import packer
download._SPARE = -(1 << 40)
packer._assert_room = lambda *given: None
sys.argv = ["moe-local", "pull", "owner/model"]
main()
"""


def test_a_disk_that_is_full_on_the_way(machine: Machine, tmp_path: Path, reference: dict[str, bytes]) -> None:
    """What was packed is kept: with more room it goes on there."""
    with small_disk(tmp_path / "small", 300 << 10) as disk:
        full = machine.environment | {"MOE_LOCAL_HOME": str(disk)}
        done = run([sys.executable, "-c", FULL], env=full)
        assert done.returncode == 6, done.stderr
        assert "the disk is full" in done.stderr
        (partial,) = (disk / "stores").iterdir()
        assert (partial / "journal.jsonl").read_text().count("\n") > 2
        (machine.home / "stores").mkdir(parents=True)
        shutil.copytree(partial, machine.home / "stores" / partial.name)
    assert contents(machine.pull()) == reference


KILLED = """
import os, signal, sys, time
from moe_local.cli.download import as_packed
from moe_local.checkpoint.hub import locate
import moe_local.store.arriving, moe_local.store.packer, moe_local.store.first_use
import transformers.models.qwen3_moe.modeling_qwen3_moe
for moment in range(20):
    child = os.fork()
    if not child:
        locate("owner/model", as_packed(yes=True))
        os._exit(0)
    time.sleep(0.1 + moment * 0.11)
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children that were forked")
def test_killed_at_twenty_moments(machine: Machine, reference: dict[str, bytes]) -> None:
    """Each attempt comes a little further, and the last makes the same store; nothing is left of the others."""
    done = run([sys.executable, "-c", KILLED], env=machine.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count("9") > 3
    assert contents(machine.pull()) == reference
    assert not [name for name in machine.weights() if not name.endswith(".incomplete")]
    assert [folder.name for folder in (machine.home / "stores").iterdir()] == [machine.pull().name]


@pytest.mark.parametrize(
    "command",
    [
        ["bench", MODEL, "--policy", "lruu"],
        ["bench", MODEL, "--interleave"],
        ["bench", MODEL, "--prompts", "nowhere.jsonl"],
        ["eval", MODEL, "--text", "nowhere.txt"],
        ["eval", MODEL, "--text", "pyproject.toml", "--window", "1"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_said_before_a_download(hub: LocalHub, machine: Machine, command: list[str]) -> None:
    done = machine.moe(*command)
    assert done.returncode == 1, done.stderr
    assert not [name for name, asked in hub.served if name.endswith(".safetensors") and not asked]


def test_exact_numbers_are_those_of_the_original(machine: Machine) -> None:
    """What computes in float32 packs nothing, as it comes or later."""
    few = ["--dtype", "float32", "--limit", "1", "--new-tokens", "2", "--repeat", "1"]
    done = machine.moe("bench", MODEL, "--json", *few)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["format"] == "bf16"
    assert len(machine.weights()) > 5
    assert not (machine.home / "stores").exists()


@pytest.mark.parametrize(
    "command",
    [["chat", "--no-pack"], ["eval", "--text", "pyproject.toml"], ["eval", "--text", "pyproject.toml", "--no-pack"]],
    ids=" ".join,
)
def test_an_encoder_decoder_is_refused_before_its_download(tmp_path: Path, command: list[str]) -> None:
    folder = tmp_path / "published" / MODEL
    write_tiny_checkpoint(architecture("switch_transformers"), folder, dtype=torch.bfloat16)
    with local_hub(tmp_path / "published") as server:
        machine = Machine(server, tmp_path)
        done = machine.moe(command[0], MODEL, *command[1:])
        assert done.returncode == 4, done.stderr
        assert f"{MODEL} is an encoder-decoder" in done.stderr
        assert not [name for name, asked in server.served if name.endswith(".safetensors") and not asked]


@pytest.mark.parametrize("said", ["n\n", "\x04"], ids=["no", "Ctrl-D"])
def test_somebody_is_asked(hub: LocalHub, machine: Machine, said: str) -> None:
    pexpect = pytest.importorskip("pexpect")
    command = [str(word) for word in [*MOE, "pull", MODEL]]
    child = pexpect.spawn(command[0], command[1:], env=machine.environment, encoding="utf-8", timeout=60)
    child.expect_exact(f"{MODEL} is not here yet")
    child.expect_exact(f"ready-made on the hub: {MODEL}-GGUF")
    child.expect_exact("Go on? [Y/n] ")
    child.send(said)
    child.expect_exact("error: nothing was downloaded")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 1
    assert not [name for name, asked in hub.served if name.endswith(".safetensors") and not asked]


def test_one_that_packs_deletes_nothing_that_another_keeps(machine: Machine) -> None:
    """They take turns. Whoever is first, what is kept is there in the end."""
    commands = [("pull", MODEL), ("pull", MODEL, "--keep-original"), ("pack", MODEL, "--format", "int8")]
    piped = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = [start([*MOE, *command], env=machine.environment, **piped) for command in commands]
    for child in started:
        _, said = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0, said
    assert len([name for name in machine.weights() if name.endswith(".safetensors")]) > 5
    stores = [store.name for store in (machine.home / "stores").iterdir()]
    assert stores and not any(name.endswith((".partial", ".lock")) for name in stores)
