"""A model's own sampling defaults: the part of its `generation_config.json` that is about choosing tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from moe_local.checkpoint.json_file import read_json
from moe_local.errors import CheckpointError, MoeLocalError, first_line
from moe_local.generation.sampling import Sampling

_REMEDY = "download it again, correct it or delete it"
_MOST = 2**31 - 1  # of any number here
FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
_TOKENS = (  # one id or several
    "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id",
)  # fmt: skip
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
        return _from_model(config, str(directory / "config.json")), ()
    try:
        given = read_json(file)
    except CheckpointError as error:
        raise CheckpointError(error.message, remedy=_REMEDY) from error
    return _checked(given, str(file)), tuple(_notes(given))


def _from_model(config: PreTrainedConfig, source: str) -> GenerationConfig:
    try:
        given = GenerationConfig.from_model_config(config).to_diff_dict()
    except Exception as error:  # whatever transformers makes of odd values
        raise _invalid(source, first_line(error)) from error
    return _checked(given, source)


def _checked(given: dict[str, Any], source: str) -> GenerationConfig:
    present = {name: value for name, value in given.items() if value is not None}
    sampling = {name: present[name] for name in _SAMPLING if name in present}
    for name, value in sampling.items():
        whole = name in ("top_k", "max_new_tokens")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or abs(value) > _MOST:
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
    try:
        return GenerationConfig(**chosen, **kept)
    except Exception as error:  # transformers has rules of its own
        raise _invalid(source, first_line(error)) from error


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _are_tokens(value: object, *, one: bool) -> bool:
    """Ids, -1 among them: some configurations say so that there is none."""
    return (one and _is_token(value)) or (isinstance(value, list) and all(map(_is_token, value)))


def _is_token(value: object) -> bool:
    return type(value) is int and -1 <= value <= _MOST


def _notes(given: dict[str, Any]) -> list[str]:
    usual: tuple[object, ...] = (None, False, 1, 1.0, 0, [])
    return [
        f"{FILE} asks for {name} {given[name]!r}, which is not done here: one sequence is sampled"
        for name in _METHODS
        if given.get(name) not in usual
    ]


def _invalid(source: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{source} is not valid ({reason})", remedy=_REMEDY)
