"""Lines of a job: what they may say, and that nothing else gets through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.generation.batch import Answer, Request
from moe_local.generation.sampling import Sampling
from moe_local.jobs.line import Defaults, Line
from moe_local.jobs.lines import FORMATS, guess_format, understand

DEFAULTS = Defaults(Sampling(max_new_tokens=9, stop=("END",)), system="Be brief.")
# https://platform.openai.com/docs/guides/batch
OFFICIAL = (
    b'{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model":'
    b' "gpt-3.5-turbo-0125", "messages": [{"role": "system", "content": "You are a helpful assistant."},'
    b'{"role": "user", "content": "Hello world!"}],"max_tokens": 1000}}\n'
)


def _own(**fields: Any) -> Line:
    return understand(FORMATS["jsonl"](), 1, json.dumps(fields).encode(), DEFAULTS)


def _openai(body: dict[str, Any], **fields: Any) -> Line:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}
    return understand(FORMATS["openai"](), 1, json.dumps(line).encode(), DEFAULTS)


def test_a_lines_own_options_go_before_the_defaults() -> None:
    line = _own(prompt="hi", id="x", temperature=0, seed=3, stop="\n")
    assert line.error is None and line.request is not None
    assert line.request.sampling == Sampling(max_new_tokens=9, temperature=0, seed=3, stop=("\n",))
    assert (line.id, line.request.prompt, line.request.system) == ("x", "hi", "Be brief.")
    assert line.request.tag.id == "x"


def test_messages() -> None:
    line = _own(
        messages=[{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    )
    assert line.request is not None
    assert line.request.prompt == [{"role": "system", "content": "ab"}]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "there is no prompt"),
        ({"prompt": "a", "messages": []}, "both"),
        ({"prompt": 3}, "prompt is not text"),
        ({"messages": []}, "messages is not a list with something in it"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "'robot'"),
        ({"messages": [{"role": "user"}]}, "no content"),
        ({"messages": ["a"]}, "not an object"),
        ({"prompt": "a", "temprature": 1}, "temprature is not known here; use id, prompt"),
        ({"prompt": "a", "max_new_tokens": 0}, "not at least 1"),
        ({"prompt": "a", "max_new_tokens": True}, "not a whole number"),
        ({"prompt": "a", "top_p": "1"}, "top_p is not a number"),
        ({"prompt": "a", "temperature": 10**400}, "temperature is no finite number"),
        ({"prompt": "a", "stop": [1]}, "stop is neither"),
        ({"prompt": "a", "stop": ""}, "empty stop string"),
        ({"prompt": "a", "id": [1]}, "neither text nor a whole number"),
    ],
)
def test_what_makes_no_sense_is_said(fields: dict[str, Any], said: str) -> None:
    line = _own(**fields)
    assert line.request is None
    assert said in str(line.error)


def test_an_error_keeps_its_lines_id() -> None:
    assert _own(id="seven", prompt=1).id == "seven"
    assert _openai({"messages": 1}, custom_id="eight").id == "eight"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | st.just(b"[" * 100_000))
@pytest.mark.parametrize("format", FORMATS)
def test_no_line_raises(format: str, raw: bytes) -> None:
    line = understand(FORMATS[format](), 7, raw, DEFAULTS)
    assert (line.request is None) == (line.error is not None)
    json.dumps(FORMATS[format]().write(line, Answer(line.request) if line.request else None))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "id",
        "prompt",
        "messages",
        "stop",
        "seed",
        "temperature",
        "top_k",
        "max_new_tokens",
        "raw",
        "system",
        "metadata",
    ]
)
OPENAI_FIELDS = st.sampled_from(["model", "messages", "prompt", "stop", "n", "stream", "max_tokens", "tools", "user"])


@given(st.dictionaries(FIELDS, JSON, max_size=5), st.dictionaries(OPENAI_FIELDS, JSON, max_size=5))
def test_no_object_raises(own: dict[str, Any], body: dict[str, Any]) -> None:
    for line in (_own(**own), _openai(body)):
        assert (line.request is None) == (line.error is not None)


def test_the_official_example() -> None:
    line = understand(FORMATS["openai"](), 3, OFFICIAL, Defaults(Sampling()))
    assert line.error is None and line.request is not None
    assert line.request.sampling == Sampling(max_new_tokens=1000)
    assert line.request.prompt == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello world!"},
    ]
    assert guess_format("x", OFFICIAL) == "openai"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": [{"role": "user", "content": "a"}], "n": 2}, "n 2 is not done here"),
        ({"messages": [{"role": "user", "content": "a"}], "stream": True}, "stream"),
        ({"messages": [{"role": "user", "content": "a"}], "tool_choice": "auto"}, "tool_choice is not done here"),
        ({"prompt": "a"}, "there is no prompt"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
    ],
)
def test_what_openai_has_and_we_do_not(body: dict[str, Any], said: str) -> None:
    assert said in str(_openai(body).error)


def test_other_endpoints_are_refused() -> None:
    assert "use POST with" in str(_openai({"input": "a"}, url="/v1/embeddings").error)
    assert "custom_id" in str(_openai({}, custom_id=None).error)


def test_openais_own_types_read_our_answers() -> None:
    openai = pytest.importorskip("openai.types.chat", reason="needs the openai package")
    from openai.types import Completion

    format = FORMATS["openai"]()
    chat = understand(format, 3, OFFICIAL, DEFAULTS)
    assert chat.request is not None
    answer = Answer(chat.request, "Hello.", (1, 2), 22, "stop")
    record = format.write(chat, answer)
    assert record.keys() == {"id", "custom_id", "response", "error"}
    read = openai.ChatCompletion.model_validate(record["response"]["body"], strict=True)
    assert (read.choices[0].message.content, read.usage.total_tokens) == ("Hello.", 24)
    text = _openai({"prompt": "go on"}, url="/v1/completions")
    assert text.request is not None and text.request.raw
    body = format.write(text, Answer(text.request, "and on", (1,), 2, "length"))["response"]["body"]
    assert Completion.model_validate(body, strict=True).choices[0].text == "and on"


@pytest.mark.parametrize(
    ("name", "first", "format"),
    [
        ("a.txt", b'{"prompt": "a"}', "text"),
        ("a.jsonl", b"nonsense", "jsonl"),
        ("-", b'{"prompt": "a"}', "jsonl"),
        ("-", b'{"prompt": "a"', "jsonl"),
        ("-", b"Why is the sky blue?", "text"),
        ("-", b"42", "text"),
    ],
)
def test_formats_are_guessed(name: str, first: bytes, format: str) -> None:
    assert guess_format(name, first) == format


def test_metadata_comes_back() -> None:
    line = _own(prompt="a", metadata={"split": "test"})
    written = FORMATS["jsonl"]().write(line, Answer(Request("a"), "b", (1,), 1, "stop"))
    assert written["metadata"] == {"split": "test"}
    assert written == {**written, "id": None, "line": 1, "text": "b", "finish_reason": "stop"}
