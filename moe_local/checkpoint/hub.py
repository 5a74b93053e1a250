"""Models by name: local paths, and repositories of the Hugging Face hub, from its cache or downloaded into it."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from moe_local.checkpoint.hub_files import choose_gguf, gguf_models, is_gguf, small_files, weight_files
from moe_local.checkpoint.json_file import read_json
from moe_local.checkpoint.names import EXAMPLE, GGUF_SUFFIX, INDEX, HubName, cleaned, parse_hub_name
from moe_local.checkpoint.offer import HubFile, Offer
from moe_local.errors import (
    CheckpointError,
    DownloadError,
    MoeLocalError,
    StorageError,
    UnsupportedError,
    first_line,
    is_disk_full,
)
from moe_local.files import locked

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_PATIENCE = 10.0  # seconds for the hub's first answer
_AGAIN = "check the network and run the same command again: it resumes"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tiktoken.model", "vocab.json")


Take = Callable[[Offer], Path | None]


@dataclass(frozen=True)
class LocalCopy:
    """A model of the hub on this machine: its folder or GGUF file, and the files that it takes."""

    path: Path
    files: tuple[Path, ...]
    unasked: str | None = None  # why the hub was not asked whether there is a newer one


def locate(model: str, take: Take | None = None, waiting: Callable[[], None] = lambda: None) -> Path:
    """A model's directory or GGUF file: a path as it is, a hub's model from the local cache or downloaded into it.

    See `pull` for `take` and `waiting`. Raises CheckpointError for what is neither, DownloadError when the hub cannot
    give it.
    """
    if not cleaned(model):
        raise CheckpointError("the model's name is empty", remedy=f"name a path or a hub id like {EXAMPLE}")
    if (path := local_path(model)) is not None:
        return path
    name = parse_hub_name(model)
    if name is None or _is_mistyped_path(name):
        raise CheckpointError(
            f"{model} does not exist", remedy=f"name a checkpoint directory or a hub id like {EXAMPLE}"
        )
    return pull(name, take, waiting).path


def _is_mistyped_path(name: HubName) -> bool:
    """Whether it looks like a GGUF file in a folder that is here, rather than one of the hub's."""
    file = f"{name.repo}/{name.path}" if name.path else name.repo
    return file.endswith(GGUF_SUFFIX) and Path(file).parent.is_dir()


def local_path(model: str) -> Path | None:
    """The path that is meant, if there is one; `folder:QUANT` chooses among a folder's GGUF files."""
    for text in dict.fromkeys((model, cleaned(model))):
        if text.startswith("file://"):
            text = url2pathname(urlsplit(text).path)
        try:
            path = Path(text).expanduser()
            if path.is_dir() or (path.is_file() and path.suffix == GGUF_SUFFIX):
                return path
            if path.is_file():
                raise CheckpointError(
                    f"{model} is a file", remedy="name the directory that holds the checkpoint, or a GGUF file"
                )
            folder, colon, quant = text.rpartition(":")
            if colon and quant and folder and (within := Path(folder).expanduser()).is_dir():
                return within / choose_gguf(folder, _listing(within), quant=quant)[0]
        except (OSError, ValueError, RuntimeError):  # no name that a file could have
            continue
    return None


def pull(name: HubName, take: Take | None = None, waiting: Callable[[], None] = lambda: None) -> LocalCopy:
    """Downloads what running a hub's model takes, resuming where it stopped.

    `take` is offered a model whose weights are not all here, and may give what it made of it; where it gives None, or
    there is none, the weights are downloaded. Where the hub does not give them, a whole copy in its cache does,
    whatever put it there. Another process that takes the same repository is waited for, which `waiting` is told of.
    The token comes from `HF_TOKEN` or `hf auth login`. Raises DownloadError, CheckpointError or UnsupportedError.
    """
    try:
        with _alone(name, waiting):
            return _download(name, take)
    except MoeLocalError:
        raise
    except Exception as error:  # whatever the hub's client and its network library have
        if is_disk_full(error):
            raise StorageError(
                f"the disk is full: {name} was not downloaded whole",
                remedy="free some space and run it again: it resumes",
            ) from error
        if (folder := cached_folder(name)) is None:
            raise _refusal(name, error) from error
        return _cached(name, folder, first_line(error))


