"""A checkpoint's tokenizer: from the files beside its weights, or out of its GGUF file."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moe_local.checkpoint.files import Checkpoint


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """The tokenizer; None where it is missing, or of a kind that needs other libraries: not everything needs one."""
    try:
        if file := checkpoint.gguf:
            # AutoTokenizer would ask for the configuration first, which transformers cannot make of most MoE files.
            return PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        return AutoTokenizer.from_pretrained(checkpoint.directory, local_files_only=True, trust_remote_code=False)
    except Exception:
        return None
