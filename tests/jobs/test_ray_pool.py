"""A job on a Ray cluster of this machine, two workers, one of them killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from moe_local.errors import MoeLocalError
from moe_local.jobs.ray_pool import gpus_of_each
from tests.processes import MOE, run, start, wait_until

pytest.importorskip("ray", reason="needs moe-local[ray]")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    command[0] = str(Path(sys.executable).with_name("ray"))
    command += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
    started = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"127.0.0.1:{port}"
    for process in (*psutil.Process(started.pid).children(recursive=True), started):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    started.wait(30)


def test_two_workers_one_of_them_killed(cluster: str, qwen: Path, tmp_path: Path) -> None:
    lines = [{"id": n, "prompt": "why " * (n % 9 + 1), "max_new_tokens": 20 + n % 7} for n in range(200)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [*MOE, "batch", str(tmp_path / "in.jsonl"), str(qwen), "--no-pack"]
    command += ["--context", "128", "--temperature", "0", "--batch-size", "2", "--json"]
    out, alone = tmp_path / "out.jsonl", tmp_path / "alone.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MOE_LOCAL_HOME": str(tmp_path / "home")}
    on_ray = ["-o", str(out), "--ray", cluster, "--workers", "2", "--ram", "1GiB"]
    started = start([*command, *on_ray], stdout=subprocess.PIPE, text=True, env=environment)
    wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") > 20, started)
    workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::Worker" in " ".join(p.info["cmdline"] or [])]
    ours = [worker for worker in workers if _belongs(worker, cluster)]
    assert len(ours) == 2
    ours[0].kill()
    stdout, _ = started.communicate(timeout=120)
    assert started.returncode == 0
    assert json.loads(stdout)["workers_lost"] == 1
    assert run([*command, "-o", str(alone)], env=environment).returncode == 0
    assert _texts(out) == _texts(alone)


def _belongs(worker: psutil.Process, cluster: str) -> bool:
    """Whether it is of this cluster: others may run on the machine."""
    port = cluster.partition(":")[2]
    return any(port in " ".join(parent.cmdline()) for parent in worker.parents())


def _texts(file: Path) -> dict[int, str]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    found = {record["id"]: record["text"] for record in records}
    assert len(found) == len(records) == 200
    return found


def test_no_cluster_is_said(tmp_path: Path, qwen: Path) -> None:
    (tmp_path / "in.txt").write_text("hello\n")
    done = run([*MOE, "batch", tmp_path / "in.txt", qwen, "--ray", "127.0.0.1:1"])
    assert done.returncode == 1
    assert "there is no Ray cluster at 127.0.0.1:1" in done.stderr
    assert "ray start --head" in done.stderr


@pytest.mark.parametrize(
    ("workers", "gpus", "device", "each"), [(2, 2, "auto", 1), (1, 4, "cuda", 1), (3, 0, "auto", 0), (3, 1, "cpu", 0)]
)
def test_each_worker_has_a_gpu(workers: int, gpus: int, device: str, each: int) -> None:
    assert gpus_of_each(workers, gpus, device) == each


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(MoeLocalError, match="the cluster has 2") as refused:
        gpus_of_each(3, 2, "auto")
    assert "--workers 2" in str(refused.value)
