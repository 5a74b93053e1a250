"""`plan`, from a config.json, and `inspect`, from a checkpoint's headers, say the same of a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_local.checkpoint.record import PLAIN as RAW
from moe_local.formats.registry import packed_encoding
from moe_local.kernels.matrix import kernel_for
from moe_local.planning.estimate import estimate
from moe_local.planning.families import FAMILIES, model_sizes
from moe_local.planning.known_models import find_sizes, shipped
from moe_local.planning.locality import UNIFORM, get_locality
from moe_local.planning.machines import Machine
from moe_local.planning.needs import Needs
from moe_local.planning.options import Options
from moe_local.planning.plan_load import LoadPlan, plan_load
from moe_local.planning.sizes import Matrices, ModelSizes
from moe_local.planning.weights import EXPERT_FORMATS, Formats, decoded, needs_of
from moe_local.store import first_use, pack
from moe_local.testing import architecture, tiny_config, write_tiny_checkpoint
from moe_local.testing.hollow import write_hollow_checkpoint
from moe_local.units import GIB

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"),
    reason="transformers holds the routers of some architectures in float32 since 5.24; plan counts them so",
)

PLAIN = Formats("bf16", 64, "keep")
POSITIONS = 1024  # bytes: tables of positions, buffers that no config.json tells of
PAGE = 4096  # bytes: what our own records are rounded up to, and those of a checkpoint are not
MEMORY = 4096 * GIB
# Tokens: a length that KV buffers are rounded up from, and all that a tiny model has.
CONTEXTS = (100, 512)


def both(config: PreTrainedConfig, sizes: ModelSizes, directory: Path, context: int, *, gpu: bool) -> LoadPlan:
    """The plan of a hollow checkpoint, compared with what its sizes say, for a machine with or without VRAM."""
    if not (directory / "config.json").exists():
        write_hollow_checkpoint(config, directory)
    vram = MEMORY if gpu else None
    load_plan = plan_load(directory, Options(other_machine=True, ram=MEMORY, vram=vram, context=context))
    sizes = as_in_the_files(sizes, load_plan)
    machine = Machine("one", "a machine", MEMORY, vram, 1.0, 1.0, 1.0)
    planned = estimate(sizes, machine, PLAIN, context, get_locality(UNIFORM)).plan
    assert_same(planned.needs, load_plan.plan.needs)
    for name in ("ram_overhead", "vram_overhead", "device_slots", "host_slots"):
        assert getattr(planned, name) == getattr(load_plan.plan, name), name
    return load_plan


def as_in_the_files(sizes: ModelSizes, load_plan: LoadPlan) -> ModelSizes:
    """With an expert's matrices as the checkpoint has them: most have gate and up apart, a store of ours together."""
    projections = load_plan.catalog.layers[0].layouts[0].projections.values()
    return replace(sizes, expert=tuple(Matrices(*m.shape) for found in projections for m in found.matrices))


def assert_same(estimated: Needs, measured: Needs) -> None:
    assert 0 <= measured.dense - estimated.dense <= POSITIONS
    assert estimated.slot == -(-measured.slot // PAGE) * PAGE
    for name in (
        "kv_cache",
        "workspace",
        "workspaces",
        "experts",
        "all_experts",
        "top_k",
        "token_set",
        "embedding_rows",
    ):
        assert getattr(estimated, name) == getattr(measured, name), name


@pytest.mark.parametrize("name", [known["name"] for known in shipped().values()])
def test_known_models(name: str, tmp_path: Path) -> None:
    fields = {**shipped()[name.lower()]["config"]}
    fields.pop("quantization_config", None)
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    load_plans = [both(config, find_sizes(name), tmp_path, 4096, gpu=gpu) for gpu in (False, True)]
    assert [load_plan.device.type for load_plan in load_plans] == ["cpu", "cuda"]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("gpu", [False, True], ids=["in-ram", "in-vram"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, gpu: bool, context: int, tmp_path: Path) -> None:
    found = architecture(name)
    config = found.config_class(**tiny_config(found).to_dict())
    both(config, sizes_of(config, name), tmp_path, context, gpu=gpu)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral", {"sliding_window": 16}),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3}),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 16}),
        ("gpt_oss", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"], "sliding_window": 16}),
    ],
    ids=str,
)
def test_windows(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Layers that keep the last tokens alone."""
    found = architecture(name)
    config = found.config_class(**{**tiny_config(found).to_dict(), "layer_types": None, **changes})
    sizes = sizes_of(config, name)
    assert sizes.attention.sliding > 0
    load_plan = both(config, sizes, tmp_path, 512, gpu=False)
    assert load_plan.plan.needs.kv_cache < 2 * 512 * sizes.kv_per_token


def sizes_of(config: PreTrainedConfig, name: str) -> ModelSizes:
    return model_sizes(json.loads(json.dumps(config.to_dict())), name)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v2"])
@pytest.mark.parametrize(
    "formats", [Formats("int8", 32, "int8"), Formats("mxfp4", 32, "keep"), Formats("int4", 32, "int4")]
)
def test_stores(name: str, formats: Formats, tmp_path: Path) -> None:
    """A packed model, in the formats that it was packed into."""
    source = write_tiny_checkpoint(architecture(name), tmp_path / "source", dtype=torch.bfloat16)
    packing = first_use.choose(formats.experts, formats.group, formats.dense)
    store = pack(first_use.plan(source, packing), tmp_path / "store")
    load_plan = plan_load(store, Options(other_machine=True, ram=MEMORY, context=512))
    assert_same(needs_of(find_sizes(str(source)), formats, 512), load_plan.plan.needs)


@pytest.mark.parametrize("gpu", [False, True], ids=["in-ram", "in-vram"])
@pytest.mark.parametrize("format", EXPERT_FORMATS)
def test_what_is_decoded_is_what_kernels_say(format: str, gpu: bool) -> None:
    sizes = find_sizes("Qwen/Qwen3-30B-A3B")
    encoding = packed_encoding(format)
    kernel = kernel_for(encoding, torch.device("cuda" if gpu else "cpu"), (1536, 2048))
    found = list(decoded(sizes, Formats(format, 64, "keep"), gpu=gpu))
    assert bool(found) == (encoding not in RAW.values() and kernel.decodes)
