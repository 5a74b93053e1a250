"""A checkpoint's tokenizer: from the files beside its weights, or out of its GGUF file."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.gguf_header import metadata_alone, read_gguf_header
from moe_local.checkpoint.regular import assert_regular
from moe_local.checkpoint.tiktoken_file import load_tiktoken, tiktoken_file
from moe_local.errors import CheckpointError, MoeLocalError, first_line

# What a GGUF file calls the rule by which text is split into words before byte-level BPE. transformers knows some
# names, and takes GPT-2's rule for all others, which is right for these:
_LIKE_GPT2 = {"gpt-2", "olmo", "mpt"}
_LIKE_ANOTHER = {"glm4": "llama3", "chatglm-bpe": "llama3"}
_FAST = "tokenizer.json"
_SENTENCEPIECE = ("*.model", "*.spm", "*.vocab")  # files of it, tiktoken.model aside
_LIBRARIES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # modules -> packages
_READ = ("*.json", "*.jinja", "*.txt", *_SENTENCEPIECE)  # what transformers may open
_MOST = 64 << 20  # bytes of one of these: the largest vocabularies take 35 million


def load_tokenizer(checkpoint: Checkpoint) -> tuple[PreTrainedTokenizerBase | None, tuple[str, ...]]:
    """The tokenizer, and notes on what in it is uncertain, or why there is none where the files are of one.

    None where it is missing, damaged, or of a kind that needs other libraries: not everything needs one.
    """
    try:
        found, notes = _from_gguf(checkpoint.gguf) if checkpoint.gguf else _from_directory(checkpoint.directory)
        # Where there are no files of one, transformers may make one that knows no words.
        return (found if found is not None and found("a")["input_ids"] else None), notes
    except MoeLocalError as error:
        return None, (str(error),)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in the tokenizers library is no Exception
        there = not checkpoint.gguf and (checkpoint.directory / _FAST).exists()
        return None, ((f"{checkpoint.directory / _FAST} cannot be read ({first_line(error)})",) if there else ())


def _from_directory(directory: Path) -> tuple[PreTrainedTokenizerBase | None, tuple[str, ...]]:
    if not directory.is_dir():
        return None, ()
    for file in {file for pattern in _READ for file in directory.glob(pattern) if not file.is_dir()}:
        assert_regular(file, _MOST)
    fast = (directory / _FAST).exists()
    if not fast and (ranks := tiktoken_file(directory)) is not None:
        return load_tiktoken(ranks)
    _assert_libraries(directory, fast=fast)
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False), ()


def _assert_libraries(directory: Path, *, fast: bool) -> None:
    """Raises CheckpointError where a file of sentencepiece is all there is and what reads it is not installed."""
    models = sorted(file for pattern in _SENTENCEPIECE for file in directory.glob(pattern))
    missing = [package for module, package in _LIBRARIES.items() if not _installed(module)]
    if models and missing and not fast and not (directory / "vocab.json").exists():
        raise CheckpointError(
            f"{models[0]} is a tokenizer of sentencepiece, which needs {' and '.join(missing)}, not installed",
            remedy="pip install 'moe-local[tokenizers]'",
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that the module would be in
        return False


def _from_gguf(file: Path) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS, set_split_regex
    except ImportError as error:  # before 5.18
        raise CheckpointError(
            f"transformers {transformers.__version__} makes no tokenizer of {file.name}",
            remedy="pip install -U transformers",
        ) from error
    # AutoTokenizer would ask for the configuration first, which transformers cannot make of most MoE files. Its
    # reader maps the file, and a map of a file that is cut ends the process: it gets a copy of the metadata.
    with tempfile.TemporaryDirectory(prefix="moe-local-") as folder:
        (Path(folder) / file.name).write_bytes(metadata_alone(file))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=file.name, local_files_only=True)
    metadata = read_gguf_header(file).metadata
    rule = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or rule in {*GGUF_PRE_TOKENIZER_SPLITS, *_LIKE_GPT2}:
        return tokenizer, ()
    if rule in _LIKE_ANOTHER:
        return set_split_regex(tokenizer, {"pre_tokenizer_type": _LIKE_ANOTHER[rule]}), ()
    note = f"{file.name} splits text by the rule {rule!r}, which is not known here: GPT-2's is used, and may differ"
    return tokenizer, (note,)


def no_tokenizer(checkpoint: Checkpoint) -> CheckpointError:
    """The error that says why a checkpoint has no tokenizer, and what to do."""
    _, reasons = load_tokenizer(checkpoint)
    why = f" ({reasons[0]})" if reasons else ""
    elsewhere = "use the model's safetensors repository"
    return CheckpointError(
        f"{checkpoint.directory} has no tokenizer that transformers can load{why}",
        remedy=elsewhere if checkpoint.gguf else "add tokenizer.json and tokenizer_config.json",
    )
