"""MLX's checkpoints: stacked experts, integers packed along rows. Its library needs Apple's machines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.schemes import understood
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.planning.plan_load import plan_load
from moe_local.store import first_use, pack, verify
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.quantised import assert_runs_as, decode_checkpoint, is_linear

MIXTRAL = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def bits_in_a_row(codes: Tensor, bits: int) -> Tensor:
    """[out, in] -> U32 words, through the text of every bit: slow, and sure."""
    rows = []
    for row in codes.tolist():
        stream = "".join(format(code, f"0{bits}b")[::-1] for code in row)
        rows.append([int(stream[at : at + 32][::-1], 2) for at in range(0, len(stream), 32)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.uint32)


def quantise(weight: Tensor, bits: int, group: int) -> tuple[dict[str, Tensor], Tensor]:
    rows = weight.view(len(weight), -1, group)
    low, high = rows.amin(-1), rows.amax(-1)
    scales = ((high - low) / (2**bits - 1)).bfloat16()
    biases = low.bfloat16()
    codes = ((rows - biases.float()[..., None]) / scales.float()[..., None]).round().clamp(0, 2**bits - 1)
    meant = (codes * scales.float()[..., None] + biases.float()[..., None]).view(weight.shape)
    return {"weight": bits_in_a_row(codes.long().view(weight.shape), bits), "scales": scales, "biases": biases}, meant


def write(model_type: str, root: Path, settings: dict[str, Any], *, also: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """A checkpoint as MLX's tools make it, and the one that it means. `also` are names to quantise beside linears."""
    original = write_tiny_checkpoint(architecture(model_type), root / "original")
    tensors, plain = load_file(original / "model.safetensors"), {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if ".experts." not in name:
            plain[name] = tensor
            continue
        before, _, after = name.partition(".experts.")
        expert, projection, kind = after.split(".")
        stacks.setdefault(f"{before}.switch_mlp.{MIXTRAL.get(projection, projection)}.{kind}", {})[int(expert)] = (
            tensor
        )
    made, meant = {}, dict(tensors)
    for name, tensor in [*plain.items(), *((n, torch.stack([s[e] for e in sorted(s)])) for n, s in stacks.items())]:
        module = name.removesuffix(".weight")
        its = settings.get(module, settings)
        if not (is_linear(name, tensor) or tensor.ndim == 3 or module in also) or its is False:
            made[name] = tensor
            continue
        matrices = tensor if tensor.ndim == 3 else tensor[None]
        parts, values = zip(*(quantise(matrix, its["bits"], its["group_size"]) for matrix in matrices), strict=True)
        joined = {key: torch.stack([part[key].view(torch.int32) if key == "weight" else part[key] for part in parts])
                  for key in parts[0]}  # fmt: skip
        for key, value in joined.items():
            typed = value.view(torch.uint32) if key == "weight" else value
            made[f"{module}.{key}"] = typed if tensor.ndim == 3 else typed[0]
        if tensor.ndim == 2:
            meant[name] = values[0]
            continue
        before, _, projection = module.partition(".switch_mlp.")
        own = {v: k for k, v in MIXTRAL.items()}.get(projection) if model_type == "mixtral" else projection
        meant |= {f"{before}.experts.{e}.{own}.weight": value for e, value in enumerate(values)}
    for target, content in (("mlx", made), ("plain", meant)):
        shutil.copytree(original, root / target)
        save_file(
            {n: t.contiguous() for n, t in content.items()}, root / target / "model.safetensors", {"format": "mlx"}
        )
    config = json.loads((original / "config.json").read_text())
    config |= {"quantization": settings, "quantization_config": settings} if settings else {}
    (root / "mlx" / "config.json").write_text(json.dumps(config))
    return root / "mlx", root / "plain"


CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "4-bits": ("qwen3_moe", {"group_size": 32, "bits": 4}, ("model.embed_tokens", "model.layers.0.mlp.gate")),
    "mixtral": ("mixtral", {"group_size": 32, "bits": 4, "mode": "affine"}, ()),
    "8-bits": ("olmoe", {"group_size": 32, "bits": 8}, ()),
    "6-bits": ("qwen3_moe", {"group_size": 32, "bits": 6}, ()),
    "3-bits": ("qwen3_moe", {"group_size": 32, "bits": 3}, ()),
    "modules-of-their-own": (
        "qwen3_moe",
        {
            "group_size": 32,
            "bits": 4,
            "model.layers.0.mlp.switch_mlp.down_proj": {"group_size": 32, "bits": 8},
            "model.layers.1.mlp.switch_mlp.up_proj": False,
            "model.layers.0.self_attn.q_proj": False,
        },
        (),
    ),
    "not-quantised": ("qwen3_moe", {}, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_every_variant(case: str, tmp_path: Path) -> None:
    model_type, settings, also = CASES[case]
    if not settings:
        settings_used: dict[str, Any] = {}
        quantised, plain = _unquantised(model_type, tmp_path)
    else:
        settings_used = settings
        quantised, plain = write(model_type, tmp_path, settings, also=also)
    assert_runs_as(model_type, quantised, plain)
    job = first_use.plan(quantised, first_use.choose())
    if settings_used.get("bits") in (3, 4) and len(settings_used) < 4:
        assert job.expert_formats == "int4-g32"
    assert verify(pack(job, tmp_path / "store")) == []


def _unquantised(model_type: str, root: Path) -> tuple[Path, Path]:
    quantised, plain = write(model_type, root, {"group_size": 32, "bits": 4})
    tensors = load_file(plain / "model.safetensors")
    stacks: dict[str, list[Tensor]] = {}
    for name in sorted(name for name in tensors if ".experts." in name):  # fewer than ten: in order of their numbers
        before, _, after = name.partition(".experts.")
        stacks.setdefault(f"{before}.switch_mlp.{after.partition('.')[2]}", []).append(tensors[name])
    content = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    save_file(content | {name: torch.stack(stack) for name, stack in stacks.items()}, quantised / "model.safetensors")
    shutil.copy(plain / "config.json", quantised / "config.json")
    return quantised, plain


BAD: list[tuple[dict[str, Any], type[MoeLocalError], str]] = [
    ({"quantization": {"group_size": 32, "bits": 7}}, UnsupportedError, "7 bits"),
    ({"quantization": {"group_size": 48, "bits": 4}}, CheckpointError, "groups of 48"),
    ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp8"}}, UnsupportedError, "mxfp8"),
    ({"quantization": {"group_size": 16, "bits": 4}}, CheckpointError, "has shape"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_is_wrong_is_named(
    tmp_path: Path, changes: dict[str, Any], error: type[MoeLocalError], message: str
) -> None:
    quantised, _ = write("qwen3_moe", tmp_path, {"group_size": 32, "bits": 4})
    config = json.loads((quantised / "config.json").read_text()) | changes
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        plan_load(quantised)


def test_models_of_which_mlx_changes_more_are_refused(tmp_path: Path) -> None:
    original = write_tiny_checkpoint(architecture("qwen3_next"), tmp_path / "original")
    tensors = load_file(original / "model.safetensors")
    tensors["model.layers.0.mlp.switch_mlp.up_proj.weight"] = torch.ones(2, 2, 2)
    save_file(tensors, original / "model.safetensors")
    with pytest.raises(UnsupportedError, match="qwen3_next"):
        plan_load(original)


@pytest.mark.parametrize("change", ["another model", "attention taken apart"])
def test_changes_without_a_stack_are_refused(change: str, tmp_path: Path) -> None:
    quantised, _ = write("qwen3_moe", tmp_path, {"group_size": 32, "bits": 4})
    if change == "another model":
        config = json.loads((quantised / "config.json").read_text()) | {"model_type": "gpt_oss"}
        (quantised / "config.json").write_text(json.dumps(config))
    else:
        tensors = load_file(quantised / "model.safetensors")
        tensors["model.layers.0.self_attn.embed_q.weight"] = torch.ones(2, 2, 2)
        save_file(tensors, quantised / "model.safetensors")
    with pytest.raises(UnsupportedError, match="MLX's weights"):
        understood(Checkpoint.open(quantised))


@pytest.mark.parametrize(("mode", "group"), [("mxfp4", 32), ("nvfp4", 16)])
def test_floats_of_4_bits(mode: str, group: int, tmp_path: Path) -> None:
    """Words of the codes 0 to 7, and one scale for all: 2."""
    shutil.copy(write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "original") / "config.json", tmp_path)
    scale = 128 if mode == "mxfp4" else int(torch.tensor(2.0).to(torch.float8_e4m3fn).view(torch.uint8))
    words = torch.full((4, 8), 0x76543210, dtype=torch.int64).to(torch.uint32)
    scales = torch.full((4, 64 // group), scale, dtype=torch.uint8)
    save_file({"a.weight": words, "a.scales": scales}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization"] = {"group_size": group, "bits": 4, "mode": mode}
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoded = decode_checkpoint(tmp_path, torch.float32)
    assert decoded["a.weight"][0, :8].tolist() == [0, 1, 2, 3, 4, 6, 8, 12]
    assert decoded["a.weight"].shape == (4, 64)
