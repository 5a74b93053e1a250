"""Turns the dense model into a Mixture-of-Experts checkpoint, by a carving made beforehand.

Each SwiGLU is cut along its neurons (MoEfication, arXiv:2110.01786; CMoE, arXiv:2502.04416): those that
matter most of the time become the shared expert, the others are dealt into equal experts behind a linear
router. A `Carving` says which neuron goes where, what the routers weigh, and a low-rank change of each down
projection that makes up for part of what the unchosen experts would have added.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from moe_local.demo.dense import DenseModel, Report, write_tokenizer
from moe_local.errors import CheckpointError

FINGERPRINT_ROWS = 16
FINGERPRINT_TOLERANCE = 0.05

SHARED_FIELDS = (  # what a Llama config and a glm4_moe config both call the same
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@dataclass(frozen=True)
class CarvingShape:
    """How each SwiGLU of `intermediate` neurons is cut: `shared` of them always act, the rest are dealt
    into `experts` experts of `width` neurons, of which `top_k` act on a token. The first `first_dense`
    layers stay whole.
    """

    layers: int
    hidden: int
    intermediate: int
    shared: int
    experts: int
    width: int
    top_k: int
    first_dense: int = 1

    def __post_init__(self) -> None:
        if self.shared + self.experts * self.width != self.intermediate:
            raise ValueError(f"{self.shared} + {self.experts} x {self.width} neurons are not {self.intermediate}")
        if self.shared % self.width or not 0 < self.top_k <= self.experts:
            raise ValueError("the shared expert must be a multiple of an expert, and top_k at most the experts")

    @property
    def moe_layers(self) -> range:
        """The numbers of the layers that are carved."""
        return range(self.first_dense, self.layers)


@dataclass(frozen=True)
class Carving:
    """A carving of every layer, in the order of `shape.moe_layers`.

    `order` `[L, intermediate]` lists the neurons: the shared ones, then each expert's. `router` `[L, experts,
    hidden]` and `bias` `[L, experts]` are the routers'. The down projections, their neurons in that order,
    change by `(mend_out * mend_scale) @ mend_in`: int8 `[L, hidden, rank]` and `[L, rank, intermediate]`, and
    float `[L, rank]`. `fingerprint` `[layers, 16]` recognises the weights that all of it was made for.
    """

    shape: CarvingShape
    order: torch.Tensor
    router: torch.Tensor
    bias: torch.Tensor
    mend_out: torch.Tensor
    mend_in: torch.Tensor
    mend_scale: torch.Tensor
    fingerprint: torch.Tensor

    def write(self, path: Path) -> None:
        """Writes the carving as one safetensors file."""
        tensors = {
            "order": self.order.to(torch.int16),
            "router": self.router.to(torch.bfloat16),
            "bias": self.bias.float(),
            "mend_out": self.mend_out.to(torch.int8),
            "mend_in": self.mend_in.to(torch.int8),
            "mend_scale": self.mend_scale.float(),
            "fingerprint": self.fingerprint.float(),
        }
        shape = {name: str(value) for name, value in asdict(self.shape).items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=shape)

    @classmethod
    def read(cls, path: Path) -> Carving:
        """Reads what `write` wrote. Raises `CheckpointError` for a file that is not a sound carving."""
        try:
            with safe_open(path, framework="pt") as file:
                shape = CarvingShape(**{name: int(value) for name, value in (file.metadata() or {}).items()})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            carving = cls(shape=shape, **tensors)
            carving.check()
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a carving ({error})", remedy="install moe-local again, or carve anew"
            ) from error
        return carving

    def check(self) -> None:
        """Raises `ValueError` unless the tensors have the shapes that `shape` promises and every neuron
        comes once.
        """
        count, shape = len(self.shape.moe_layers), self.shape
        rank = self.mend_scale.shape[-1]
        expected = {
            "order": (count, shape.intermediate),
            "router": (count, shape.experts, shape.hidden),
            "bias": (count, shape.experts),
            "mend_out": (count, shape.hidden, rank),
            "mend_in": (count, rank, shape.intermediate),
            "mend_scale": (count, rank),
            "fingerprint": (shape.layers, FINGERPRINT_ROWS),
        }
        for name, size in expected.items():
            if tuple(getattr(self, name).shape) != size:
                raise ValueError(f"{name} is {tuple(getattr(self, name).shape)}, not {size}")
        every_neuron = torch.arange(shape.intermediate).expand(count, -1)
        if not torch.equal(self.order.long().sort(dim=1).values, every_neuron):
            raise ValueError("order does not list every neuron once")

    def carve(self, dense: DenseModel, layer: int) -> SwiGLU:
        """A layer's block with its neurons in the carving's order and its down projection mended."""
        at = layer - self.shape.first_dense
        block = SwiGLU.of(dense, layer).reordered(self.order[at].long())
        mend = (self.mend_out[at] * self.mend_scale[at]) @ self.mend_in[at].float()
        return SwiGLU(block.gate, block.up, block.down + mend)

    def fits(self, dense: DenseModel) -> bool:
        """Whether these are the weights it was made for, give or take a quantisation's error."""
        config, shape = dense.config, self.shape
        sizes = (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])
        if sizes != (shape.layers, shape.hidden, shape.intermediate):
            return False
        found = fingerprint(dense)
        return bool(((found - self.fingerprint).abs() <= FINGERPRINT_TOLERANCE * self.fingerprint).all())


def fingerprint(dense: DenseModel) -> torch.Tensor:
    """Norms of each layer's first gate rows, `[layers, 16]`: the same for a quantised copy, other for
    other weights.
    """
    names = [f"model.layers.{layer}.mlp.gate_proj.weight" for layer in range(dense.config["num_hidden_layers"])]
    return torch.stack([dense.tensors[name][:FINGERPRINT_ROWS].float().norm(dim=1) for name in names])


# One layer's mathematics


@dataclass(frozen=True)
class SwiGLU:
    """One dense feed-forward block: `gate` and `up` `[intermediate, hidden]`, `down` `[hidden,
    intermediate]`.
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def of(cls, dense: DenseModel, layer: int) -> SwiGLU:
        """A layer's block, in float32."""
        prefix = f"model.layers.{layer}.mlp"
        return cls(*(dense.tensors[f"{prefix}.{part}_proj.weight"].float() for part in ("gate", "up", "down")))

    def reordered(self, order: torch.Tensor) -> SwiGLU:
        """The same function with its neurons in another order."""
        return SwiGLU(self.gate[order], self.up[order], self.down[:, order])

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, hidden]` -> `[T, intermediate]`, what the down projection is applied to."""
        return F.silu(x @ self.gate.T) * (x @ self.up.T)


# The checkpoint


def convert(dense: DenseModel, carving: Carving, directory: Path, report: Report) -> None:
    """Writes the carved model into `directory` as a `glm4_moe` checkpoint in bfloat16, tokenizer included
    (about 275 MB).

    Raises `CheckpointError` when the carving was made for other weights, and `OSError` or `SafetensorError`
    when the disk refuses.
    """
    if not carving.fits(dense):
        raise CheckpointError(f"{dense.origin}: these weights are not those that the carving was made for")
    tensors = {}
    for name, tensor in moe_tensors(dense, carving, report):
        tensors[name] = tensor if name.endswith("e_score_correction_bias") else tensor.to(torch.bfloat16)
    report("writing the checkpoint", 0.0)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", moe_config(dense.config, carving.shape))
    write_json(directory / "generation_config.json", generation_config(dense.config))
    write_tokenizer(dense.tokenizer, directory)
    report("writing the checkpoint", 1.0)


def moe_tensors(dense: DenseModel, carving: Carving, report: Report) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's tensors under their names, the published layout with one tensor per expert and
    projection.
    """
    carved = tuple(f"model.layers.{layer}.mlp." for layer in carving.shape.moe_layers)
    yield from ((name, tensor) for name, tensor in dense.tensors.items() if not name.startswith(carved))
    for at, layer in enumerate(carving.shape.moe_layers):
        report("carving the experts", at / len(carving.shape.moe_layers))
        block = carving.carve(dense, layer)
        prefix = f"model.layers.{layer}.mlp"
        yield f"{prefix}.gate.weight", carving.router[at]
        yield f"{prefix}.gate.e_score_correction_bias", carving.bias[at]
        for part, neurons in parts(carving.shape):
            yield f"{prefix}.{part}.gate_proj.weight", block.gate[neurons].clone()
            yield f"{prefix}.{part}.up_proj.weight", block.up[neurons].clone()
            yield f"{prefix}.{part}.down_proj.weight", block.down[:, neurons].clone()


