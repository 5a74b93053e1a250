"""Models that make one text of another: languages, streaming, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, NllbTokenizer, PreTrainedTokenizerBase

from moe_local.checkpoint.architecture import is_encoder_decoder
from moe_local.engine import Engine, load
from moe_local.errors import MoeLocalError, UnsupportedError
from moe_local.evaluation.perplexity import evaluate
from moe_local.generation.batch import Request
from moe_local.generation.encoder_decoder import languages, translation
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from moe_local.testing import architecture, eager_model, write_tiny_checkpoint

LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn")
GREEDY = Sampling(max_new_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny NLLB-MoE whose tokenizer has three languages."""
    directory = write_tiny_checkpoint(architecture("nllb_moe"), tmp_path_factory.mktemp("nllb"))
    _tokenizer(directory, languages=True).save_pretrained(directory)
    return directory


def _tokenizer(directory: Path, *, languages: bool = False) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    if languages:
        found.add_tokens(list(LANGUAGES), special_tokens=True)
    return found


@pytest.fixture(scope="module")
def engine(nllb: Path) -> Iterator[Engine]:
    with load(nllb, Options(device="cpu", context=64, experts=0.5)) as engine:
        engine.model.generation_config.eos_token_id = None
        yield engine


def test_a_translation_is_transformers_own(engine: Engine, nllb: Path) -> None:
    tokenizer, reference = _tokenizer(nllb), eager_model(architecture("nllb_moe"), nllb)
    english, french = tokenizer.convert_tokens_to_ids(list(LANGUAGES[:2]))
    ids = torch.tensor([[english, *tokenizer("the hen")["input_ids"]]])
    wanted = reference.generate(ids, forced_bos_token_id=french, max_new_tokens=6, do_sample=False, eos_token_id=None)
    pieces: list[str] = []
    got = engine.generate("the hen", GREEDY, source="eng_Latn", target="fra_Latn", on_text=pieces.append)
    assert got.token_ids == wanted[0, 1:].tolist()
    assert got.token_ids[0] == french and "fra_Latn" not in got.text
    assert "".join(pieces) == got.text
    assert got.prompt_tokens == ids.shape[1] and got.finish_reason == "length"


def test_the_source_takes_the_place_of_the_tokenizer_s(engine: Engine) -> None:
    tokenizer = engine.generator.tokenizer
    german = engine.generate("the hen", GREEDY, source="deu_Latn", target="fra_Latn")
    marked = [tokenizer.convert_tokens_to_ids("deu_Latn"), *tokenizer("the hen")["input_ids"]]
    again = engine.generate("eng_Latnthe hen", GREEDY, source="deu_Latn", target="fra_Latn")
    assert german.prompt_tokens == again.prompt_tokens == len(marked)
    assert german.token_ids == again.token_ids


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"source": "eng_Latn"}, "--target"),
        ({"source": "eng_Latn", "target": "fr_Latn"}, "did you mean fra_Latn"),
        ({"source": "english", "target": "fra_Latn"}, "no language 'english'"),
    ],
)
def test_languages_that_there_are_not(engine: Engine, named: dict[str, str], said: str) -> None:
    with pytest.raises(MoeLocalError) as caught:
        engine.generate("the hen", GREEDY, **named)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_model_that_does_not_translate(qwen: Path) -> None:
    with load(qwen, Options(device="cpu", context=64)) as engine, pytest.raises(MoeLocalError, match="not translate"):
        engine.generate("the hen", GREEDY, target="fra_Latn")


def test_what_needs_a_text_that_goes_on_is_refused(engine: Engine) -> None:
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        engine.chat()
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        list(engine.batch([Request([5, 6, 7], GREEDY)]))
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        engine.generate([{"role": "user", "content": "hello"}], GREEDY)  # type: ignore[list-item]
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        evaluate(engine.model, list(range(10, 40)), 16, 8)
    with pytest.raises(MoeLocalError, match="system message"):
        engine.generate("the hen", GREEDY, system="be brief", target="fra_Latn")


def test_the_encoder_is_given_the_memory_that_it_needs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    monkeypatch.setattr(engine.cache, "resize_for", passes.append)
    engine.generate([5 + i for i in range(20)], GREEDY)
    assert passes[0] == 20


def test_an_answer_may_be_as_long_as_the_context(engine: Engine) -> None:
    many = Sampling(max_new_tokens=1000, temperature=0)
    assert engine.generate([5 + i % 40 for i in range(60)], many).new_tokens == 64


@pytest.mark.parametrize(
    ("config", "is_one"),
    [
        ({"model_type": "switch_transformers"}, True),
        ({"model_type": "nllb-moe", "is_encoder_decoder": True}, True),
        ({"model_type": "mixtral"}, False),
        ({"model_type": "of tomorrow"}, False),
        ({"model_type": ["mixtral"]}, False),
        ({}, False),
    ],
)
def test_a_configuration_tells(config: dict[str, object], is_one: bool) -> None:
    assert is_encoder_decoder(config) is is_one


def test_the_tokenizer_of_nllb() -> None:
    """As published: it puts a language before a text by itself."""
    letters = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *"then"]
    tokenizer = NllbTokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    known = languages(tokenizer)
    assert len(known) > 200
    model: Any = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    marked, first = translation(model, tokenizer, tokenizer("the hen")["input_ids"], "fra_Latn", "deu_Latn")
    assert tokenizer.convert_ids_to_tokens(marked) == ["fra_Latn", "\u2581", *"the", "\u2581", *"hen", "</s>"]
    assert first == known["deu_Latn"]
