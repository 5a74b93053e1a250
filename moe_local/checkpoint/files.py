"""A checkpoint: its configuration and every tensor's place, from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.core_model_loading import WeightTransform

from moe_local.checkpoint.gguf import SUFFIX, gguf_set, only_gguf, read_gguf
from moe_local.checkpoint.header import TensorEntry, read_header
from moe_local.checkpoint.json_file import read_json
from moe_local.checkpoint.names import INDEX, SINGLE
from moe_local.checkpoint.quantization import QUANT_FILE, quantization_of
from moe_local.errors import CheckpointError, UnsupportedError

_LONGEST = 200  # letters of a file's name
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A directory in Hugging Face's layout (`config.json` and safetensors files), or a GGUF file, which is all."""

    directory: Path  # or the GGUF file
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    conversions: tuple[WeightTransform, ...] = ()  # of experts' tensors, beside those that transformers knows
    versions: Mapping[str, str] = field(default_factory=dict)  # of files by name, where they are not to be asked

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Reads the configuration and all headers; no weights.

        Raises CheckpointError for missing or damaged files, UnsupportedError for other kinds of weights.
        """
        file = path if path.suffix == SUFFIX and path.is_file() else None
        if file is None and not path.is_dir():
            raise CheckpointError(f"{path} is not a directory", remedy="name a checkpoint directory")
        if file is None and not any(path.glob("*.safetensors")):
            file = only_gguf(path)
        if file is not None:
            files = gguf_set(file)
            return cls(files[0], *read_gguf(files))
        return cls(path, _read_config(path), _read_tensors(path))

    @classmethod
    def promised(
        cls, directory: Path, headers: Mapping[str, dict[str, TensorEntry]], versions: Mapping[str, str]
    ) -> Checkpoint:
        """One whose small files are in `directory`, and whose weights are not, from the headers of their files.

        `versions` tell by a file's name what is in it. Raises CheckpointError as `open` does.
        """
        if not (directory / INDEX).exists():
            (tensors,) = headers.values()
        else:
            tensors = _read_sharded(directory, lambda shard: headers[shard.name])
        return cls(directory, _read_config(directory), tensors, versions=versions)

    @property
    def gguf(self) -> Path | None:
        """The GGUF file, if it is one."""
        return self.directory if self.directory.suffix == SUFFIX and self.directory.is_file() else None

    @property
    def config_file(self) -> Path:
        """Where the configuration comes from."""
        return self.gguf or self.directory / "config.json"

    @cached_property
    def files(self) -> list[Path]:
        return sorted({entry.file for entry in self.tensors.values()})

    @property
    def total_bytes(self) -> int:
        return sum(entry.length for entry in self.tensors.values())


def _read_config(directory: Path) -> dict[str, Any]:
    """config.json, with the settings of quantisation that some checkpoints keep in a file of their own."""
    config = read_json(directory / "config.json")
    if (directory / QUANT_FILE).exists() and quantization_of(config) is None:
        config["quantization_config"] = read_json(directory / QUANT_FILE)
    return config


def _read_tensors(directory: Path) -> dict[str, TensorEntry]:
    if (directory / INDEX).exists():
        return _read_sharded(directory, lambda shard: read_header(_existing(shard)))
    if (directory / SINGLE).exists():
        return read_header(directory / SINGLE)
    return read_header(_only_file(directory))


def _read_sharded(directory: Path, read: Callable[[Path], dict[str, TensorEntry]]) -> dict[str, TensorEntry]:
    index = directory / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map", remedy="download it again")
    found: dict[str, list[TensorEntry]] = {}
    for name in sorted(set(weight_map.values())):
        for entry in read(_shard(index, name)).values():
            found.setdefault(entry.name, []).append(entry)
    chosen = {name: _chosen(copies, weight_map.get(name)) for name, copies in found.items()}
    tensors = {name: entry for name, entry in chosen.items() if entry is not None}
    for tensor, name in weight_map.items():
        if tensor not in tensors:
            raise CheckpointError(
                f"{directory / name} lacks tensor {tensor!r} that {INDEX} promises",
                remedy="download it again",
            )
    return tensors


def _chosen(copies: list[TensorEntry], shard: str | None) -> TensorEntry | None:
    """The one of several tensors of a name that is in the shard that the index says.

    None where there are several and it says nothing of them: whoever needs that tensor finds it missing.
    """
    listed = [entry for entry in copies if entry.file.name == shard]
    return listed[0] if listed else copies[0] if len(copies) == 1 else None


def _shard(index: Path, name: str) -> Path:
    if Path(name).name != name or not name.endswith(".safetensors") or len(name) > _LONGEST or "\0" in name:
        shown = name if len(name) <= _LONGEST else f"{name[:40]}..."
        raise CheckpointError(
            f"{index} names {shown!r}, which is not a safetensors file beside it", remedy="download it again"
        )
    return index.parent / name


def _existing(shard: Path) -> Path:
    if not shard.exists():
        raise CheckpointError(f"{shard} is missing", remedy=f"download it again: {INDEX} lists it")
    return shard


def _only_file(directory: Path) -> Path:
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{directory} has {len(found)} safetensors files and no {INDEX}", remedy="download the index too"
        )
    if any(path for pattern in _PICKLES for path in directory.glob(pattern)):
        raise UnsupportedError(
            f"{directory} holds pickled weights only, which can run code when opened",
            remedy="use a repository with safetensors, or convert it on a machine you can lose",
        )
    raise CheckpointError(f"{directory} holds no safetensors files", remedy="name a complete checkpoint directory")
