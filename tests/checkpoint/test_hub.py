"""Models by name, and downloads from a hub: a small one on loopback that speaks the real one's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from moe_local.checkpoint.hub import locate, needed_files
from moe_local.errors import CheckpointError, DownloadError, UnsupportedError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves a directory as owner/model. `cut` is how many bytes of the next large file are sent."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.cut: int | None = None
        self.served: list[tuple[str, str | None]] = []
        self.tokens: set[str | None] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if re.match(r"/api/models/owner/model(/revision/\w+)?$", path):
            files = [{"rfilename": file.name} for file in sorted(self.server.directory.iterdir())]
            return self._send(json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": files}).encode(), body)
        if match := re.match(rf"/api/models/owner/model/tree/{COMMIT}$", path):
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
                for file in sorted(self.server.directory.iterdir())
            ]
            return self._send(json.dumps(files).encode(), body)
        if match := re.match(rf"/owner/model/resolve/{COMMIT}/(.+)$", path):
            return self._send_file(self.server.directory / match[1], body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _send_file(self, file: Path, body: bool) -> None:
        content, asked = file.read_bytes(), self.headers.get("Range")
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.server.served.append((file.name, asked))
            stop, cut = len(content), self.server.cut
            if cut is not None and file.suffix == ".safetensors":
                stop = min(stop, start + cut)
            self.wfile.write(content[start:stop])
            if stop < len(content):
                self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(mixtral: Path, tmp_path: Path) -> Iterator[Hub]:
    published = tmp_path / "published"
    published.mkdir()
    for file in mixtral.iterdir():
        (published / file.name).write_bytes(file.read_bytes())
    for name in ("pytorch_model.bin", "consolidated.safetensors", "picture.png"):
        (published / name).write_bytes(b"not needed")
    server = Hub(published)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def _pull(hub: Hub, cache: Path, repo: str = "owner/model") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_secret",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "moe_local.cli.main", "pull", repo]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_pull_takes_what_is_needed_and_the_token(hub: Hub, tmp_path: Path, mixtral: Path) -> None:
    done = _pull(hub, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert {file.name for file in folder.iterdir()} == {file.name for file in mixtral.iterdir()}
    assert all((folder / file.name).read_bytes() == file.read_bytes() for file in mixtral.iterdir())
    assert "Bearer hf_secret" in hub.tokens
    served = len(hub.served)
    assert _pull(hub, tmp_path / "cache").returncode == 0
    assert len(hub.served) == served


def test_a_cut_download_resumes(hub: Hub, tmp_path: Path) -> None:
    """The second attempt asks for the rest only. (The client keeps what came in pieces of 10 MB.)"""
    large = hub.directory / "model.safetensors"
    large.write_bytes(os.urandom(24_000_000))
    hub.cut = 15_000_000
    _pull(hub, tmp_path / "cache")
    hub.cut = None
    done = _pull(hub, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == large.read_bytes()
    assert any(asked for name, asked in hub.served if name == large.name)


def test_a_model_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    done = _pull(hub, tmp_path / "cache", "owner/other")
    assert done.returncode == 7
    assert done.stderr.startswith("error: the hub has no model owner/other")
    assert len(done.stderr.splitlines()) == 1


def test_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="owner/model is not here"):
        locate("owner/model")


def test_paths_come_first(qwen: Path, tmp_path: Path) -> None:
    assert locate(str(qwen)) == qwen
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(str(tmp_path / "absent"))
    for typo in ("./typo", "../typo", "~/typo"):
        with pytest.raises(CheckpointError, match="does not exist"):
            locate(typo)
    with pytest.raises(CheckpointError, match="is a file"):
        locate(str(qwen / "config.json"))


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "original/model.safetensors", "x.bin"], ["model.safetensors"]),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "consolidated.00.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (["weights.safetensors"], ["weights.safetensors"]),
    ],
)  # fmt: skip
def test_needed_weights(files: list[str], weights: list[str]) -> None:
    needed = needed_files("owner/model", [*files, "config.json", "tokenizer.json", "README.md"])
    assert [file for file in needed if file.endswith(".safetensors")] == weights
    assert {"config.json", "tokenizer.json"} <= set(needed)
    assert "README.md" not in needed


def test_repositories_without_safetensors() -> None:
    with pytest.raises(UnsupportedError, match=r"only \.bin"):
        needed_files("owner/model", ["pytorch_model.bin", "config.json"])
