"""The models on this machine: downloads, packed stores, GGUF files, the demo. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_local import demo
from moe_local.checkpoint.hub_files import SAFETENSORS, GgufModel, gguf_models
from moe_local.checkpoint.json_file import read_json
from moe_local.checkpoint.names import GGUF_SUFFIX, named_by
from moe_local.errors import MoeLocalError
from moe_local.paths import cache_dir
from moe_local.store.store_index import Stored, stores

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, CachedRevisionInfo, HFCacheInfo

DOWNLOAD, STORE, GGUF, DEMO = "download", "store", "gguf", "demo"
_PART = re.compile(r".*-\d{5}-of-(?P<count>\d{5})\.safetensors")
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Known:
    """A model on this machine. `model` is what it is a copy of: for a store what it was packed from."""

    name: str
    kind: str  # DOWNLOAD, STORE, GGUF (a file that a store was packed from) or DEMO
    format: str
    size: int  # bytes
    used: float | None  # when it was last read, in seconds since 1970, as far as the file system keeps that
    where: Path
    model: str
    whole: bool = True

    @property
    def short(self) -> str:
        """Its name without an owner, and a file's without its ending."""
        return self.name.rpartition("/")[2].removesuffix(GGUF_SUFFIX)


def known_models() -> list[Known]:
    """All of them, those that were used last first."""
    stored = stores()
    found = [*_downloads(), *map(_store, stored), *_gguf_files(stored), *_demo()]
    return sorted(found, key=lambda known: (-(known.used or 0.0), known.name))


def _store(stored: Stored) -> Known:
    files = stored.directory.glob(f"*{SAFETENSORS}")  # a list reads manifests, and so is no use of them
    state = stored.formats or "unfinished: pack it again to go on"
    model = stored.model or stored.name
    return Known(stored.name, STORE, state, stored.size, _last_read(files), stored.directory, model, stored.whole)


def _gguf_files(stored: Iterable[Stored]) -> Iterator[Known]:
    """Files outside the hub's cache that stores were packed from."""
    for source in dict.fromkeys(each.source for each in stored):
        file = Path(source)
        with suppress(OSError, ValueError):
            if file.suffix == GGUF_SUFFIX and file.is_file() and named_by(file) == file.name:
                quant = GgufModel((file.name,), 1).quant or "?"
                yield Known(
                    file.name, GGUF, f"GGUF {quant}", file.stat().st_size, _last_read([file]), file, file.name
                )


def _demo() -> Iterator[Known]:
    folder = cache_dir() / "demo" / demo.VERSION
    if demo.is_whole(folder):
        files = [file for file in folder.iterdir() if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        used = _last_read(file for file in files if file.suffix == SAFETENSORS)
        yield Known(demo.VERSION, DEMO, _format_of(folder), size, used, folder, demo.VERSION)


def _last_read(files: Iterable[Path]) -> float | None:
    times = []
    for file in files:
        with suppress(OSError):
            times.append(file.stat().st_atime)
    return max(times, default=None)


def _downloads() -> Iterator[Known]:
    for repo in cached_repos():
        with suppress(OSError):
            yield from _of_repo(repo)


def hub_cache() -> HFCacheInfo:
    """What the hub's cache holds. Raises CacheNotFound where there is none."""
    from huggingface_hub import constants, scan_cache_dir

    return scan_cache_dir(constants.HF_HUB_CACHE)


def cached_repos() -> list[CachedRepoInfo]:
    """The models' repositories in the hub's cache."""
    from huggingface_hub import CacheNotFound

    try:
        return [repo for repo in hub_cache().repos if repo.repo_type == "model" and repo.revisions]
    except CacheNotFound:
        return []


def _of_repo(repo: CachedRepoInfo) -> Iterator[Known]:
    """The models of a repository's newest revision here: one in safetensors, or each that is in GGUF files."""
    revision = newest(repo)
    files = in_revision(revision)
    shards = [name for name in files if name.endswith(SAFETENSORS)]
    if shards:
        form, whole = _format_of(revision.snapshot_path), _are_all(shards)
        size, used = repo.size_on_disk, repo.last_accessed
        yield Known(repo.repo_id, DOWNLOAD, form, size, used, revision.snapshot_path, repo.repo_id, whole)
        return
    models = gguf_models(files)
    for model in models:
        parts = [files[name] for name in model.files]
        name = repo.repo_id if len(models) == 1 else gguf_name(repo.repo_id, model)
        yield Known(
            name, DOWNLOAD, f"GGUF {model.quant or '?'}", sum(part.size_on_disk for part in parts),
            max(part.blob_last_accessed for part in parts), Path(parts[0].file_path), repo.repo_id,
            len(parts) == model.count,
        )  # fmt: skip


def newest(repo: CachedRepoInfo) -> CachedRevisionInfo:
    """The revision that main was last, else the one that came last."""
    return max(repo.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))


def in_revision(revision: CachedRevisionInfo) -> dict[str, CachedFileInfo]:
    """Its files by their paths in the repository."""
    return {file.file_path.relative_to(revision.snapshot_path).as_posix(): file for file in revision.files}


def gguf_name(repo: str, model: GgufModel) -> str:
    """How one of several GGUF models of a repository is named."""
    return f"{repo}:{model.quant}" if model.quant else f"{repo}/{model.files[0]}"


def _are_all(shards: Iterable[str]) -> bool:
    """Whether no shard is missing, as far as their names tell."""
    matches = [match for name in shards if (match := _PART.fullmatch(name))]
    return not matches or len(matches) >= int(matches[0]["count"])


def _format_of(folder: Path) -> str:
    """How a checkpoint's numbers are held, as its configuration says it; "?" where it does not."""
    try:
        config = read_json(folder / "config.json")
    except MoeLocalError:
        return "?"
    text = config.get("text_config")
    for described in (config, text if isinstance(text, dict) else {}):
        if found := _quantisation(described) or described.get("dtype") or described.get("torch_dtype"):
            return _SHORT.get(str(found), str(found))[:40]
    return "?"


def _quantisation(config: dict[str, Any]) -> str | None:
    settings = config.get("quantization_config") or config.get("quantization")
    if not isinstance(settings, dict):
        return None
    return str(settings.get("quant_method") or f"mlx, {settings.get('bits', '?')} bits")