def parts(shape: CarvingShape) -> Iterator[tuple[str, slice]]:
    """The shared expert and the experts, with the neurons of each in the carving's order."""
    yield "shared_experts", slice(0, shape.shared)
    for expert in range(shape.experts):
        start = shape.shared + expert * shape.width
        yield f"experts.{expert}", slice(start, start + shape.width)


def moe_config(config: Mapping[str, Any], shape: CarvingShape) -> dict[str, Any]:
    """The `glm4_moe` config. With `routed_scaling_factor` = top-k the chosen experts weigh about 1, as
    they did uncut.
    """
    return {name: config[name] for name in SHARED_FIELDS if name in config} | {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "dtype": "bfloat16",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
        "hidden_act": "silu",
        "use_qk_norm": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config["rope_theta"],
            "partial_rotary_factor": 1.0,
        },
        "first_k_dense_replace": shape.first_dense,
        "moe_intermediate_size": shape.width,
        "n_routed_experts": shape.experts,
        "n_shared_experts": shape.shared // shape.width,
        "num_experts_per_tok": shape.top_k,
        "norm_topk_prob": True,
        "routed_scaling_factor": float(shape.top_k),
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
        "use_cache": True,
    }


def generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where an answer ends, what pads it, and what keeps a model this small from going round in circles."""
    eos = config["eos_token_id"]
    pad = config.get("pad_token_id")
    return {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": eos if pad is None else pad,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 6,
        "max_new_tokens": 300,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a mapping as an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8", newline="\n")
