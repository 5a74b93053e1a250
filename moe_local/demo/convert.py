"""Turns the dense model into a Mixture-of-Experts checkpoint, by a carving made beforehand.

Each SwiGLU is cut along its neurons (MoEfication, arXiv:2110.01786; CMoE, arXiv:2502.04416): those that matter most of
the time become the shared expert, the others are dealt into equal experts behind a linear router. A `Carving` says
which neuron goes where and what the routers weigh. What the unchosen experts would have added is partly made up for by
solving the down projections anew, given the routing, on the calibration tokens that the carving carries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from moe_local.demo.source import DenseModel, Report, write_tokenizer
from moe_local.errors import CheckpointError

FINGERPRINT_ROWS = 16
FINGERPRINT_TOLERANCE = 0.05
RIDGE = 0.02
MOST_TOKEN_WEIGHT = 20.0

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
    """How each SwiGLU of `intermediate` neurons is cut: `shared` of them always act, the rest are dealt into `experts`
    experts of `width` neurons, of which `top_k` act on a token. The first `first_dense` layers stay whole."""

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

    `order` `[L, intermediate]` lists the neurons: the shared ones, then each expert's. `router` `[L, experts, hidden]`
    and `bias` `[L, experts]` are the routers'. `fingerprint` `[layers, 16]` recognises the weights it was made for.
    `tokens` `[sequences, length]` are the calibration tokens for the down projections; there may be none.
    """

    shape: CarvingShape
    order: torch.Tensor
    router: torch.Tensor
    bias: torch.Tensor
    fingerprint: torch.Tensor
    tokens: torch.Tensor

    def write(self, path: Path) -> None:
        """Writes the carving as one safetensors file."""
        tensors = {
            "order": self.order.to(torch.int16),
            "router": self.router.to(torch.bfloat16),
            "bias": self.bias.float(),
            "fingerprint": self.fingerprint.float(),
            "tokens": self.tokens.to(torch.int32),
        }
        shape = {name: str(value) for name, value in asdict(self.shape).items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=shape)

    @classmethod
    def read(cls, path: Path) -> Carving:
        """Reads what `write` wrote. Raises `CheckpointError` for a file that is not a sound carving."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                shape = CarvingShape(**{name: int(value) for name, value in metadata.items()})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            carving = cls(shape=shape, **tensors)
            carving.check()
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a carving ({error})", remedy="install moe-local again, or carve anew"
            ) from error
        return carving

    def check(self) -> None:
        """Raises `ValueError` unless the tensors have the shapes that `shape` promises and every neuron comes once."""
        count, shape = len(self.shape.moe_layers), self.shape
        expected = {
            "order": (count, shape.intermediate),
            "router": (count, shape.experts, shape.hidden),
            "bias": (count, shape.experts),
        }
        for name, size in expected.items():
            if tuple(getattr(self, name).shape) != size:
                raise ValueError(f"{name} is {tuple(getattr(self, name).shape)}, not {size}")
        every_neuron = torch.arange(shape.intermediate).expand(count, -1)
        if not torch.equal(self.order.long().sort(dim=1).values, every_neuron):
            raise ValueError("order does not list every neuron once")

    def fits(self, dense: DenseModel) -> bool:
        """Whether these are the weights it was made for, give or take a quantisation's error."""
        config, shape = dense.config, self.shape
        sizes = (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])
        if sizes != (shape.layers, shape.hidden, shape.intermediate):
            return False
        found = fingerprint(dense)
        return bool(((found - self.fingerprint).abs() <= FINGERPRINT_TOLERANCE * self.fingerprint).all())


def fingerprint(dense: DenseModel) -> torch.Tensor:
    """Norms of each layer's first gate rows, `[layers, 16]`: the same for a quantised copy, other for other weights."""
    names = [f"model.layers.{layer}.mlp.gate_proj.weight" for layer in range(dense.config["num_hidden_layers"])]
    return torch.stack([dense.tensors[name][:FINGERPRINT_ROWS].float().norm(dim=1) for name in names])


# One layer's mathematics


@dataclass(frozen=True)
class SwiGLU:
    """One dense feed-forward block: `gate` and `up` `[intermediate, hidden]`, `down` `[hidden, intermediate]`."""

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


def route(x: torch.Tensor, router: torch.Tensor, bias: torch.Tensor, top_k: int) -> torch.Tensor:
    """The weight of every expert for every token, `[T, experts]`, 0 where it is not chosen; a row sums to `top_k`.

    Sigmoid scores; the bias decides the choice and not the weights, as in GLM-4.5 and DeepSeek-V3.
    """
    scores = (x.float() @ router.float().T).sigmoid()
    chosen = (scores + bias).topk(top_k, dim=-1).indices
    weights = torch.zeros_like(scores).scatter_(1, chosen, scores.gather(1, chosen))
    return weights * (top_k / weights.sum(dim=-1, keepdim=True))


def spread(weights: torch.Tensor, shape: CarvingShape) -> torch.Tensor:
    """Expert weights `[T, experts]` as neuron weights `[T, intermediate]`; the shared neurons weigh 1."""
    shared = weights.new_ones(len(weights), shape.shared)
    return torch.cat([shared, weights.repeat_interleave(shape.width, dim=1)], dim=1)


