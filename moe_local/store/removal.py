"""Deleting a model from the two caches, and nothing outside of them. Imports nothing heavy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moe_local.checkpoint.hub_files import SAFETENSORS, gguf_models
from moe_local.errors import MoeLocalError, StorageError
from moe_local.files import locked
from moe_local.paths import cache_dir
from moe_local.store.known import (
    DOWNLOAD,
    GGUF,
    STORE,
    Known,
    cached_repos,
    gguf_name,
    hub_cache,
    in_revision,
    newest,
)

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo

_LEAVING = ".removing-"  # before the name of a folder that is being deleted


def assert_removable(known: Known) -> None:
    """Raises MoeLocalError for a model outside the caches, and for one that another process uses."""
    if known.kind == GGUF:
        raise MoeLocalError(f"{known.where} is outside the caches", remedy="delete the file yourself")
    if users := _users(known.where):
        raise MoeLocalError(f"{known.name} is in use by {', '.join(users)}", remedy="end that first")


def remove(known: Known) -> None:
    """Deletes a model. Raises MoeLocalError as `assert_removable` does, StorageError where the system refuses."""
    assert_removable(known)
    try:
        if known.kind == DOWNLOAD:
            _remove_download(known)
        else:
            with _not_being_packed(known):
                _remove_folder(known.where)
    except OSError as error:
        raise StorageError(f"cannot remove {known.where} ({error})", remedy="check its permissions") from error


@contextmanager
def _not_being_packed(known: Known) -> Iterator[None]:
    """Raises MoeLocalError while another process packs a store."""
    if known.kind != STORE:
        yield
        return
    whole = known.where.with_name(known.where.name.removesuffix(".partial"))
    try:
        with locked(whole.with_name(f"{whole.name}.lock")):
            yield
    except BlockingIOError as error:
        raise MoeLocalError(f"{known.name} is being packed", remedy="end that first") from error


def _remove_folder(folder: Path) -> None:
    """Deletes a folder of our cache: renamed first, so that it is there as a whole or not at all."""
    if cache_dir().resolve() not in folder.parent.resolve().parents:
        raise MoeLocalError(f"{folder} is outside the caches", remedy="delete it yourself")
    if folder.is_symlink():
        folder.unlink()
        return
    leaving = folder.with_name(f"{_LEAVING}{folder.name}")
    folder.rename(leaving)
    for left in folder.parent.glob(f"{_LEAVING}*"):  # this one, and what a killed run left
        shutil.rmtree(left)


def _remove_download(known: Known) -> None:
    """Deletes all revisions of a repository, or the files of the one of its GGUF models that is meant."""
    for repo in cached_repos():
        if repo.repo_id != known.model:
            continue
        if known.name == repo.repo_id:
            hub_cache().delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
            return
        files = in_revision(newest(repo))
        model = next(model for model in gguf_models(files) if gguf_name(repo.repo_id, model) == known.name)
        for revision in repo.revisions:
            there = in_revision(revision)
            _unlink(path for name in model.files if name in there for path in _both(there[name]))


def _both(file: CachedFileInfo) -> tuple[Path, Path]:
    """A file of a snapshot, and the blob that it leads to."""
    return file.file_path, file.blob_path


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _users(where: Path) -> list[str]:
    """Other processes of this user that have a file of a model open."""
    import psutil

    files = [where] if where.is_file() else list(where.rglob(f"*{SAFETENSORS}"))
    wanted = {os.path.realpath(file) for file in files}
    found = []
    for process in psutil.process_iter(["pid", "name"]):
        try:
            opened = {file.path for file in process.open_files()} if process.pid != os.getpid() else set()
        except (psutil.Error, OSError):  # of somebody else, or gone
            continue
        if opened & wanted:
            found.append(f"process {process.pid} ({process.info['name']})")
    return found
