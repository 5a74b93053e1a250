"""What bindings are particular about: dropped tokens, experts without weights, names and sizes as published."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import DbrxConfig

from moe_local.checkpoint.architecture import build_skeleton, load_config, model_class
from moe_local.checkpoint.bindings import BINDINGS, REFUSED
from moe_local.checkpoint.files import Checkpoint
from moe_local.engine import Engine, load
from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.planning.options import Options
from moe_local.store import first_use, pack, verify
from moe_local.testing import (
    Architecture,
    architecture,
    architectures,
    eager_model,
    tiny_inputs,
    whole_architectures,
    write_tiny_checkpoint,
)
from moe_local.testing.quantised import rewrite_checkpoint
from moe_local.testing.shrunk_config import NUM_EXPERTS

BOUND = [found for found in architectures() if found.name in BINDINGS]
BEFORE_CAPACITY = Version(transformers.__version__) < Version("5.18")  # Switch's router dropped nothing
HALF = Options(device="cpu", context=64, experts=0.5)


class Choices:
    """A routing hook that keeps what each layer chose in the last pass."""

    def __init__(self) -> None:
        self.index: dict[int, Tensor] = {}

    def __call__(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        self.index[layer] = index.clone()
        return index, weights

    @property
    def experts(self) -> dict[int, set[int]]:
        return {layer: set(index.flatten().tolist()) for layer, index in self.index.items()}


def _run(engine: Engine, found: Architecture, tokens: int = 12) -> Choices:
    choices = Choices()
    engine.tap(choices)
    with torch.no_grad():
        engine.model(**tiny_inputs(found, tokens=tokens))
    return choices


@pytest.mark.parametrize("found", BOUND, ids=lambda found: found.id)
def test_most_experts_are_used(found: Architecture, tmp_path: Path) -> None:
    write_tiny_checkpoint(found, tmp_path)
    with load(tmp_path, HALF) as engine:
        for used in _run(engine, found, tokens=64).experts.values():
            assert len(used & set(range(NUM_EXPERTS))) >= NUM_EXPERTS // 2


@pytest.mark.parametrize("name", ["switch_transformers", "nllb_moe"])
def test_the_same_tokens_are_dropped(name: str, tmp_path: Path) -> None:
    """And no expert is read for one that has no room with any."""
    found = architecture(name)
    write_tiny_checkpoint(found, tmp_path)
    routed: list[Tensor] = []  # of each layer [T, experts], zero where transformers' router gives a token no place
    reference = eager_model(found, tmp_path)
    for module in reference.modules():
        if type(module).__name__.endswith("Router"):
            module.register_forward_hook(lambda module, given, out: routed.append(_places(out)))
    with torch.no_grad():
        reference(**tiny_inputs(found))
    with load(tmp_path, HALF) as engine:
        chosen = _run(engine, found)
        fetched = engine.stats()["hits"] + engine.stats()["misses"]
    dropped = 0
    for places, (_, index) in zip(routed, sorted(chosen.index.items()), strict=True):
        for token, experts in enumerate(index.tolist()):
            assert {each for each in experts if each < NUM_EXPERTS} == set(places[token].nonzero().flatten().tolist())
            dropped += sum(each == NUM_EXPERTS for each in experts)
    assert dropped or (name == "switch_transformers" and BEFORE_CAPACITY)
    assert fetched == sum(len(used - {NUM_EXPERTS}) for used in chosen.experts.values())


def _places(out: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """[T, experts] of what a router gives: Switch's mask, NLLB's gates."""
    mask, gates, _ = out
    if gates.shape[-1] == NUM_EXPERTS and gates.dtype.is_floating_point:
        return gates
    return (gates if mask.is_floating_point() else mask).reshape(-1, NUM_EXPERTS)


def test_nllb_runs_the_experts_that_its_router_chose(tmp_path: Path) -> None:
    """transformers' own code runs the first two of them only."""
    found = architecture("nllb_moe")
    write_tiny_checkpoint(found, tmp_path)
    with load(tmp_path, HALF) as engine:
        assert all(len(used - {NUM_EXPERTS}) > 2 for used in _run(engine, found).experts.values())


def test_experts_without_weights_are_not_read(tmp_path: Path) -> None:
    found = architecture("longcat_flash")
    write_tiny_checkpoint(found, tmp_path)
    with load(tmp_path, HALF) as engine:
        chosen = _run(engine, found).experts
        fetched = engine.stats()["hits"] + engine.stats()["misses"]
    weightless = {layer: {each for each in used if each >= NUM_EXPERTS} for layer, used in chosen.items()}
    assert any(weightless.values())
    assert fetched == sum(len(used - weightless[layer]) for layer, used in chosen.items())