@contextmanager
def _alone(name: HubName, waiting: Callable[[], None]) -> Iterator[None]:
    """While inside, no other process of ours changes what the hub's cache holds of a repository: one that packs it
    deletes its files. A cache that cannot be written is nobody's to change.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / ".locks" / f"models--{name.repo.replace('/', '--')}"
    with ExitStack() as stack:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / "moe-local.lock", waiting))
        yield


def _download(name: HubName, take: Take | None) -> LocalCopy:
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repo, revision=name.revision, timeout=_PATIENCE, files_metadata=True)
    files = [file.rfilename for file in info.siblings or []]
    if is_gguf(name, files):
        wanted = choose_gguf(name.repo, files, quant=name.quant, path=name.path)
        if take is not None:
            _taken(take, name, _fetch(name.repo, name.revision, ()), info, (), wanted)
        folder = _fetch(name.repo, name.revision, wanted)
        return LocalCopy(folder / wanted[0], tuple(folder / file for file in wanted))
    small = small_files(name, files)
    folder = _fetch(name.repo, name.revision, small)
    weights = weight_files(name, files, _index(folder / name.path))
    if absent := sorted(set(weights) - set(files)):
        raise CheckpointError(
            f"{name} lacks {_some(absent)}, which its {INDEX} names",
            remedy="use another revision, or tell whoever published it",
        )
    if take is not None and (made := _taken(take, name, folder, info, small, weights)) is not None:
        return LocalCopy(made, ())
    # Weights come last, and of the same commit: where they are whole, so is the rest.
    _fetch(name.repo, folder.name, weights)
    return LocalCopy(folder / name.path, tuple(folder / file for file in (*small, *weights)))


def _taken(
    take: Take, name: HubName, snapshot: Path, info: ModelInfo, small: Sequence[str], weights: Sequence[str]
) -> Path | None:
    """What `take` makes of a model; None where it is all here, or the hub does not tell what its files are."""
    found = {file.path: file for sibling in info.siblings or [] if (file := _hub_file(sibling)) is not None}
    if not found.keys() >= {*small, *weights}:
        return None
    offer = Offer(name, snapshot, tuple(found[path] for path in small), tuple(found[path] for path in weights))
    return None if offer.is_here() else take(offer)


def _hub_file(sibling: RepoSibling) -> HubFile | None:
    version = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if sibling.size is None or version is None:
        return None
    return HubFile(sibling.rfilename, sibling.size, version, hashed=sibling.lfs is not None)


def _fetch(repo: str, revision: str | None, files: Sequence[str]) -> Path:
    """The snapshot's folder, with these files in it. The cache remembers which commit the revision meant."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=[glob.escape(file) for file in files]))


def _index(folder: Path) -> dict[str, object] | None:
    return read_json(folder / INDEX) if (folder / INDEX).is_file() else None


def _listing(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]


def cached_folder(name: HubName) -> Path | None:
    """What the hub's cache holds of a revision, whole or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name.repo, revision=name.revision, local_files_only=True, allow_patterns=[]))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def _cached(name: HubName, folder: Path, reason: str) -> LocalCopy:
    """The copy in the hub's cache. Raises DownloadError where something of it is missing."""
    files = _listing(folder)
    try:
        if is_gguf(name, files):
            wanted = choose_gguf(name.repo, files, quant=name.quant, path=name.path)
            return LocalCopy(folder / wanted[0], tuple(folder / file for file in wanted), reason)
        small = small_files(name, files)
    except (CheckpointError, UnsupportedError) as error:
        if len(gguf_models(files)) > 1 and not (name.quant or name.path):
            raise  # several are here to choose from
        raise DownloadError(
            f"{name} is here in part ({error.message}) and the hub did not give the rest ({reason})", remedy=_AGAIN
        ) from error
    weights = weight_files(name, files, _index(folder / name.path))
    missing = sorted(set(weights) - set(files))
    if _lacks_tokenizer(name, folder):
        missing.insert(0, "its tokenizer")
    if missing:
        raise DownloadError(
            f"{name} is here in part, without {_some(missing)}, and the hub did not give the rest ({reason})",
            remedy=_AGAIN,
        )
    return LocalCopy(folder / name.path, tuple(folder / file for file in (*small, *weights)), reason)


def _lacks_tokenizer(name: HubName, folder: Path) -> bool:
    """Whether the revision has a tokenizer that is not here, as far as the cache knows."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    usual = [f"{name.path}/{file}" if name.path else file for file in _TOKENIZERS]
    if (folder / usual[0]).is_file():
        return False
    try:
        snapshot_download(name.repo, revision=folder.name, local_files_only=True, allow_patterns=usual)
    except LocalEntryNotFoundError:
        return True
    return False


def _refusal(name: HubName, error: Exception) -> DownloadError:
    """Why there is no such model here, and what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    here = _revisions(name.repo)
    local = f"; here there is {_some(here)}" if here else ""
    if isinstance(error, GatedRepoError):
        return DownloadError(f"{name.repo} is gated", remedy="accept its terms on the hub, then set HF_TOKEN")
    if isinstance(error, RepositoryNotFoundError):
        return DownloadError(
            f"the hub has no model {name.repo}, or it is private", remedy="check the name, or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(
            f"{name.repo} has no revision {name.revision!r}",
            remedy=f"check it; a quantisation is chosen like {name.repo}:Q4_K_M",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadError(
            f"{name} is not here and HF_HUB_OFFLINE keeps the hub from being asked{local}",
            remedy="unset it, or `moe-local pull` the model where there is a network",
        )
    return DownloadError(
        f"{name} is not here and the hub did not give it ({first_line(error)}){local}", remedy=_AGAIN
    )


def _revisions(repo: str) -> list[str]:
    """Names of a repository's revisions that the cache holds something of."""
    from huggingface_hub import constants

    refs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "refs"
    return [f"{repo}@{ref}" for ref in _listing(refs)] if refs.is_dir() else []


def _some(names: Sequence[str]) -> str:
    """Up to three of them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
