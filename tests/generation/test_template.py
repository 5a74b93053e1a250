"""Conversations in templates that refuse them, pass them over, never end, or want to be told something."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from moe_local import Options, Request, Sampling, load
from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.generation.bounded import bounded
from moe_local.generation.template import ChatTemplate
from moe_local.generation.template_settings import TemplateSettings, thinking
from moe_local.testing import architecture, write_tiny_checkpoint
from tests.generation.speaking import made_to_say, tokenizer_with, write_tokenizer

ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
PASSES_OVER = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"
)
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}<<{{ messages[0]['content'] | upper }}>>"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
TWO_USERS = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
WITH_SYSTEM = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def _template(own: str, notes: list[str] | None = None, **settings: Any) -> ChatTemplate:
    said = notes.append if notes is not None else (lambda text: None)
    return ChatTemplate(tokenizer_with(template=own), said, TemplateSettings(**settings))


@pytest.mark.parametrize(
    ("source", "messages", "wanted", "noted"),
    [
        (ALTERNATE, TWO_USERS, "[user]one\n\ntwo", "joined"),
        (ALTERNATE, WITH_SYSTEM, "[user]be brief\n\nhi", "no system message"),
        (ALTERNATE, [*WITH_SYSTEM, *TWO_USERS], "[user]be brief\n\nhi\n\none\n\ntwo", "no system message and"),
        (NO_SYSTEM, [*WITH_SYSTEM, *TWO_USERS], "[user]be brief\n\nhi[user]one[user]two", "no system message"),
        (PASSES_OVER, WITH_SYSTEM, "[user]be brief\n\nhi", "no system message"),
        (SYSTEM_FIRST, WITH_SYSTEM, "<<BE BRIEF>>[user]hi", None),
        (ALTERNATE, [{"role": "user", "content": "hi"}], "[user]hi", None),
    ],
)
def test_the_words_are_kept(source: str, messages: list[dict[str, str]], wanted: str, noted: str | None) -> None:
    notes: list[str] = []
    assert _template(source, notes).render(messages) == wanted
    assert [noted in note for note in notes] == [True] if noted else notes == []


@pytest.mark.parametrize(("source", "times"), [(SYSTEM_FIRST, 2), (PASSES_OVER, 3), (ALTERNATE, 1)])
def test_no_conversation_is_rendered_twice(source: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    template, seen = _template(source), []
    apply = template.apply
    monkeypatch.setattr(
        template, "apply", lambda messages, told: (seen.append(list(messages)), apply(messages, told))[1]
    )
    template.render([{"role": "user", "content": "hi"}] if times == 1 else WITH_SYSTEM)
    assert len(seen) == times and all(seen.count(each) == 1 for each in seen)


def test_what_no_conversation_suits_is_refused() -> None:
    with pytest.raises(MoeLocalError, match=r"refuses this conversation \(never\)"):
        _template("{{ raise_exception('never') }}").render(WITH_SYSTEM)
    with pytest.raises(CheckpointError, match="no chat template"):
        ChatTemplate(tokenizer_with(), print, TemplateSettings(source="")).render(WITH_SYSTEM)


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("source", [LOOPS, "{% macro again() %}" + LOOPS + "{% endmacro %}{{ again() }}"])
def test_a_template_that_does_not_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_local.generation.template.bounded", lambda what, run: bounded(what, run, seconds=0.3))
    with pytest.raises(MoeLocalError, match="does not end"):
        _template(source).render(WITH_SYSTEM)


@pytest.mark.parametrize("source", ["{{ messages | tojson(indent=1000000000) }}", "{{ 'a' * 10000000000 }}"])
def test_a_template_that_would_fill_the_memory_is_stopped(source: str) -> None:
    with pytest.raises(MoeLocalError, match="more text than fits"):
        _template(source).render(WITH_SYSTEM)
    assert len(bytearray(600 << 20)) == 600 << 20  # the bound is the template's, and gone with it


@pytest.mark.parametrize("source", ["{{ (3 ** (10 ** 8)) % 10 }}", "{% set a = 9 ** n %}"])
def test_powers_are_refused(source: str) -> None:
    """They are computed at once: no time could end them."""
    with pytest.raises(MoeLocalError, match="powers"):
        _template(source).render(TWO_USERS)
    assert _template("**{{ messages[0].content }}** {{ '**' }}").render(TWO_USERS) == "**one** **"


PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
ONE_SYSTEM = (
    "[system]{{ messages[0].content if messages[0].role == 'system' else 'none' }}"
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)


def test_a_template_that_wants_content_in_parts() -> None:
    assert _template(PARTS).render(TWO_USERS) == "[user]one[user]two"


def test_no_system_message_is_lost_beside_another() -> None:
    two = [
        {"role": "system", "content": "one"},
        {"role": "system", "content": "two"},
        {"role": "user", "content": "a"},
    ]
    assert _template(ONE_SYSTEM).render(two) == "[system]one\n\ntwo[user]a"
    hidden = [{"role": "system", "content": "a"}, {"role": "user", "content": "a b"}]
    assert _template(PASSES_OVER).render(hidden) == "[user]a\n\na b"


def test_roles_that_others_use() -> None:
    developer = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert _template(ALTERNATE).render(developer) == "[user]be brief\n\nhi"
    assert _template(ALTERNATE).render([{"role": "system", "content": "hi"}]) == "[user]hi"


def test_two_renderings_at_once_leave_no_bound_behind() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    threads = [Thread(target=lambda s=s: bounded("it", lambda: time.sleep(s))) for s in (0.2, 0.3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_long_conversation_that_was_loaded_goes_on(qwen: Path) -> None:
    with load(qwen, Options(device="cpu", context=256)) as engine:
        session = engine.chat(Sampling(max_new_tokens=4, temperature=0))
        turn = [{"role": "user", "content": "q" * 100}, {"role": "assistant", "content": "a" * 100}]
        session.messages = turn * 400
        assert session.send("hi").prompt_tokens <= 128


def test_what_ends_in_time_is_left_alone() -> None:
    for _ in range(50):
        assert bounded("a short thing", lambda: 5, seconds=0.5) == 5


def test_an_interrupt_leaves_no_bound_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it strikes, before the watch could be ended as well."""

    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    before = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr("moe_local.generation.bounded._Watch.end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bounded("a template", lambda: 5, seconds=0.05)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_thinking_is_told_in_every_template_s_words() -> None:
    for source in ("{{ enable_thinking }}", "{{ thinking }}"):
        assert _template(source, level="off").render(TWO_USERS) == "False"
        assert _template(source, level="high").render(TWO_USERS) == "True"
    assert _template("{{ reasoning_effort }}", level="low").render(TWO_USERS) == "low"
    assert thinking(None) == {}
    with pytest.raises(MoeLocalError, match="--think very"):
        TemplateSettings(level="very")


def test_no_switch_for_thinking_is_said() -> None:
    notes: list[str] = []
    _template(NO_SYSTEM, notes, level="off")
    assert ["no switch for thinking" in note for note in notes] == [True]


def test_variables_and_another_template() -> None:
    assert _template("{{ a }}", variables={"a": [1, 2]}).render(TWO_USERS) == "[1, 2]"
    assert _template("{{ a }}", source="mine {{ a }}", variables={"a": 3}).render(TWO_USERS) == "mine 3"
    assert _template("{{ a }}", variables={"a": 3}).render(TWO_USERS, {"a": 4}) == "4"


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "conversation", "return_tensors"])
def test_what_is_no_variable_is_refused(name: str) -> None:
    with pytest.raises(MoeLocalError, match=f"{name} cannot be told"):
        _template("{{ a }}").render(TWO_USERS, {name: 1})


