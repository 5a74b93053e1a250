"""A hub on loopback that speaks the protocol of the real one, as far as downloading models needs it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/(?P<kind>revision|tree)/(?P<revision>[^/]+))?")
_LARGE = (".safetensors", ".gguf")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class LocalHub(ThreadingHTTPServer):
    """Serves folders `owner/name` of a folder as models; `owner/name@v1` is the same one's revision v1.

    `cut` is how many bytes of the next large file are sent, `spoilt` how many whole ones are sent with a bit of them
    changed, `gone_after` how many whole ones are sent before nothing is found any more, `silent_after` how many
    files before nothing is answered. `served` has every file that was sent, with the range that was asked for;
    `tokens` who asked.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.cut: int | None = None
        self.spoilt = 0
        self.gone_after: int | None = None
        self.silent_after: int | None = None
        self.ended = threading.Event()
        self.served: list[tuple[str, str | None]] = []
        self.tokens: set[str | None] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, cache: Path) -> dict[str, str]:
        """What makes Hugging Face's client use this hub and this cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_OFFLINE": "0",
        }

    def folder(self, repo: str, revision: str) -> Path | None:
        """Where a revision is: by its name, or its commit."""
        for folder in self.root.glob(f"{repo}*"):
            base, _, name = folder.relative_to(self.root).as_posix().partition("@")
            if base == repo and revision in (name or "main", commit(folder)):
                return folder
        return None

    def is_gone(self) -> bool:
        """Whether it sent as many whole large files as `gone_after` says."""
        whole = [name for name, asked in self.served if name.endswith(_LARGE) and not asked]
        return self.gone_after is not None and len(whole) >= self.gone_after


@contextmanager
def local_hub(root: Path) -> Iterator[LocalHub]:
    """A hub that serves until the block ends."""
    with LocalHub(root) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()


def commit(folder: Path) -> str:
    """The commit that a folder is served as."""
    return hashlib.sha1(folder.name.encode()).hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _etag(file: Path) -> str:
    return _sha256(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(file: Path, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.silent_after is not None and len(self.server.served) >= self.server.silent_after:
            self.server.ended.wait()
        path, _, query = self.path.partition("?")
        if path == "/api/models":
            return self._send(json.dumps(self._models(parse_qs(query))).encode(), body)
        asked = _API.fullmatch(path) or _FILE.fullmatch(path)
        if asked is None or self.server.is_gone() or not (self.server.root / asked["repo"]).is_dir():
            return self._refuse("RepoNotFound")
        folder = self.server.folder(asked["repo"], unquote(asked["revision"] or "main"))
        if folder is None:
            return self._refuse("RevisionNotFound")
        if "file" not in asked.groupdict():
            return self._send(json.dumps(_described(asked["repo"], folder, asked["kind"])).encode(), body)
        file = folder / unquote(asked["file"])
        return self._send_file(file, commit(folder), body) if file.is_file() else self._refuse("EntryNotFound")

    def _models(self, query: dict[str, list[str]]) -> list[dict[str, str]]:
        """The models that quantise the one that is asked for: those that are called as it is, and more."""
        base = query.get("filter", [""])[0].removeprefix("base_model:quantized:")
        folders = sorted(self.server.root.glob(f"{base}-*")) if base else []
        return [{"id": folder.relative_to(self.server.root).as_posix()} for folder in folders]

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _send_file(self, file: Path, sha: str, body: bool) -> None:
        size, asked = file.stat().st_size, re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if body:
            self.server.served.append((file.name, asked and asked[0]))
            stop, cut = end, self.server.cut
            if cut is not None and file.suffix == ".safetensors":
                stop = min(stop, start + cut)
            with file.open("rb") as stream:
                stream.seek(start)
                self.wfile.write(self._as_sent(stream.read(stop - start), whole=not asked))
            if stop < end:
                self.close_connection = True

    def _as_sent(self, content: bytes, *, whole: bool) -> bytes:
        if not whole or not self.server.spoilt or not self.path.endswith(_LARGE):
            return content
        self.server.spoilt -= 1
        return content[:-1] + bytes([content[-1] ^ 1])

    def log_message(self, *arguments: object) -> None:
        """Nothing: tests look at `served`."""


def _described(repo: str, folder: Path, kind: str | None) -> object:
    """What the hub's API tells of a revision: its files, or its tree."""
    if kind == "tree":
        files = [(name, folder / name) for name in _names(folder)]
        return [{"type": "file", "path": n, "size": f.stat().st_size, "oid": _etag(f)} for n, f in files]
    return {"id": repo, "sha": commit(folder), "siblings": [_sibling(name, folder / name) for name in _names(folder)]}


def _sibling(name: str, file: Path) -> dict[str, object]:
    size, digest = file.stat().st_size, _etag(file)
    large = file.suffix in _LARGE
    lfs = {"lfs": {"size": size, "sha256": digest, "pointerSize": 134}} if large else {}
    return {"rfilename": name, "size": size, "blobId": digest[:40] if large else digest, **lfs}
