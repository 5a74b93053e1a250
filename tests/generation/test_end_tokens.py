"""Answers end at the union of what a model's files name, and not where they may go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig
from transformers.models.qwen3_moe import Qwen3MoeConfig

from moe_local import Options, Sampling, load
from moe_local.generation import channels
from moe_local.generation.end_tokens import with_end_tokens
from moe_local.generation.template import ChatTemplate
from moe_local.generation.template_settings import TemplateSettings
from moe_local.testing import architecture, tiny_tokenizer, write_tiny_checkpoint
from tests.generation.speaking import made_to_say, tokenizer_with, write_tokenizer

END = tiny_tokenizer().eos_token_id


def _ends(generation: object, config: object, *special: str) -> set[int]:
    tokenizer = tokenizer_with(*special)
    made = with_end_tokens(GenerationConfig(eos_token_id=generation), Qwen3MoeConfig(eos_token_id=config), tokenizer)
    return set(made.eos_token_id)


def test_the_union_of_all_that_name_one() -> None:
    assert _ends(None, None) == {END}
    assert _ends(7, [8, 9]) == {7, 8, 9, END}
    assert _ends([7, 7], None) == {7, END}


@pytest.mark.parametrize("name", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>"])
def test_special_tokens_of_well_known_names(name: str) -> None:
    number = tokenizer_with(name).convert_tokens_to_ids(name)
    assert _ends(None, None, name) == {END, number}


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}<|over|>\n{% endfor %}", True),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }} {{ '<|over|>' }}{{ eos_token }}{% endfor %}", True),
        ("{% for m in messages %}<|over|>{{ m.content }}\n{% endfor %}", False),
        ("{{ raise_exception('no') }}", False),
        ("{{ 9 ** 9 }}{{ messages[1].content }}<|over|>", False),
    ],
)
def test_what_a_chat_template_closes_an_answer_with(template: str, named: bool) -> None:
    tokenizer = tokenizer_with("<|over|>", template=template)
    found = with_end_tokens(GenerationConfig(), Qwen3MoeConfig(), tokenizer).eos_token_id
    assert (tokenizer.convert_tokens_to_ids("<|over|>") in found) == named and END in found


def test_the_form_of_answers_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the end tokens, and for every template of the tokenizer's afterwards."""
    tokenizer, calls = tokenizer_with("<|im_end|>"), []
    find = channels._found_format
    monkeypatch.setattr(channels, "_found_format", lambda *given: (calls.append(given), find(*given))[1])
    with_end_tokens(GenerationConfig(), Qwen3MoeConfig(), tokenizer)
    for level in (None, "off"):
        assert ChatTemplate(tokenizer, print, TemplateSettings(level=level)).answers is channels.answer_format(
            tokenizer, tokenizer.chat_template
        )
    assert len(calls) == 1


def test_harmony_goes_on_after_its_reasoning() -> None:
    names = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>")
    tokenizer = tokenizer_with(*names)
    ends = _ends(None, None, *names)
    assert (
        tokenizer.convert_tokens_to_ids("<|return|>") in ends and tokenizer.convert_tokens_to_ids("<|call|>") in ends
    )
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in ends


@pytest.mark.parametrize("where", ["config.json", "text_config", "tokenizer"])
def test_a_generation_ends_there(where: str, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path)
    other = 40 if where != "tokenizer" else END
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    config = json.loads((checkpoint / "config.json").read_text())
    config["eos_token_id"] = other if where != "tokenizer" else None
    (checkpoint / "config.json").write_text(json.dumps(config))
    write_tokenizer(tokenizer_with(), checkpoint)
    with load(checkpoint, Options(device="cpu", context=64)) as engine:
        words = tiny_tokenizer()("and then", add_special_tokens=False)["input_ids"]
        made_to_say(engine, [*words, other], words[0])
        done = engine.generate("hi", Sampling(max_new_tokens=20, temperature=0))
        said = tiny_tokenizer().decode([*words, other], skip_special_tokens=True)
        assert (done.text, done.finish_reason) == (said, "stop")
        answers = list(engine.batch(["hi"]))
        assert answers[0].error is None
