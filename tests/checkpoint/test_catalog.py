"""The catalog: every expert's bytes are the parameter that transformers would load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_local.checkpoint.architecture import build_skeleton, experts_modules, load_config, model_class
from moe_local.checkpoint.catalog import Catalog, build_catalog
from moe_local.checkpoint.files import Checkpoint
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.formats.records import decode_projection
from moe_local.testing import architecture, write_tiny_checkpoint

LAYOUTS = {
    "mixtral": "one tensor a projection, w1 and w3 joined",
    "granitemoe": "fused",
    "gpt_oss": "fused, transposed, interleaved, with biases",
    "aria": "fused and transposed",
    "nemotron_h": "no gate",
    "inkling-whole": "fused and interleaved in the file only",
    "ernie4_5_vl_moe": "two kinds of experts in one run of numbers",
}


def catalog_of(directory: Path) -> Catalog:
    checkpoint = Checkpoint.open(directory)
    config = load_config(checkpoint)
    return build_catalog(checkpoint, build_skeleton(model_class(config), config, torch.float32))


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_are_the_parameters(name: str, tmp_path: Path) -> None:
    found = architecture(name)
    write_tiny_checkpoint(found, tmp_path, max_shard_bytes=300_000)
    catalog = catalog_of(tmp_path)
    modules = experts_modules(found.model_class.from_pretrained(tmp_path, dtype=torch.float32))
    for path, layer in catalog.layer_of.items():
        (layout,), records = catalog.layers[layer].kinds, catalog.layers[layer].records
        for parameter, value in modules[path].named_parameters(recurse=False):
            projection = layout.projections[parameter.removesuffix("_bias")]
            for expert, extents in enumerate(records):
                record = torch.zeros(layout.size, dtype=torch.uint8)
                for extent in extents:
                    with extent.file.open("rb") as stream:
                        stream.seek(extent.offset)
                        stream.readinto(record.numpy()[extent.position : extent.position + extent.length].data)
                if parameter.endswith("_bias"):
                    array = projection.bias
                    view = record[array.position :].view(array.dtype)[: array.shape[0]]
                else:
                    view = decode_projection(projection, record, torch.float32)
                wanted = value[expert]
                transposed = modules[path].is_transposed and wanted.ndim == 2
                assert torch.equal(view, wanted.mT if transposed else wanted)


def test_every_tensor_is_an_experts_or_dense(qwen: Path) -> None:
    checkpoint = Checkpoint.open(qwen)
    catalog = catalog_of(qwen)
    in_records = sum(e.length for layer in catalog.layers for record in layer.records for e in record)
    assert in_records + sum(entry.length for entry in catalog.dense.values()) == checkpoint.total_bytes
    assert not any(".experts." in name for name in catalog.dense)


def _rewrite(source: Path, target: Path, change: object) -> Path:
    """A single-file copy of a checkpoint with its tensors changed."""
    target.mkdir()
    tensors = {k: v for shard in source.glob("*.safetensors") for k, v in load_file(shard).items()}
    change(tensors)  # type: ignore[operator]
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for file in source.glob("*.json"):
        if "index" not in file.name:
            (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("expert", [0, 3, 7])
@pytest.mark.parametrize("projection", ["gate_proj", "down_proj"])
def test_a_tensor_missing_for_one_expert_is_named(qwen: Path, tmp_path: Path, expert: int, projection: str) -> None:
    name = f"model.layers.1.mlp.experts.{expert}.{projection}.weight"
    broken = _rewrite(qwen, tmp_path / "broken", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError) as caught:
        catalog_of(broken)
    assert name in str(caught.value) or f"({expert}, " in str(caught.value)


def test_all_experts_of_a_layer_missing(qwen: Path, tmp_path: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.2.mlp.experts" in name]:
            del tensors[name]

    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.experts"):
        catalog_of(_rewrite(qwen, tmp_path / "broken", drop))


def test_a_wrong_shape_is_named(qwen: Path, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.experts.2.up_proj.weight"
        tensors[name] = tensors[name][:-1].clone()

    with pytest.raises(MoeLocalError, match=r"layers\.0\.mlp\.experts"):
        catalog_of(_rewrite(qwen, tmp_path / "broken", cut))


def test_config_and_weights_disagree(qwen: Path, tmp_path: Path) -> None:
    broken = _rewrite(qwen, tmp_path / "broken", lambda tensors: None)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "moe_intermediate_size": 48}))
    with pytest.raises(CheckpointError, match="shape"):
        catalog_of(broken)


def test_experts_of_one_layer_may_differ_in_layout(qwen: Path, tmp_path: Path) -> None:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for projection in ("gate_proj", "up_proj", "down_proj"):
            name = f"model.layers.0.mlp.experts.2.{projection}.weight"
            tensors[name] = tensors[name].bfloat16()

    layer, *others = catalog_of(_rewrite(qwen, tmp_path / "mixed", narrow)).layers
    wide, half = layer.kinds
    assert [expert for expert, layout in enumerate(layer.layouts) if layout is half] == [2]
    assert half.size < wide.size == layer.size
    assert all(len(other.kinds) == 1 for other in others)


def test_a_needed_tensor_of_an_unknown_type_is_refused(qwen: Path, tmp_path: Path) -> None:
    """Of an expert or of the dense part; one that the model does not have does no harm."""
    for tensor in ("model.norm.weight", "model.layers.0.mlp.experts.2.up_proj.weight", None):
        copy = _rewrite(qwen, tmp_path / str(tensor), lambda tensors: tensors.update(stray=torch.ones(1).double()))
        file = copy / "model.safetensors"
        content = bytearray(file.read_bytes())
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        header[tensor or "stray"]["dtype"] = "I4"
        text = json.dumps(header).encode()
        file.write_bytes(
            len(text).to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :]
        )
        if tensor is None:
            assert "stray" not in catalog_of(copy).dense
            continue
        with pytest.raises(UnsupportedError, match=f"{tensor}.*of type I4"):
            catalog_of(copy)
