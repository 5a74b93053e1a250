"""A model's own sampling defaults: the part of its `generation_config.json` that is about choosing tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.generation.sampling import Sampling

FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")  # one id or several
_COUNTS = ("no_repeat_ngram_size", "min_new_tokens")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_METHODS = (  # of generating, that are not one sequence from one model
    "num_beams", "num_beam_groups", "num_return_sequences", "penalty_alpha", "dola_layers", "constraints",
    "guidance_scale", "watermarking_config", "prompt_lookup_num_tokens", "stop_strings", "token_healing",
)  # fmt: skip


def generation_defaults(directory: Path, config: PreTrainedConfig) -> tuple[GenerationConfig, tuple[str, ...]]:
    """The defaults of a checkpoint, and notes on what in them is not done here.

    Raises CheckpointError for a file that makes no sense.
    """
    file = directory / FILE
    if not file.exists():
        return _checked(GenerationConfig.from_model_config(config).to_diff_dict(), str(directory / "config.json")), ()
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(given, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise _invalid(str(file), str(error)) from error
    return _checked(given, str(file)), tuple(_notes(given))


def _checked(given: dict[str, Any], source: str) -> GenerationConfig:
    present = {name: value for name, value in given.items() if value is not None}
    sampling = {name: present[name] for name in _SAMPLING if name in present}
    for name, value in sampling.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _invalid(source, f"{name} is {value!r}")
    try:
        chosen = Sampling(**sampling).for_transformers()
    except MoeLocalError as error:
        raise _invalid(source, str(error).removeprefix("--")) from error
    chosen["do_sample"] = bool(present.get("do_sample")) and chosen.get("do_sample", True)
    kept = {name: present[name] for name in (*_TOKENS, *_COUNTS, *_LISTS) if name in present}
    for name, value in kept.items():
        if not (_is_count(value) if name in _COUNTS else _are_tokens(value, one=name in _TOKENS)):
            raise _invalid(source, f"{name} is {value!r}")
    if "max_new_tokens" in sampling:
        chosen["max_new_tokens"] = sampling["max_new_tokens"]
    return GenerationConfig(**chosen, **kept)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _are_tokens(value: object, *, one: bool) -> bool:
    return (one and isinstance(value, int)) or (
        isinstance(value, list) and all(isinstance(token, int) for token in value)
    )


def _notes(given: dict[str, Any]) -> list[str]:
    usual: tuple[object, ...] = (None, False, 1, 1.0, 0, [])
    return [
        f"{FILE} asks for {name} {given[name]!r}, which is not done here: one sequence is sampled"
        for name in _METHODS
        if given.get(name) not in usual
    ]


def _invalid(source: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{source} is not valid ({reason})", remedy="download it again, correct it or delete it")