@pytest.mark.parametrize(
    ("source", "heard"),
    [
        ("{% if enable_thinking %}", True),
        ("{{ m.thinking }}", False),
        ("{{ m['thinking'] }}", False),
        ("{{thinking}}", True),
    ],
)
def test_a_switch_is_a_variable(source: str, heard: bool) -> None:
    assert _template(source).hears(thinking("on")) == heard


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("{{ m.reasoning_content }}", "reasoning_content"),
        ("{% if 'thinking' in m %}", "thinking"),
        ('{{ m["reasoning"] }}', "reasoning"),
        ("{% if enable_thinking %}{{ m.content }}", None),
    ],
)
def test_earlier_reasoning_goes_where_the_template_asks_for_it(source: str, key: str | None) -> None:
    assert _template(source).reasoning_key == key


@pytest.mark.parametrize("asks", [True, False])
def test_history_has_reasoning_where_the_template_wants_it(asks: bool, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "model")
    wants = "{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}" if asks else ""
    source = f"{{% for m in messages %}}[{{{{ m.role }}}}]{wants}{{{{ m.content }}}}{{% endfor %}}"
    tokenizer = tokenizer_with(plain=("<think>", "</think>"), template=source)
    write_tokenizer(tokenizer, checkpoint)
    with load(checkpoint, Options(device="cpu", context=128)) as engine:
        said = tokenizer("<think>why</think>so", add_special_tokens=False)["input_ids"]
        made_to_say(engine, said, tokenizer.eos_token_id)
        session = engine.chat(Sampling(max_new_tokens=30, temperature=0))
        result = session.send("hi")
        assert (result.reasoning, result.text, result.finish_reason) == ("why", "so", "stop")
        answer = {"role": "assistant", "content": "so"}
        assert session.messages[-1] == ({**answer, "reasoning_content": "why"} if asks else answer)
        session.save(tmp_path / "talk.json")
        session.load(tmp_path / "talk.json")
        rendered = engine.generator.template.render(session.messages)
        assert rendered == ("[user]hi[assistant]<why>so" if asks else "[user]hi[assistant]so")


def test_a_batch_tells_reasoning_apart_and_its_lines_their_variables(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "model")
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
    write_tokenizer(tokenizer_with(plain=("<think>", "</think>"), template=source), checkpoint)
    short = Sampling(max_new_tokens=4, temperature=0)
    with load(checkpoint, Options(device="cpu", context=128)) as engine:
        answers = engine.batch(
            Request("hi", short, template_variables={"enable_thinking": think}, tag=think) for think in (True, False)
        )
        off, on = sorted(answers, key=lambda answer: bool(answer.request.tag))
        assert off.reasoning == "" and off.text
        assert on.reasoning and on.text == ""
        assert engine.generate("hi", short).text == off.text


def test_a_full_context_leaves_the_oldest_turns_out(tmp_path: Path, qwen: Path) -> None:
    notes: list[str] = []
    with load(qwen, Options(device="cpu", context=96)) as engine:
        engine.generator.on_notice = notes.append
        session = engine.chat(Sampling(max_new_tokens=4, temperature=0), system="be brief")
        for _ in range(12):
            result = session.send("the hen and the hen")
            assert result.prompt_tokens + 4 <= 96
        assert len(session.messages) == 25  # all are kept to be saved
        assert len(notes) >= 2 and all("oldest" in note and "left out" in note for note in notes)
        with pytest.raises(MoeLocalError, match="larger --context"):
            session.send("the hen " * 90)
        session.reset()
        assert session.send("hi").cached_tokens == 0
