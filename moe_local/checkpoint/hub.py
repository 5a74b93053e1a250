"""Models by name: local directories, and repositories of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from moe_local.checkpoint.files import INDEX, SINGLE
from moe_local.checkpoint.gguf import SUFFIX
from moe_local.errors import (
    CheckpointError,
    DownloadError,
    StorageError,
    UnsupportedError,
    first_line,
    is_disk_full,
)

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_PATIENCE = 10.0  # seconds for the hub's first answer
_TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")


def locate(model: str) -> Path:
    """A model's directory or GGUF file: a path as it is, a hub id from the local cache or downloaded into it.

    Raises CheckpointError for what is neither, DownloadError when the hub cannot give it.
    """
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == SUFFIX):
        return path
    if path.is_file():
        raise CheckpointError(
            f"{model} is a file", remedy="name the directory that holds the checkpoint, or a GGUF file"
        )
    if not _REPO.fullmatch(model) or model.startswith((".", "~")):
        raise CheckpointError(
            f"{model} does not exist",
            remedy="name a checkpoint directory or a hub id like Qwen/Qwen3-30B-A3B",
        )
    return pull(model)


def pull(repo: str, *, revision: str | None = None) -> Path:
    """Downloads what is needed of a hub repository, resuming where it stopped; returns the local directory.

    A complete copy in the cache is used without asking the hub when it cannot be reached. The token comes from
    `HF_TOKEN` or `hf auth login`. Raises DownloadError or UnsupportedError.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_PATIENCE)
        wanted = needed_files(repo, [file.rfilename for file in info.siblings or []])
        return Path(snapshot_download(repo, revision=info.sha, allow_patterns=wanted))
    except UnsupportedError:
        raise
    except GatedRepoError as error:
        raise DownloadError(f"{repo} is gated", remedy="accept its terms on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"the hub has no model {repo}, or it is private", remedy="check the name, or set HF_TOKEN"
        ) from error
    except Exception as error:  # whatever the hub's client and its network library have
        if is_disk_full(error):
            raise StorageError(
                f"the disk is full: {repo} was not downloaded whole",
                remedy="free some space and run it again: it resumes",
            ) from error
        if (cached := _cached(repo, revision)) is not None:
            return cached
        raise DownloadError(
            f"{repo} is not here and the hub did not give it ({first_line(error)})",
            remedy="check the network and run the same command again: it resumes",
        ) from error


def needed_files(repo: str, files: Sequence[str]) -> list[str]:
    """Of a repository's files, those that running it takes: safetensors once, configuration, tokenizer.

    Raises UnsupportedError for a repository without safetensors.
    """
    top = [file for file in files if "/" not in file]
    weights = [file for file in top if file.endswith(".safetensors")]
    if not weights:
        kinds = sorted({Path(file).suffix for file in top} & {".bin", ".pt", ".pth", ".gguf"})
        raise UnsupportedError(
            f"{repo} has no safetensors" + (f", only {', '.join(kinds)}" if kinds else ""),
            remedy="name a repository with safetensors" + (", or a downloaded file" if ".gguf" in kinds else ""),
        )
    if INDEX in top:
        weights = [file for file in weights if re.fullmatch(r"model-\d+-of-\d+\.safetensors", file)] or weights
    elif SINGLE in top:
        weights = [SINGLE]
    return weights + [file for file in top if file.endswith(_TEXTS)]


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None