def _assert_same_logits(found: Architecture, one: Path, other: Path) -> None:
    logits = []
    for directory in (one, other):
        with load(directory, HALF) as engine, torch.no_grad():
            logits.append(engine.model(**tiny_inputs(found)).logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_longcat_as_published_has_no_gates_of_what_has_no_weights(tmp_path: Path) -> None:
    """transformers writes them, and cannot read the model without."""
    found = architecture("longcat_flash")
    source = write_tiny_checkpoint(found, tmp_path / "source")

    def publish(name: str, tensor: Tensor) -> dict[str, Tensor]:
        _, _, rest = name.partition(".experts.")
        return {} if rest and int(rest.split(".")[0]) >= NUM_EXPERTS else {name: tensor}

    published = rewrite_checkpoint(source, tmp_path / "published", publish, None)
    assert len(Checkpoint.open(published).tensors) < len(Checkpoint.open(source).tensors)
    _assert_same_logits(found, source, published)


@pytest.mark.parametrize("id", ["llama4", "llama4-whole"])
def test_llama4_an_expert_at_a_time(id: str, tmp_path: Path) -> None:
    """As quantisers publish it, who have each expert a module of its own."""
    found = architecture(id)
    source = write_tiny_checkpoint(found, tmp_path / "source")

    def publish(name: str, tensor: Tensor) -> dict[str, Tensor]:
        prefix, experts, projection = name.rpartition(".experts.")
        if not experts:
            return {name: tensor}
        parts = {"gate_proj": 0, "up_proj": 1} if projection == "gate_up_proj" else {"down_proj": 0}
        pieces = tensor.transpose(1, 2).chunk(len(parts), dim=1)
        return {
            f"{prefix}.experts.{expert}.{part}.weight": pieces[at][expert].clone()
            for part, at in parts.items()
            for expert in range(NUM_EXPERTS)
        }

    _assert_same_logits(found, source, rewrite_checkpoint(source, tmp_path / "published", publish, None))


def test_dbrx_turns_as_its_attention_says(tmp_path: Path) -> None:
    """As its makers publish it: the base of the rotary embedding is in `attn_config` alone."""
    config: dict[str, Any] = {
        "model_type": "dbrx",
        "architectures": ["DbrxForCausalLM"],
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "model_type": "", "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4, "model_type": ""},
        "d_model": 6144,
        "max_seq_len": 32768,
        "n_heads": 48,
        "n_layers": 1,
        "vocab_size": 100352,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    known = load_config(Checkpoint(tmp_path, config, {}))
    assert isinstance(known, DbrxConfig)
    assert known.rope_parameters["rope_theta"] == 500000
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_config": {"rope_theta": "many"}}))
    with pytest.raises(CheckpointError):
        wrong = load_config(Checkpoint(tmp_path, config, {}))
        build_skeleton(model_class(wrong), wrong, torch.float32)


@pytest.mark.parametrize("top_k", [0, -1, NUM_EXPERTS + 1])
def test_dbrx_that_chooses_no_expert_or_too_many(top_k: int, tmp_path: Path) -> None:
    write_tiny_checkpoint(architecture("dbrx"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["ffn_config"]["moe_top_k"] = top_k
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="moe_top_k"), load(tmp_path, HALF):
        pass


def test_longcat_without_experts_is_refused(tmp_path: Path) -> None:
    write_tiny_checkpoint(architecture("longcat_flash"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_routed_experts": 0}))
    with pytest.raises(MoeLocalError), load(tmp_path, HALF):
        pass


@pytest.mark.parametrize("found", BOUND, ids=lambda found: found.id)
def test_an_int4_store_runs(found: Architecture, tmp_path: Path) -> None:
    """Near the numbers of the checkpoint, and the same again at the least budget."""
    write_tiny_checkpoint(found, tmp_path / "source")
    store = pack(first_use.plan(tmp_path / "source", first_use.choose("int4", 32, "keep")), tmp_path / "store")
    assert verify(store) == []
    logits = []
    for directory, options in (
        (tmp_path / "source", HALF),
        (store, HALF),
        (store, Options(device="cpu", context=64, experts=0.25)),
    ):
        with load(directory, options) as engine, torch.no_grad():
            logits.append(engine.model(**tiny_inputs(found)).logits.flatten())
    wanted, half, least = logits
    assert torch.cosine_similarity(half, wanted, dim=0) > 0.95
    torch.testing.assert_close(least, half, rtol=1e-4, atol=1e-4)


def test_every_moe_class_of_transformers_is_run_or_refused() -> None:
    """Classes that hold experts, in whatever shape. Those of the experts interface are found by `architectures`."""
    known = {found.name for found in (*architectures(), *whole_architectures())}
    strays = {name for folder, name in _classes_with_experts() if folder not in known and folder not in REFUSED}
    assert not strays, f"no binding, and no reason in REFUSED: {', '.join(sorted(strays))}"


def test_what_is_refused_is_there() -> None:
    assert set(REFUSED) <= {folder for folder, _ in _classes_with_experts()}


def _classes_with_experts() -> Iterator[tuple[str, str]]:
    """Folder and name of transformers' classes that say how many experts they have, or hold them."""
    for file in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and any(map(_is_of_experts, ast.walk(node))):
                yield file.parent.name, node.name


def _is_of_experts(node: ast.AST) -> bool:
    """`self.experts = ...`, or `self.num_experts`, under any of its names."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr.rpartition("_")[2] == "experts"
    )
