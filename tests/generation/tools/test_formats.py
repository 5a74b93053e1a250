"""Every format's calls are read back from what its models write, however the text is cut; what is none stays text."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from moe_local.generation.grammar import Grammars
from moe_local.generation.tools import TOOL_FORMATS, ToolCall, ToolFormat, tool_format
from moe_local.generation.tools.reader import CallReader
from tests.generation.speaking import tokenizer_with

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "wind": {"type": "boolean"},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
PARIS = ("get_weather", {"city": 'Paris, "TX"', "days": 3})
BAR, BLOCK = "\uff5c", "\u2581"


def _deepseek(text: str) -> str:
    return text.replace("|", BAR).replace("_", BLOCK)


JSON = json.dumps(PARIS[1])
PARAMETERS = "<parameter{eq}city{q}>\n{city}\n</parameter>\n<parameter{eq}days{q}>\n3\n</parameter>\n"
# What a model says, and what is left of it as text; each of it calls PARIS, then now().
WRITTEN: dict[str, tuple[str, str]] = {
    "hermes": (
        f'Let me look.\n<tool_call>\n{{"name": "get_weather", "arguments": {JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "Let me look.",
    ),
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n"
        + PARAMETERS.format(eq="=", q="", city=PARIS[1]["city"])
        + "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
    ),
    "glm": (
        f"I see.<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{PARIS[1]['city']}</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        "I see.",
    ),
    "minimax": (
        '<minimax:tool_call>\n<invoke name="get_weather">\n'
        + PARAMETERS.format(eq=' name="', q='"', city=PARIS[1]["city"])
        + '</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        "",
    ),
    "kimi": (
        "Yes<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{JSON}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}"
        "<|tool_call_end|><|tool_calls_section_end|>",
        "Yes",
    ),
    "deepseek": (
        _deepseek("<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>get|weather\n").replace(
            f"get{BAR}weather", "get_weather"
        )
        + f"```json\n{JSON}\n```"
        + _deepseek("<|tool_call_end|>\n<|tool_call_begin|>now<|tool_sep|>{}<|tool_call_end|><|tool_calls_end|>"),
        "",
    ),
    "mistral": (f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {JSON}}}, {{"name": "now"}}]', ""),
    "mistral-named": (f"Well. [TOOL_CALLS]get_weather[ARGS]{JSON}[TOOL_CALLS]now[ARGS]{{}}", "Well."),
    "granite": (f'<|tool_call|>[{{"name": "get_weather", "arguments": {JSON}}}, {{"name": "now"}}]', ""),
    "llama": (f'{{"name": "get_weather", "parameters": {JSON}}}; {{"name": "now", "parameters": {{}}}}', ""),
    "llama-tag": (f'<|python_tag|>{{"name": "get_weather", "parameters": {JSON}}};{{"name": "now"}}', ""),
    "llama-python": (f"[get_weather(city={PARIS[1]['city']!r}, days=3), now()]", ""),
}


def _format(name: str, *special: str) -> ToolFormat:
    return TOOL_FORMATS[name.partition("-")[0]](tokenizer_with(*special))


def _read(reader: CallReader, pieces: Sequence[str]) -> tuple[str, list[ToolCall]]:
    found = [each for piece in pieces for each in reader.feed(piece)] + list(reader.end())
    text = "".join(each for each in found if isinstance(each, str))
    return text, [each for each in found if isinstance(each, ToolCall)]


def _cut(text: str, places: Sequence[int]) -> list[str]:
    at = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in pairwise(at)]


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_calls_are_read_however_the_text_is_cut(name: str, places: list[int]) -> None:
    written, left = WRITTEN[name]
    text, calls = _read(CallReader(_format(name), TOOLS), _cut(written, places))
    assert text.strip() == left
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [PARIS, ("now", {})]


@pytest.mark.parametrize("name", WRITTEN)
def test_token_by_token(name: str) -> None:
    written, left = WRITTEN[name]
    text, calls = _read(CallReader(_format(name), TOOLS), list(written))
    assert (text.strip(), [call.name for call in calls]) == (left, ["get_weather", "now"])


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_of_functions_that_there_are_not_stay_text(name: str) -> None:
    written, _ = WRITTEN[name]
    other = [{"type": "function", "function": {"name": "other"}}]
    text, calls = _read(CallReader(_format(name), other), list(written))
    assert not calls
    assert "get_weather" in text and "Paris" in text


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(WRITTEN)), st.text(alphabet="<>[]{}|/\"' \n:=toolcagsn_ARGTOL", max_size=80))
def test_any_other_text_is_lost_nowhere(name: str, said: str) -> None:
    text, calls = _read(CallReader(_format(name), TOOLS), list(said))
    if not calls:
        assert text.strip() == said.strip()


@pytest.mark.parametrize("name", ["hermes", "mistral", "llama", "glm", "granite"])
def test_what_never_ends_takes_no_time(name: str) -> None:
    opening = _format(name).openings[0]
    began = time.process_time()
    reader = CallReader(_format(name), TOOLS)
    said = opening + '[{"a": "' + "}" * 200_000
    text, calls = _read(reader, _cut(said, range(0, 200_000, 50)))
    assert not calls and len(text) == len(said)
    assert time.process_time() - began < 20


def test_deep_values_are_text() -> None:
    said = f'<tool_call>{{"name": "now", "arguments": {"[" * 100_000}{"]" * 100_000}}}</tool_call>'
    text, calls = _read(CallReader(_format("hermes"), TOOLS), [said])
    assert not calls and text == said


@pytest.mark.parametrize(
    "value", ["{1, 2}", "b'a'", "1e999", "...", "3j", "{(1, 2): 3}", "{[1]: 2}", "[" * 150 + "]" * 150]
)
def test_values_that_json_has_not_are_text(value: str) -> None:
    said = f"[now(a={value})]"
    text, calls = _read(CallReader(_format("llama"), TOOLS), ["<|python_tag|>", said])
    assert not calls and said in text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "[" * 150 + "]" * 150])
def test_numbers_and_depths_that_json_has_not_are_text(value: str) -> None:
    said = f'<tool_call>{{"name": "now", "arguments": {{"a": {value}}}}}</tool_call>'
    text, calls = _read(CallReader(_format("hermes"), TOOLS), [said])
    assert not calls and text == said


@pytest.mark.parametrize(
    "parameters",
    [{"properties": [1]}, {"properties": {"a": {"enum": 3}}}, {"properties": {"a": {"type": [{}], "anyOf": 3}}}],
)
def test_a_schema_that_is_none_tells_no_types(parameters: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    said = "<tool_call>f<arg_key>a</arg_key><arg_value>3</arg_value></tool_call>"
    _, calls = _read(CallReader(_format("glm"), tools), [said])
    assert [call.arguments for call in calls] == ['{"a": 3}']


TEMPLATES = {
    "harmony": "",
    "hermes": "{{ tools }} <tool_call>",
    "qwen3_coder": "{{ tools }} <tool_call> <function=",
    "glm": "{{ tools }} <tool_call> <arg_key>",
    "minimax": "{{ tools }} <minimax:tool_call>",
    "kimi": "{{ tools }} <|tool_calls_section_begin|>",
    "deepseek": _deepseek("{{ tools }} <|tool_calls_begin|>"),
    "mistral": "{{ tools }} [TOOL_CALLS]",
    "granite": "{{ tools }} <|tool_call|>",
    "llama": "{{ tools }} <|python_tag|>",
}


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_a_template_tells_the_format(name: str) -> None:
    special = ("<|channel|>", "<|message|>") if name == "harmony" else ()
    found = tool_format(tokenizer_with(*special), TEMPLATES[name])
    assert type(found) is TOOL_FORMATS[name]


FORCED = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "qwen3_coder": (),
    "mistral": ("[TOOL_CALLS]",),
    "mistral-named": ("[TOOL_CALLS]", "[ARGS]"),
    "llama": (),
}


@pytest.mark.parametrize("name", FORCED)
@pytest.mark.parametrize("many", [False, True])
def test_whatever_a_grammar_allows_is_read_back(name: str, many: bool) -> None:
    import torch

    tokenizer: PreTrainedTokenizerFast = tokenizer_with(*FORCED[name])
    form = TOOL_FORMATS[name.partition("-")[0]](tokenizer)
    rules = form.grammar(TOOLS, many=many)
    assert rules is not None
    grammar = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id]).lark(f"start: calls\n{rules}")
    torch.manual_seed(3)
    ended = 0
    for _ in range(12):
        matcher, ids = grammar.begin(), []
        for _ in range(500):
            token = int(matcher.mask(torch.randn(len(tokenizer)) + _wish(tokenizer)).argmax())
            if token == tokenizer.eos_token_id:
                ended += 1
                _assert_calls(form, tokenizer.decode(ids), many=many)
                break
            matcher.accept(token)
            ids.append(token)
    assert ended >= 4


def _wish(tokenizer: Any) -> Any:
    """Scores by which strings end sooner or later."""
    import torch

    wish = torch.zeros(len(tokenizer))
    for text in ('"', "}", "\n", "<"):
        wish[tokenizer.encode(text, add_special_tokens=False)[-1]] = 2.5
    wish[tokenizer.eos_token_id] = 3
    return wish


def _assert_calls(form: ToolFormat, said: str, *, many: bool) -> None:
    text, calls = _read(CallReader(form, TOOLS), [said])
    assert calls and (many or len(calls) == 1), said
    assert not text.strip()
    for call in calls:
        given = json.loads(call.arguments)
        if call.name == "get_weather":
            assert isinstance(given["city"], str) and isinstance(given["days"], int)
            assert given.get("unit", "C") in ("C", "F") and isinstance(given.get("wind", True), bool)
