"""A small real tokenizer: byte-level BPE in a few hundred ids, with a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (PAD, BOS, EOS, *ROLES)
PAD_ID, BOS_ID, EOS_ID = range(3)

# "Ġ" is how byte-level BPE writes a space. In the order in which they apply.
MERGES = (
    ("h", "e"),
    ("Ġ", "t"),
    ("Ġt", "he"),
    ("i", "n"),
    ("e", "r"),
    ("a", "n"),
    ("o", "n"),
    ("Ġ", "a"),
    ("r", "e"),
    ("o", "u"),
    ("an", "d"),
    ("Ġ", "and"),
    ("in", "g"),
    ("l", "l"),
    ("Ġ", "s"),
    ("Ġ", "w"),
)

TOKENIZER_SIZE = len(SPECIAL_TOKENS) + 256 + len(MERGES)
"""How many ids the tokenizer uses, from 0 on: a model's vocabulary must be at least as large."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that round-trips any text, with `<|system|>`, `<|user|>` and `<|assistant|>` turns.

    The ids: 0 padding, 1 beginning, 2 end, 3 to 5 the roles, then the 256 bytes, then the merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(), merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _vocabulary() -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet()), *(left + right for left, right in MERGES)]
    return {token: number for number, token in enumerate(tokens)}
