"""What is measured, and how much of it: on a GPU, and, tiny, on the pretend one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_local.experts.misses import CPU, UPLOAD, ZERO_COPY
from moe_local.planning.known_models import shipped
from moe_local.planning.weights import Formats
from moe_local.testing import architecture, tiny_config
from moe_local.units import GIB, MIB


@dataclass(frozen=True)
class Model:
    """A model's shape, and the formats of its store. `layers` None: as many as it has; `shape` a hub id."""

    name: str
    architecture: str
    shape: str
    layers: int | None
    formats: Formats
    weight: float  # of the time for all models
    prototypes: int = 4  # different experts in a layer's file: the others repeat them


class Setting(NamedTuple):
    """Shares of the experts, on the device and in RAM, and what becomes of those that the device lacks."""

    device: float
    host: float
    misses: str = UPLOAD


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured."""

    tiny: bool
    noise: int  # random numbers that weights are made of; odd, so that no two rows are the same
    settings: tuple[Setting, ...]
    prompts: tuple[int, ...]  # tokens
    decoded: int  # tokens
    forwards: int  # that host time is taken of
    copied: int  # bytes, for the speeds of memory and link
    repeats: int  # of a kernel or a copy, at least
    matrix: tuple[int, int]  # [out, in] that kernels multiply by
    ring: int  # bytes of copies of it, so that no cache holds them
    rows: tuple[int, ...]  # that are multiplied
    crossing: tuple[int, ...]  # rows around the change from vectors to tiles
    expert: tuple[int, int, int, int]  # experts, top-k, hidden and inner size of the layer that kernels run
    peer_layers: int  # of the model that accelerate offloads
    graphs: bool  # whether kernels are timed in a CUDA graph, without the host between them

    @property
    def context(self) -> int:
        """Tokens to plan for."""
        return max(self.prompts) + self.decoded

    def config(self, model: Model, layers: int | None = None) -> PreTrainedConfig:
        """transformers' configuration, with so many layers."""
        if self.tiny:
            return tiny_config(architecture(model.architecture))
        fields: dict[str, Any] = dict(shipped()[model.shape.lower()]["config"])
        fields.pop("quantization_config", None)
        count = layers or model.layers
        if count is not None:
            fields["num_hidden_layers"] = count
            if fields.get("layer_types"):
                fields["layer_types"] = fields["layer_types"][:count]
        return CONFIG_MAPPING[fields["model_type"]].from_dict(fields)


FORMATS = ("int4", "int8", "mxfp4", "nf4", "nvfp4", "fp8")
SETTINGS = (
    Setting(1.0, 1.0),
    Setting(0.5, 1.0),
    Setting(0.25, 1.0),
    Setting(0.25, 1.0, ZERO_COPY),
    Setting(0.25, 1.0, CPU),
    Setting(0.5, 1.0, ZERO_COPY),
    Setting(0.125, 1.0),
    Setting(0.125, 1.0, ZERO_COPY),
    Setting(0.5, 0.5),
    Setting(0.25, 0.5),
    Setting(0.125, 0.5),
)
REAL = Scale(
    tiny=False, noise=(1 << 26) - 5,
    settings=SETTINGS, prompts=(512, 4096), decoded=64, forwards=16, copied=2 * GIB, repeats=20,
    matrix=(8192, 4096), ring=512 * MIB, rows=(1, 4, 16, 512, 4096), crossing=(1, 2, 4, 8, 16, 32, 64),
    expert=(128, 8, 2048, 768), peer_layers=8, graphs=True,
)  # fmt: skip
PRETENDED = Scale(
    tiny=True, noise=(1 << 16) - 5,
    settings=(Setting(1.0, 1.0), Setting(0.5, 1.0), Setting(0.5, 1.0, ZERO_COPY), Setting(0.5, 0.5)),
    prompts=(16, 40), decoded=6, forwards=2, copied=MIB,
    repeats=2, matrix=(64, 128), ring=64 << 10, rows=(1, 4, 24), crossing=(1, 8), expert=(8, 2, 64, 64),
    peer_layers=2, graphs=False,
)  # fmt: skip


def models(layers: int) -> tuple[Model, ...]:
    """The models; `layers` of Qwen3-30B-A3B."""
    return (
        Model("qwen3-30b-a3b", "qwen3_moe", "Qwen/Qwen3-30B-A3B", layers, Formats("int4", 64, "int8"), 2.0),
        Model("gpt-oss-20b", "gpt_oss", "openai/gpt-oss-20b", None, Formats("mxfp4", 64, "int8"), 1.5),
        Model(
            "mixtral-8x7b", "mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1", 8, Formats("int4", 64, "int8"), 1.0, 2
        ),
    )
