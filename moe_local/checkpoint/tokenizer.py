"""A checkpoint's tokenizer: from the files beside its weights, or out of its GGUF file."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.gguf_header import read_gguf_header

# What a GGUF file calls the rule by which text is split into words before byte-level BPE. transformers knows some
# names, and takes GPT-2's rule for all others, which is right for these:
_LIKE_GPT2 = {"gpt-2", "olmo", "mpt"}
_LIKE_ANOTHER = {"glm4": "llama3", "chatglm-bpe": "llama3"}


def load_tokenizer(checkpoint: Checkpoint) -> tuple[PreTrainedTokenizerBase | None, tuple[str, ...]]:
    """The tokenizer, and notes on what in it is uncertain.

    None where it is missing, or of a kind that needs other libraries: not everything needs one.
    """
    try:
        if checkpoint.gguf:
            return _from_gguf(checkpoint.gguf)
        where = checkpoint.directory
        found = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
        # Where there are no files of one, transformers may make one that knows no words.
        return (found if found("a")["input_ids"] else None), ()
    except Exception:
        return None, ()


def _from_gguf(file: Path) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS, set_split_regex

    # AutoTokenizer would ask for the configuration first, which transformers cannot make of most MoE files.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    metadata = read_gguf_header(file).metadata
    rule = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or rule in {*GGUF_PRE_TOKENIZER_SPLITS, *_LIKE_GPT2}:
        return tokenizer, ()
    if rule in _LIKE_ANOTHER:
        return set_split_regex(tokenizer, {"pre_tokenizer_type": _LIKE_ANOTHER[rule]}), ()
    note = f"{file.name} splits text by the rule {rule!r}, which is not known here: GPT-2's is used, and may differ"
    return tokenizer, (note,)
