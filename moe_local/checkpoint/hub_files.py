"""Which files of a hub repository a model takes, by their names alone. Asks nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from moe_local.checkpoint.names import GGUF_SUFFIX, INDEX, SINGLE, HubName
from moe_local.errors import CheckpointError, UnsupportedError

SAFETENSORS = ".safetensors"
_TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_DUPLICATES = "consolidated"  # how Mistral names a second copy of the weights, in a layout of its own
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_QUANT = re.compile(
    r"(?:^|(?<=[-._/]))(?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP\d(?:_MOE)?|NVFP4|B?F16|FP16|F32|FP32)"
    r"(?=$|[-./])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class GgufModel:
    """One model of a repository: a file, or the files of a set in order."""

    files: tuple[str, ...]
    count: int  # of files that it should have

    @property
    def stem(self) -> str:
        match = _PART.fullmatch(self.files[0])
        return match["stem"] if match else self.files[0].removesuffix(GGUF_SUFFIX)

    @property
    def quant(self) -> str | None:
        """How it is quantised, as its name says it: the file's, or else its folder's."""
        for part in reversed(PurePosixPath(self.stem).parts):
            if found := _QUANT.findall(part):
                return str(found[-1])
        return None

    def whole(self, repo: str) -> tuple[str, ...]:
        """Its files. Raises CheckpointError where the repository lacks some."""
        if len(self.files) != self.count:
            raise CheckpointError(
                f"{repo} has {len(self.files)} of the {self.count} files of {self.stem}",
                remedy="choose another quantisation, or tell whoever published it",
            )
        return self.files


def inside(files: Iterable[str], folder: str) -> list[str]:
    """Those in a folder and below; all of them for ""."""
    return [file for file in files if not folder or file.startswith(f"{folder}/")]


def beside(files: Iterable[str], folder: str) -> list[str]:
    """Those in a folder itself."""
    prefix = f"{folder}/" if folder else ""
    return [file for file in inside(files, folder) if "/" not in file[len(prefix) :]]


def is_gguf(name: HubName, files: Sequence[str]) -> bool:
    """Whether a GGUF file is meant: one is asked for, or there is nothing else."""
    if name.quant or name.path.endswith(GGUF_SUFFIX):
        return True
    plain = any(file.endswith((SAFETENSORS, INDEX)) for file in beside(files, name.path))
    return not plain and bool(gguf_models(inside(files, name.path)))


def gguf_models(files: Iterable[str]) -> list[GgufModel]:
    """The GGUF models among files. Projectors of images and tables of importance are none."""
    sets: dict[str, list[str]] = {}
    for file in sorted(files):
        if file.endswith(GGUF_SUFFIX) and not _is_beside_the_point(file):
            match = _PART.fullmatch(file)
            sets.setdefault(f"{match['stem']}-{match['count']}" if match else file, []).append(file)
    return [GgufModel(tuple(found), _count(found[0])) for found in sets.values()]


def _count(file: str) -> int:
    match = _PART.fullmatch(file)
    return int(match["count"]) if match else 1


def _is_beside_the_point(file: str) -> bool:
    name = PurePosixPath(file).name.lower()
    return "mmproj" in name or ("imatrix" in name and not _QUANT.search(name.removesuffix(GGUF_SUFFIX)))


def choose_gguf(what: str, files: Sequence[str], *, quant: str | None = None, path: str = "") -> tuple[str, ...]:
    """The files of the one GGUF model that is meant among those of `what`, a repository or a folder.

    Raises CheckpointError that names them all where there are several, or none that is asked for.
    """
    found = models = gguf_models(files)
    if path.endswith(GGUF_SUFFIX):
        found = [model for model in models if path in model.files]
    elif path:
        found = models = gguf_models(inside(files, path))
    if quant is not None:
        found = _of_quant(models, quant)
    if len(found) == 1:
        return found[0].whole(what)
    asked = quant or path
    if not models:
        missing = f", so no {asked}" if asked else ""
        raise CheckpointError(
            f"{what} has no GGUF model{missing}", remedy=f"give {what} alone, or another repository"
        )
    offered, example = _offers(what, found or models)
    if found:
        said = f"{what} holds {len(found)} GGUF models" + (f" of {asked}" if asked else "")
    else:
        said = f"{what} has no GGUF model {asked!r}"
    raise CheckpointError(f"{said}: {', '.join(offered)}", remedy=f"name one, like {example}")


def _of_quant(models: Sequence[GgufModel], wanted: str) -> list[GgufModel]:
    """Those of exactly this quantisation; else those whose name has it as a word."""
    exact = [model for model in models if model.quant and _spelt(model.quant) == _spelt(wanted)]
    word = re.compile(rf"(?<![a-z0-9]){re.escape(_spelt(wanted))}(?![a-z0-9_])")
    return exact or [model for model in models if word.search(model.stem.lower())]


def _spelt(quant: str) -> str:
    """One spelling of what is written in several."""
    return re.sub(r"^fp(16|32)$", r"f\1", quant.lower().replace("-", "_"))


def _offers(what: str, models: Sequence[GgufModel]) -> tuple[list[str], str]:
    """What there is to choose from, and how one is chosen: by quantisation, or by file where that does not tell."""
    quants = [model.quant or "" for model in models]
    if "" in quants or len({_spelt(quant) for quant in quants}) != len(quants):
        return [model.files[0] for model in models], f"{what}/{models[0].files[0]}"
    common = next((quant for quant in quants if quant.upper() == "Q4_K_M"), quants[0])
    return sorted(quants), f"{what}:{common}"


def small_files(name: HubName, files: Sequence[str]) -> list[str]:
    """Configuration and tokenizer of a model in safetensors.

    Raises UnsupportedError for a repository that has no such model.
    """
    there = beside(files, name.path)
    if not any(file.endswith((SAFETENSORS, INDEX)) for file in there):
        kinds = sorted({PurePosixPath(file).suffix for file in there} & {*_PICKLES})
        raise UnsupportedError(
            f"{name} has no safetensors" + (f", only {', '.join(kinds)}" if kinds else ""),
            remedy="name a repository with safetensors or GGUF files",
        )
    texts = [file for file in there if file.endswith(_TEXTS)]
    if not any(PurePosixPath(file).name == "config.json" for file in there):
        adapter = any(PurePosixPath(file).name == "adapter_config.json" for file in there)
        raise UnsupportedError(
            f"{name} has no config.json" + (": it is an adapter for another model" if adapter else ""),
            remedy="name a whole model in the layout of transformers",
        )
    return texts


def weight_files(name: HubName, files: Sequence[str], index: Mapping[str, Any] | None) -> list[str]:
    """The safetensors files that hold a model: those that its `index` names, where it has one.

    Raises CheckpointError for a repository whose weights the checkpoint reader would refuse.
    """
    prefix = f"{name.path}/" if name.path else ""
    if index is not None:
        return [f"{prefix}{shard}" for shard in _shards(name, index)]
    found = [file for file in beside(files, name.path) if file.endswith(SAFETENSORS)]
    if f"{prefix}{SINGLE}" in found:
        return [f"{prefix}{SINGLE}"]
    own = [file for file in found if not PurePosixPath(file).name.startswith(_DUPLICATES)] or found
    if len(own) > 1:
        raise CheckpointError(
            f"{name} has {len(own)} safetensors files and no {INDEX}", remedy="use another revision"
        )
    return own


def _shards(name: HubName, index: Mapping[str, Any]) -> list[str]:
    weight_map = index.get("weight_map")
    shards = weight_map.values() if isinstance(weight_map, dict) else [None]
    for shard in shards:
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or not shard.endswith(SAFETENSORS):
            raise CheckpointError(
                f"{INDEX} of {name} names {shard!r}, which is not a safetensors file beside it",
                remedy="use another revision, or tell whoever published it",
            )
    return sorted(set(shards))
