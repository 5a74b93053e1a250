"""What is taken from a model's generation_config.json, and what is refused or left out with a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3MoeConfig

from moe_local.errors import CheckpointError
from moe_local.generation.defaults import generation_defaults


def _read(tmp_path: Path, content: dict[str, Any] | str) -> tuple[Any, tuple[str, ...]]:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "generation_config.json").write_text(text)
    return generation_defaults(tmp_path, Qwen3MoeConfig())


def test_sampling_and_tokens_are_taken(tmp_path: Path) -> None:
    given = {
        "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1,
        "max_new_tokens": 50, "eos_token_id": [1, 2], "pad_token_id": 0, "no_repeat_ngram_size": 4,
        "transformers_version": "4.51.0", "cache_implementation": "static", "use_cache": False,
    }  # fmt: skip
    defaults, notes = _read(tmp_path, given)
    assert notes == ()
    for name in list(given)[:-3]:
        assert getattr(defaults, name) == given[name]
    assert defaults.cache_implementation is None
    assert defaults.use_cache is not False


@pytest.mark.parametrize("given", [{"temperature": 0.6}, {"do_sample": False, "temperature": 0.6}, {}])
def test_sampling_happens_only_when_asked_for(tmp_path: Path, given: dict[str, Any]) -> None:
    assert _read(tmp_path, given)[0].do_sample is False


def test_no_temperature_is_greedy(tmp_path: Path) -> None:
    defaults, _ = _read(tmp_path, {"do_sample": True, "temperature": 0.0, "top_p": 0.9})
    assert defaults.do_sample is False


@pytest.mark.parametrize("method", ["num_beams", "num_return_sequences", "penalty_alpha"])
def test_other_methods_are_left_out_with_a_word(tmp_path: Path, method: str) -> None:
    defaults, notes = _read(tmp_path, {method: 3})
    assert getattr(defaults, method) in (None, 1)
    assert len(notes) == 1
    assert method in notes[0]


@pytest.mark.parametrize(
    "wrong",
    [
        "{", "[]", "[" * 100_000,
        {"temperature": "hot"}, {"temperature": -1}, {"top_p": 7}, {"top_k": True}, {"eos_token_id": "</s>"},
        {"eos_token_id": [1, "x"]}, {"max_new_tokens": 0}, {"no_repeat_ngram_size": -2}, {"suppress_tokens": 3},
    ],
)  # fmt: skip
def test_nonsense_is_refused(tmp_path: Path, wrong: dict[str, Any] | str) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json (is not valid|does not hold)"):
        _read(tmp_path, wrong)


def test_without_a_file_the_models_tokens_are_kept(tmp_path: Path) -> None:
    defaults, notes = generation_defaults(tmp_path, Qwen3MoeConfig(eos_token_id=7))
    assert (defaults.eos_token_id, notes) == (7, ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"eos_token_id": 2**63}, {"eos_token_id": [-5]}, {"pad_token_id": True}, {"top_k": 1.5},
        {"temperature": 1e400}, {"max_new_tokens": 2**40}, {"suppress_tokens": [2**70]}, {"min_new_tokens": True},
        {"top_k": 10**400},
    ],
)  # fmt: skip
def test_numbers_that_fit_nothing_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not valid"):
        _read(tmp_path, wrong)


@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id"])
def test_a_configuration_of_odd_tokens_is_refused(tmp_path: Path, name: str) -> None:
    config = Qwen3MoeConfig()
    setattr(config, name, 2**63)
    with pytest.raises(CheckpointError, match=f"{name} is"):
        generation_defaults(tmp_path, config)
