"""Every MoE architecture of the installed transformers: written, read again, run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel

from moe_local.checkpoint.bindings import BINDINGS
from moe_local.testing import (
    Architecture,
    architecture,
    architectures,
    tiny_config,
    tiny_inputs,
    tiny_model,
    tiny_tokenizer,
    whole_architectures,
    write_tiny_checkpoint,
)
from moe_local.testing.eager import mended
from moe_local.testing.shrunk_config import NUM_EXPERTS
from tests.processes import python

EVERY = (*architectures(), *whole_architectures())

# What makes an experts module unreachable for text: it is part of an image encoder.
SEEING = ("vision", "visual")

# Tensors of the first layer with experts, as published.
PUBLISHED_NAMES = {
    "deepseek_v3": "model.layers.1.mlp.experts.7.gate_proj.weight",
    "ernie4_5_vl_moe": "model.layers.1.mlp.experts.15.down_proj.weight",
    "gpt_oss": "model.layers.0.mlp.experts.gate_up_proj_bias",
    "granitemoe": "model.layers.0.block_sparse_moe.input_linear.weight",
    "inkling-whole": "model.llm.layers.0.mlp.experts.w13_weight",
    "mixtral": "model.layers.0.block_sparse_moe.experts.7.w1.weight",
    "qwen3_moe": "model.layers.0.mlp.experts.7.up_proj.weight",
}


@pytest.fixture(params=EVERY, ids=lambda found: found.id)
def found(request: pytest.FixtureRequest) -> Architecture:
    parameter: Architecture = request.param
    return parameter


def test_survives_saving_and_runs(found: Architecture, tmp_path: Path) -> None:
    model = tiny_model(found)
    write_tiny_checkpoint(found, tmp_path)
    loaded, report = found.model_class.from_pretrained(
        tmp_path, experts_implementation="eager", output_loading_info=True
    )

    mended(found, loaded)
    assert not any(report.values()), report
    assert_same_tensors(loaded, model)
    assert_same_tensors(tiny_model(found), model)
    assert constant_parameters(model) == []

    inputs = tiny_inputs(found)
    logits = run(model, inputs)
    assert logits.isfinite().all()
    # Not exactly: tensors mapped from a file begin at other addresses, and matmuls round by alignment.
    torch.testing.assert_close(run(loaded, inputs), logits, rtol=1e-4, atol=1e-4)
    if found.can_generate:
        generated = loaded.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False)
        assert 12 < generated.shape[1] <= 16


@pytest.mark.parametrize("found", [each for each in EVERY if each.name not in BINDINGS], ids=lambda found: found.id)
def test_uses_most_experts(found: Architecture) -> None:
    model = tiny_model(found)
    with recorded_routes(model, found) as routes:
        run(model, tiny_inputs(found, tokens=64))

    unreachable = [name for name, used in routes.items() if not used and any(part in name for part in SEEING)]
    reachable = {name: used for name, used in routes.items() if name not in unreachable}
    assert len(reachable) >= 2
    assert all(len(used) >= NUM_EXPERTS // 2 for used in reachable.values()), reachable
    assert all(used <= set(range(NUM_EXPERTS + 1)) for used in reachable.values()), reachable


def test_is_discovered() -> None:
    found = {each.name: each for each in architectures()}
    assert len(found) >= 50
    assert found["mixtral"].model_class.__name__ == "MixtralForCausalLM"
    assert found["qwen3_vl_moe"].model_class.__name__ == "Qwen3VLMoeForConditionalGeneration"
    assert found["openai_privacy_filter"].model_class.__name__ == "OpenAIPrivacyFilterForTokenClassification"
    assert found["gemma4"].model_class.__name__ == "Gemma4ForCausalLM"
    assert architecture("gemma4-whole").model_class.__name__ == "Gemma4ForConditionalGeneration"


def test_ids_are_unique() -> None:
    assert len({each.id for each in EVERY}) == len(EVERY)
    assert {each.id for each in architectures() if each.name == "qwen3_omni_moe"} == {
        "qwen3_omni_moe-Qwen3OmniMoeThinkerTextExperts",
        "qwen3_omni_moe-Qwen3OmniMoeTalkerTextExperts",
    }


def test_names_an_unknown_architecture() -> None:
    with pytest.raises(KeyError, match="no_such_moe"):
        architecture("no_such_moe")


def test_tells_what_cannot_generate() -> None:
    assert {each.name for each in EVERY if not each.can_generate} == {
        "diffusion_gemma",
        "openai_privacy_filter",
        "qwen3_omni_moe",
        *(each.name for each in EVERY if each.is_encoder_decoder),
    }
    assert {each.name for each in EVERY if each.is_encoder_decoder} == {"nllb_moe", "switch_transformers"}


@pytest.mark.parametrize(("name", "tensor"), PUBLISHED_NAMES.items())
def test_publishes_the_names_that_people_have(name: str, tensor: str, tmp_path: Path) -> None:
    write_tiny_checkpoint(architecture(name), tmp_path)
    assert tensor in tensor_names(tmp_path)


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    mixtral = architecture("mixtral")
    first, again, other = (write_tiny_checkpoint(mixtral, tmp_path / str(n), seed=n % 2) for n in (0, 2, 1))
    weights = "model.safetensors"
    assert (first / weights).read_bytes() == (again / weights).read_bytes()
    assert (first / weights).read_bytes() != (other / weights).read_bytes()


def test_leaves_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny_model(architecture("mixtral"))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_shards(tmp_path: Path) -> None:
    write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path, max_shard_bytes=300_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert tensor_names(tmp_path) == set(index["weight_map"])


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss", "granitemoehybrid", "qwen3_next"])
def test_writes_bfloat16(name: str, tmp_path: Path) -> None:
    found = architecture(name)
    write_tiny_checkpoint(found, tmp_path, dtype=torch.bfloat16)
    loaded = found.model_class.from_pretrained(tmp_path, experts_implementation="eager")
    experts = [module for module in loaded.modules() if isinstance(module, found.experts_class)]
    assert {parameter.dtype for module in experts for parameter in module.parameters()} == {torch.bfloat16}
    assert run(loaded, tiny_inputs(found)).isfinite().all()


def test_tokenizer_chats(tmp_path: Path) -> None:
    found = architecture("qwen3_moe")
    write_tiny_checkpoint(found, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "What is the weather like in Tromsø, and where? 世界"}]
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    prompt = encoded["input_ids"]

    assert tokenizer.decode(prompt[0]) == f"<|bos|><|user|>{turns[0]['content']}<|eos|><|assistant|>"
    loaded = found.model_class.from_pretrained(tmp_path)
    answer = loaded.generate(prompt, max_new_tokens=8, do_sample=False)
    assert isinstance(tokenizer.decode(answer[0, prompt.shape[1] :]), str)


def test_tokenizer_agrees_with_the_config() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(architecture("mixtral"))
    assert len(tokenizer) <= config.vocab_size
    assert tokenizer.convert_tokens_to_ids(["<|pad|>", "<|bos|>", "<|eos|>"]) == [0, 1, 2]
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert len(tokenizer("the and", add_special_tokens=False)["input_ids"]) < len("the and")


def test_importing_the_package_imports_no_torch() -> None:
    check = "import sys, moe_local.testing; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    python(check)


def run(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


@contextmanager
def recorded_routes(model: PreTrainedModel, found: Architecture) -> Iterator[dict[str, set[int]]]:
    """The indices that each experts module, by name, is called with."""
    routes: dict[str, set[int]] = defaultdict(set)

    def record(name: str, indices: torch.Tensor) -> None:
        routes[name] |= set(indices.flatten().tolist())

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs[1]))
        for name, module in model.named_modules()
        if isinstance(module, found.experts_class) and routes[name] == set()
    ]
    yield routes
    for handle in handles:
        handle.remove()


def assert_same_tensors(model: PreTrainedModel, other: PreTrainedModel) -> None:
    tensors, others = model.state_dict(), other.state_dict()
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def constant_parameters(model: PreTrainedModel) -> list[str]:
    parameters = model.named_parameters()
    return [name for name, tensor in parameters if tensor.numel() > 1 and tensor.min() == tensor.max()]


def tensor_names(directory: Path) -> set[str]:
    names: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    return names
