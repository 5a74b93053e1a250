"""What clients of OpenAI's and Anthropic's libraries get, from a process that serves a tiny model."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.serve.conftest import Running

MESSAGES: Any = [{"role": "user", "content": "the hen and the fox went to see the king"}]


@pytest.fixture
def client(qwen_server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{qwen_server.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


@pytest.fixture
def claude(qwen_server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=qwen_server.url, api_key="any", max_retries=0)


def test_a_chat_in_one_and_in_pieces_says_the_same(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.usage is not None and whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-2].choices[0].finish_reason == "length"
    usage = pieces[-1].usage
    assert usage is not None and usage.completion_tokens == 12
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_several_answers_with_seeds_of_their_own(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": MESSAGES, "max_tokens": 8, "temperature": 1.5, "n": 3, "seed": 5}
    first, again = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3 and [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage is not None and first.usage.completion_tokens == 24


def test_log_probabilities_are_of_what_was_said(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    asked["logit_bias"] = {str(token): -100 for token in range(278, 320)}  # which the tokenizer does not know
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0]
    assert found.logprobs is not None and found.logprobs.content is not None
    said = b"".join(bytes(each.bytes or ()) for each in found.logprobs.content)
    assert said.decode("utf-8", "replace").strip() == (found.message.content or "").strip()
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in found.logprobs.content)


def test_stop_strings_biases_and_penalties(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    text = client.chat.completions.create(**asked).choices[0].message.content or ""
    stop = text[3:6]
    ended = client.chat.completions.create(**asked, stop=[stop, "nowhere"]).choices[0]
    assert ended.finish_reason == "stop" and ended.message.content == text[: text.index(stop)]
    biased = client.chat.completions.create(**asked, logit_bias={"70": 100}, logprobs=True).choices[0]
    assert biased.logprobs is not None and biased.logprobs.content is not None
    assert len({each.token for each in biased.logprobs.content}) == 1
    assert client.chat.completions.create(**asked, presence_penalty=2, frequency_penalty=2).choices[0].message.content


def test_text_is_gone_on_from(client: openai.OpenAI, model: str) -> None:
    one = client.completions.create(model=model, prompt="the hen", max_tokens=7, temperature=0, logprobs=1)
    assert one.usage is not None and one.usage.completion_tokens == 7
    two = client.completions.create(model=model, prompt=["the hen", "a fox"], max_tokens=7, temperature=0, n=2)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert two.choices[0].text == two.choices[1].text == one.choices[0].text != two.choices[2].text
    pieces = client.completions.create(model=model, prompt="the hen", max_tokens=7, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == one.choices[0].text


def test_tokens_of_a_text_are_told_where_they_begin(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "prompt": "the hen", "max_tokens": 24, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(**asked).choices[0]
    assert whole.logprobs is not None
    tokens, begins = whole.logprobs.tokens or [], whole.logprobs.text_offset or []
    assert len(tokens) == len(begins) == 24 and begins[0] == 0
    for token, begin, end in zip(tokens, begins, [*begins[1:], None], strict=True):
        assert "\ufffd" in token or whole.text[begin:end] == token
    pieces = [each.choices[0].logprobs for each in client.completions.create(**asked, stream=True)]
    assert [at for each in pieces if each is not None for at in each.text_offset or []] == begins


def test_responses_in_one_and_in_pieces(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "input": "the hen and the fox", "max_output_tokens": 9, "temperature": 0}
    whole = client.responses.create(**asked, instructions="be brief")
    assert whole.status == "incomplete" and whole.usage is not None and whole.usage.output_tokens == 9
    with client.responses.stream(**asked, instructions="be brief") as stream:
        events = list(stream)
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text != ""
    following: Any = [
        {"role": "user", "content": "the hen"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "so", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "and then"}]},
    ]
    assert client.responses.create(model=model, input=following, max_output_tokens=3).output_text


def test_messages_in_one_and_in_pieces(claude: anthropic.Anthropic, model: str) -> None:
    asked: Any = {"model": model, "max_tokens": 10, "messages": MESSAGES, "system": "be brief"}
    whole = claude.messages.create(**asked)
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 10
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
    assert final.usage.cache_read_input_tokens
    counted = claude.messages.count_tokens(model=model, messages=MESSAGES, system="be brief")
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic, model: str) -> None:
    asked: Any = {"model": model, "max_tokens": 20, "messages": MESSAGES}
    block = claude.messages.create(**asked).content[0]
    assert block.type == "text"
    stop = block.text[3:6]
    ended = claude.messages.create(**asked, stop_sequences=["nowhere", stop])
    assert (ended.stop_reason, ended.stop_sequence) == ("stop_sequence", stop)


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def test_answers_keep_to_a_schema(client: openai.OpenAI, claude: anthropic.Anthropic, model: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    found = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=60, response_format=form, temperature=1, seed=3
    )
    assert json.loads(found.choices[0].message.content or "").keys() == {"city", "people"}
    any_object = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=200, response_format={"type": "json_object"}, seed=1
    ).choices[0]
    assert any_object.finish_reason == "length" or isinstance(json.loads(any_object.message.content or ""), dict)
    text: Any = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}
    told = client.responses.create(model=model, input="where", text=text, max_output_tokens=60)
    assert json.loads(told.output_text)["city"] in ("Paris", "Rome")


BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}
REFUSED = (
    ({"messages": []}, "messages", None),
    ({"messages": MESSAGES, "foo": 1}, "foo", "unsupported_parameter"),
    ({}, "messages", "missing_required_parameter"),
    ({"messages": MESSAGES, "temperature": 3}, "temperature", None),
    ({"messages": MESSAGES, "store": True}, "store", None),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None, None),
    ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens", None),
    ({"messages": MESSAGES, "logit_bias": {"99999999": 1}}, "logit_bias", None),
    ({"messages": MESSAGES, "top_logprobs": 3}, "top_logprobs", None),
    ({"messages": MESSAGES, "tool_choice": "required"}, "tool_choice", None),
    ({"messages": [{"role": "user", "content": "the hen " * 5000}]}, "messages", "context_length_exceeded"),
    ({"messages": MESSAGES, "chat_template_kwargs": {"tokenize": True}}, None, None),
    ({"messages": MESSAGES, "response_format": BAD_SCHEMA}, None, None),
)  # fmt: skip


@pytest.mark.parametrize(("body", "param", "code"), REFUSED)
def test_what_is_not_done_is_refused_by_name(
    body: dict[str, Any], param: str | None, code: str | None, qwen_server: Running
) -> None:
    with qwen_server.client() as client:
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error" and error["message"]
        if param is not None:
            assert error["param"] == param
        assert error["code"] == code
        streamed = client.post("/v1/chat/completions", json={**body, "stream": True})
        assert streamed.status_code == 400  # before anything is sent


def test_another_model_is_not_here(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        claude.messages.create(model="claude", messages=MESSAGES, max_tokens=3)


def test_health_metrics_and_facts(qwen_server: Running) -> None:
    with qwen_server.client() as client:
        assert client.get("/health").json()["status"] == "ready"
        client.post("/v1/completions", json={"prompt": "the hen", "max_tokens": 3})
        told = client.get("/metrics").text
        for name in (
            "generated_tokens_total",
            'experts_total{tier="disk"}',
            "budget_bytes",
            "first_token_seconds_sum",
        ):
            assert f"moe_local_{name}" in told
        facts = client.get("/api/facts").json()
        assert facts["experts a layer"] == "8" and facts["context"] > 0
        with client.stream("GET", "/api/live") as stream:
            line = next(line for line in stream.iter_lines() if line.startswith("data:"))
        assert len(json.loads(line[5:])["tiers"]) == 4
        assert client.get("/nope").status_code == 404
        assert client.get("/v1/chat/completions").status_code == 405
        assert httpx.get(f"{qwen_server.url}/").headers["content-security-policy"]
