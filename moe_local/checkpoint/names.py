"""What people call a model of the hub: an id or a link, with a revision, a quantisation or a file if they like.

Imports nothing heavy, asks nobody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from moe_local.errors import CheckpointError

GGUF_SUFFIX = ".gguf"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HOSTS = ("huggingface.co", "hf.co", "hf-mirror.com")
EXAMPLE = "Qwen/Qwen3-30B-A3B"

_AROUND = " \t\r\n'\"`<>"
_SCHEME = re.compile(r"(?i)(https?|hf|git\+https|ssh|git):/{1,2}")
_GIT = re.compile(r"(?i)git@([\w.-]+)[:/]")
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(?:\.git)?(?P<path>/[^@:]+)?(?P<marks>(?:[@:][^@:\s]*)*)")
_OTHERS = {"datasets": "a data set", "spaces": "a space", "collections": "a collection", "papers": "a paper",
           "docs": "documentation", "buckets": "a bucket"}  # fmt: skip
_WITH_REVISION = ("tree", "blob", "resolve", "raw", "blame", "edit", "commit", "commits")


@dataclass(frozen=True)
class HubName:
    """A model of the hub as it was named. `path` is a GGUF file of the repository, or a folder; "" for its top."""

    repo: str  # owner/name
    revision: str | None = None
    quant: str | None = None
    path: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        quant = f":{self.quant}" if self.quant else ""
        return f"{self.repo}{'/' if self.path else ''}{self.path}{at}{quant}"


def cleaned(text: str) -> str:
    """Without what comes along when a name is copied: blanks and quotes around it."""
    return text.strip(_AROUND)


def named_by(path: Path) -> str:
    """What a model's folder or file is called: `owner/name` in the hub's cache, else its own name."""
    parts = path.parts
    if "snapshots" in parts[1:]:
        folder = parts[parts.index("snapshots") - 1]
        if folder.startswith("models--"):
            return folder.removeprefix("models--").replace("--", "/", 1)
    return path.name


def parse_hub_name(text: str) -> HubName | None:
    """`owner/name`, `owner/name@revision`, `owner/name:QUANT`, `owner/name/file.gguf`, `hf://...`, or a link.

    None for what is no such name. Raises CheckpointError for a link that leads to something else.
    """
    name = cleaned(text)
    if (git := _GIT.match(name)) is not None:
        name = f"https://{git[1]}/{name[git.end() :]}"
    scheme = _SCHEME.match(name)
    if scheme is not None and scheme[1].lower() == "hf":
        return _checked(_parse_id(name[scheme.end() :], folders=True), text)
    if scheme is not None:
        return _parse_link(f"https://{name[scheme.end() :]}", text)
    if _host(f"https://{name}") in _hosts():
        return _parse_link(f"https://{name}", text)
    return _checked(_parse_id(name), text)


def _parse_id(name: str, *, folders: bool = False) -> HubName | None:
    """A name without a host. `folders` lets more than GGUF files follow the repository."""
    kind, _, rest = name.partition("/")
    if folders and kind in _OTHERS:
        raise CheckpointError(f"{name} is {_OTHERS[kind]}, not a model", remedy=f"name a model like {EXAMPLE}")
    if folders and kind == "models" and "/" in rest:
        name = rest
    found = _ID.fullmatch(name)
    if found is None or name.startswith("."):
        return None
    path, marks = (found["path"] or "").strip("/"), re.findall(r"[@:][^@:]*", found["marks"])
    given = {mark[0]: mark[1:] for mark in marks}
    if len(given) != len(marks) or (path and not folders and not path.endswith(GGUF_SUFFIX)):
        return None
    if "" in given.values():
        raise CheckpointError(
            f"{name} ends where a revision or a quantisation should be",
            remedy=f"write it like {found['repo']}@main or {found['repo']}:Q4_K_M",
        )
    revision, quant = given.get("@"), given.get(":")
    if revision and revision.endswith(GGUF_SUFFIX):
        revision, path = _split_revision(revision.split("/"))
    if quant and quant.endswith(GGUF_SUFFIX):
        quant, path = None, quant
    return HubName(found["repo"], revision, quant, path)


def _parse_link(link: str, text: str) -> HubName | None:
    host = _host(link)
    if host not in _hosts():
        raise CheckpointError(
            f"{text} leads to {host or 'no host'}, which is not the hub",
            remedy="download the model and name its folder; or set HF_ENDPOINT, if this is a copy of the hub",
        )
    parts = urlsplit(link)
    segments = [unquote(segment) for segment in _below_endpoint(link).split("/") if segment]
    if segments[:2] == ["api", "models"] or segments[:1] == ["models"]:
        segments = segments[segments.index("models") + 1 :]
    if segments[:1] and segments[0] in _OTHERS:
        raise CheckpointError(f"{text} is {_OTHERS[segments[0]]}, not a model", remedy=f"name one like {EXAMPLE}")
    name = _parse_id("/".join(segments[:2]))
    if name is None:
        raise CheckpointError(f"{text} names no model", remedy=f"a link to one is like https://{HOSTS[0]}/{EXAMPLE}")
    if len(segments) > 2 and segments[2] == "revision":
        return _checked(HubName(name.repo, "/".join(segments[3:]) or None), text)
    if len(segments) > 2 and segments[2] in _WITH_REVISION:
        revision, path = _split_revision(segments[3:])
        return _checked(HubName(name.repo, revision, name.quant, _model_path(segments[2], path)), text)
    shown = parse_qs(parts.query).get("show_file_info", [""])[0]  # what a click on a file of a model's page gives
    if shown.endswith(GGUF_SUFFIX):
        return _checked(HubName(name.repo, name.revision, None, shown), text)
    return _checked(name, text)


def _split_revision(segments: list[str]) -> tuple[str | None, str]:
    """A revision and the path that follows it; `refs/pr/1` is a revision of three segments."""
    count = 3 if segments[:1] == ["refs"] else 1
    return "/".join(segments[:count]) or None, "/".join(segments[count:])


def _model_path(kind: str, path: str) -> str:
    """What of a repository a link means: a GGUF file, or the folder that it shows or that holds the file it shows."""
    if kind.startswith("commit"):
        return ""
    if kind == "tree" or path.endswith(GGUF_SUFFIX):
        return path
    folder = str(PurePosixPath(path).parent)
    return "" if folder == "." else folder


def _checked(name: HubName | None, text: str) -> HubName | None:
    """The name if the hub could have it. Raises CheckpointError for a path or revision that climbs."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public in all but its stubs

    if name is None:
        return None
    try:
        validate_repo_id(name.repo)
    except HFValidationError:
        return None
    for part in (name.revision or "", name.path):
        if ".." in part.split("/") or part.startswith("/") or "\\" in part or not part.isprintable():
            raise CheckpointError(f"{text} has no sound path or revision", remedy=f"name it like {name.repo}@main")
    return name


def _host(link: str) -> str:
    try:
        return (urlsplit(link).hostname or "").lower().removeprefix("www.")
    except ValueError:  # brackets that are no address
        return ""


def _hosts() -> set[str]:
    return {*HOSTS, _host(_endpoint())} - {""}


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _below_endpoint(link: str) -> str:
    """The path of a link, without the folder that HF_ENDPOINT puts the hub into."""
    path, below = urlsplit(link).path, urlsplit(_endpoint()).path.rstrip("/")
    return path.removeprefix(below) if _host(link) == _host(_endpoint()) else path
