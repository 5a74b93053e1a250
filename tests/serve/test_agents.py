"""Agents: tools are called, their results given back, turn after turn, and nothing is computed twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.serve.conftest import Running, serving

TURNS = 20
TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool.function.name }} {% endfor %}</tools>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.role == 'tool' %}{{ message.name }}: {% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}</{{ message.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SEARCH: Any = {
    "name": "search",
    "description": "Looks something up.",
    "parameters": {
        "type": "object",
        "properties": {"what": {"type": "string", "maxLength": 6}, "count": {"type": "integer", "maximum": 99}},
        "required": ["what", "count"],
        "additionalProperties": False,
    },
}
CLOCK: Any = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
FOR_OPENAI: Any = [{"type": "function", "function": each} for each in (SEARCH, CLOCK)]
FOR_CLAUDE: Any = [{"name": each["name"], "input_schema": each["parameters"]} for each in (SEARCH, CLOCK)]
NAMES = {"search", "clock"}


@pytest.fixture(scope="module")
def server(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A tiny model of a long context, whose template knows tools."""
    model = Path(shutil.copytree(qwen, tmp_path_factory.mktemp("agents") / "tiny"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20_000}))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    options = ("--context", "12000", "--dtype", "float32", "--experts", "50%", "--alias", "claude")
    with serving(model, model.parent / "server", *options) as running:
        yield running


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_twenty_turns_of_calls_and_results(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "use the tools"}, {"role": "user", "content": "find the hen"}]
    called = set()
    asked: Any = {"model": "tiny", "tools": FOR_OPENAI, "tool_choice": "required", "parallel_tool_calls": False}
    asked |= {"max_tokens": 400, "temperature": 1}
    for turn in range(TURNS):
        reply = client.chat.completions.create(messages=messages, seed=turn, **asked)
        choice, usage = reply.choices[0], reply.usage
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        assert usage is not None and usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        assert turn == 0 or cached > usage.prompt_tokens // 2  # the turns before
        messages.append(choice.message.model_dump(exclude_none=True))
        for call in choice.message.tool_calls:
            assert call.type == "function"
            _assert_given(call.function.name, json.loads(call.function.arguments))
            called.add(call.function.name)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"nothing, in turn {turn}"})
    assert called == NAMES


def test_several_calls_in_one_answer(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "find both"}], "tools": FOR_OPENAI}
    choice = client.chat.completions.create(tool_choice="required", max_tokens=600, temperature=0, **asked).choices[0]
    assert choice.message.tool_calls is not None and len(choice.message.tool_calls) > 1
    assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)


def test_streamed_calls_are_those_of_the_whole(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "find the fox"}],
        "tools": FOR_OPENAI,
        "tool_choice": {"type": "function", "function": {"name": "search"}},
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 300,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.message.tool_calls is not None and whole.message.content is None
    (call,) = whole.message.tool_calls
    assert call.type == "function" and call.function.name == "search"
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and final.message.tool_calls
    assert final.message.tool_calls[0].function.arguments == call.function.arguments


def test_twenty_turns_of_claude(server: Running) -> None:
    claude = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "find the hen"}]}]
    system = [{"type": "text", "text": "use the tools", "cache_control": {"type": "ephemeral"}}]
    asked: Any = {"model": "claude", "max_tokens": 400, "system": system, "tools": FOR_CLAUDE}
    asked["tool_choice"] = {"type": "any", "disable_parallel_tool_use": True}
    for turn in range(TURNS):
        with claude.messages.stream(messages=messages, **asked) as stream:
            reply = stream.get_final_message()
        assert reply.stop_reason == "tool_use"
        read = reply.usage.cache_read_input_tokens or 0
        assert turn == 0 or read > reply.usage.input_tokens
        messages.append({"role": "assistant", "content": [block.model_dump() for block in reply.content]})
        results = []
        for block in reply.content:
            if block.type == "tool_use":
                _assert_given(block.name, dict(block.input))
                results.append({"type": "tool_result", "tool_use_id": block.id, "content": f"nothing in {turn}"})
        assert results
        messages.append({"role": "user", "content": results})


def test_calls_of_responses_and_their_results(client: openai.OpenAI) -> None:
    tools = [{"type": "function", **each} for each in (SEARCH, CLOCK)]
    asked: Any = {"model": "tiny", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    asked |= {"max_output_tokens": 300, "temperature": 0}
    given: Any = [{"role": "user", "content": "find the hen"}]
    for _ in range(3):
        reply = client.responses.create(input=given, **asked)
        calls = [item for item in reply.output if item.type == "function_call"]
        assert calls and reply.status == "completed"
        given += [item.model_dump(exclude_none=True) for item in reply.output]
        for call in calls:
            _assert_given(call.name, json.loads(call.arguments))
            given.append({"type": "function_call_output", "call_id": call.call_id, "output": "nothing"})


def test_reasoning_that_was_said_is_taken_back(server: Running) -> None:
    claude = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
    content: Any = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "so"}]
    messages: Any = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": "b"},
    ]
    assert claude.messages.create(model="claude", max_tokens=3, messages=messages).content


BAD = {"cut": "{", "array": "[]", "text": '"text"', "deep": "[" * 5000, "surrogate": '{"a": "\\ud800"}'}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_arguments_that_are_none_are_refused_or_taken(arguments: str, server: Running) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": arguments}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with server.client() as http:
        reply = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2, "tools": FOR_OPENAI})
        assert reply.status_code in (200, 400) and "Traceback" not in reply.text


def _assert_given(name: str, given: dict[str, Any]) -> None:
    assert name in NAMES
    if name == "search":
        assert isinstance(given["what"], str) and len(given["what"]) <= 6 and given["count"] <= 99
    else:
        assert given == {}