def refit_down(
    block: SwiGLU, x: torch.Tensor, neuron_weights: torch.Tensor, token_weights: torch.Tensor, ridge: float = RIDGE
) -> torch.Tensor:
    """The down projection that comes closest to the whole block's output, given the routing: `[hidden, intermediate]`.

    Weighted ridge regression toward the old projection, the penalty in proportion to each neuron's own energy, so that
    a neuron seldom chosen keeps what it had. `x` is `[T, hidden]`, `neuron_weights` `[T, intermediate]`,
    `token_weights` `[T]`.
    """
    act = block.activations(x)
    missing = (act * (1 - neuron_weights)) @ block.down.T  # [T, hidden]
    features = act.mul_(neuron_weights).mul_(token_weights.sqrt()[:, None])
    gram = features.T @ features
    energy = gram.diagonal().clone()
    gram.diagonal().add_(ridge * energy + 1e-6 * energy.mean())
    wanted = features.T @ (missing * token_weights.sqrt()[:, None])
    change = torch.cholesky_solve(wanted, torch.linalg.cholesky(gram))  # [intermediate, hidden]
    return block.down + change.T


# The dense model's states


def build_dense(dense: DenseModel, dtype: torch.dtype) -> Any:
    """The dense model as transformers' `LlamaForCausalLM`, in `dtype`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {name: dense.config[name] for name in SHARED_FIELDS if name in dense.config}
    rope = {"rope_type": "default", "rope_theta": dense.config["rope_theta"]}
    model = LlamaForCausalLM(LlamaConfig(**fields, rope_parameters=rope, dtype=dtype)).to(dtype)
    model.load_state_dict(dense.tensors | {"lm_head.weight": dense.tensors["model.embed_tokens.weight"]})
    return model.eval()


def watch_mlps(model: Any, see: Callable[[int, torch.Tensor, torch.Tensor], None]) -> list[Any]:
    """Calls `see(layer, x, token_weights)` whenever a layer's feed-forward block is about to run.

    `x` `[T, hidden]` is its normed input, `token_weights` `[T]` is 1 / ||residual||^2: a change of the block's output
    matters in proportion to the stream that it is added to, and one token's stream can be a thousand times another's.
    Returns the hooks' handles.
    """

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            residual = args[0].flatten(0, 1).float()
            see(layer, output.flatten(0, 1), residual.square().sum(dim=1).reciprocal())

        return hook

    return [
        layer.post_attention_layernorm.register_forward_hook(hook_for(number))
        for number, layer in enumerate(model.model.layers)
    ]


def refit_all(dense: DenseModel, carving: Carving, report: Report) -> dict[int, torch.Tensor]:
    """Every carved layer's down projection, solved on the carving's own tokens; in the carving's order of neurons.

    The dense model reads the tokens once, and each layer is solved as its states go by, so none are kept.
    """
    if not carving.tokens.numel():
        return {}
    shape, solved = carving.shape, dict[int, torch.Tensor]()

    def solve(layer: int, x: torch.Tensor, token_weights: torch.Tensor) -> None:
        report("fitting the experts", layer / shape.layers)
        if layer in shape.moe_layers:
            at = layer - shape.first_dense
            weights = route(x, carving.router[at], carving.bias[at], shape.top_k)
            block = SwiGLU.of(dense, layer).reordered(carving.order[at].long())
            solved[layer] = refit_down(block, x.float(), spread(weights, shape), even_out(token_weights))

    model = build_dense(dense, torch.bfloat16)
    watch_mlps(model, solve)
    with torch.inference_mode():
        model.model(input_ids=carving.tokens.long(), use_cache=False)
    return solved


def even_out(token_weights: torch.Tensor) -> torch.Tensor:
    """Token weights in units of their median, none above `MOST_TOKEN_WEIGHT`: a handful of tokens decides nothing."""
    return (token_weights / token_weights.median()).clamp(max=MOST_TOKEN_WEIGHT)


# The checkpoint


def convert(dense: DenseModel, carving: Carving, directory: Path, report: Report) -> None:
    """Writes the carved model into `directory` as a `glm4_moe` checkpoint in bfloat16, tokenizer included (about 275 MB).

    Raises `CheckpointError` when the carving was made for other weights, and `OSError` or `SafetensorError` when the
    disk refuses.
    """
    if not carving.fits(dense):
        raise CheckpointError(f"{dense.origin}: these weights are not those that the carving was made for")
    downs = refit_all(dense, carving, report)
    report("writing the checkpoint", 0.0)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in moe_tensors(dense, carving, downs)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", moe_config(dense.config, carving.shape))
    write_json(directory / "generation_config.json", generation_config(dense.config))
    write_tokenizer(dense.tokenizer, directory)
    report("writing the checkpoint", 1.0)


def moe_tensors(
    dense: DenseModel, carving: Carving, downs: Mapping[int, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's tensors under their names. `downs` are refitted down projections; a layer may lack one."""
    carved = {f"model.layers.{layer}.mlp." for layer in carving.shape.moe_layers}
    for name, tensor in dense.tensors.items():
        if not any(name.startswith(prefix) for prefix in carved):
            yield name, tensor
    for at, layer in enumerate(carving.shape.moe_layers):
        block = SwiGLU.of(dense, layer).reordered(carving.order[at].long())
        block = SwiGLU(block.gate, block.up, downs.get(layer, block.down))
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
    """The `glm4_moe` config. With `routed_scaling_factor` = top-k the chosen experts weigh about 1, as they did uncut."""
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
    """Where an answer ends and what pads it."""
    return {f"{kind}_token_id": config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a mapping as an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8", newline="\n")
