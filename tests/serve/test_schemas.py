"""Answers of a model that says nothing sensible, held to schemas: JSON of them, or a refusal, in bounded time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from moe_local.engine import Engine, load
from moe_local.errors import MoeLocalError
from moe_local.generation.batch import FollowedSequence
from moe_local.generation.grammar import Grammars
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from moe_local.serve.asking import Asked, prepare
from tests.generation.batch.followers import Memory, finish

_SECONDS = 10.0  # of a processor: others may be busy
_TOKENS = 700
words = st.text('abcé"\\ \n{', max_size=5)
names = st.text("abcdé_ ", min_size=1, max_size=4)
integers = st.tuples(st.integers(-50, 50), st.integers(0, 60)).map(
    lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
)
numbers = st.tuples(st.integers(-50, 50), st.integers(1, 60)).map(
    lambda pair: {"type": "number", "minimum": pair[0], "maximum": pair[0] + pair[1]}
)
texts = st.one_of(
    st.integers(0, 6).map(lambda most: {"type": "string", "maxLength": most}),
    st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    ),
    st.sampled_from(["^[a-z]{1,5}$", "^\\d{2}-\\d{2}$", "^(yes|no)$", "^[A-F0-9]{4}$", "^\\w{0,3}\\.$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
)
values = st.none() | st.booleans() | st.integers(-9, 9) | words
leaves = st.one_of(
    integers,
    numbers,
    texts,
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    values.map(lambda value: {"const": value}),
    st.lists(values, min_size=1, max_size=5, unique_by=repr).map(lambda each: {"enum": each}),
)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    properties = draw(st.dictionaries(names, inner, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda found: {"type": "array", "items": found[0], "minItems": found[1], "maxItems": found[1] + found[2]}
    )
    either = st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
    return st.one_of(objects(inner), arrays, either, inner)


nested = _deeper(_deeper(_deeper(leaves)))


@st.composite
def schemas(draw: st.DrawFn) -> Any:
    """Some with a part that is named, and meant in two places."""
    schema = draw(nested)
    if draw(st.integers(0, 3)):
        return schema
    part = draw(_deeper(leaves))
    both = {"one": {"$ref": "#/$defs/part"}, "two": {"$ref": "#/$defs/part"}, "rest": schema}
    return {
        "$defs": {"part": part},
        "type": "object",
        "properties": both,
        "required": list(both),
        "additionalProperties": False,
    }


@pytest.fixture(scope="module")
def engine(qwen: Path) -> Iterator[Engine]:
    with load(qwen, Options(device="cpu", context=512, max_sequences=1, tokens_per_sequence=512)) as engine:
        yield engine


@pytest.fixture(scope="module")
def grammars(engine: Engine) -> Grammars:
    vocabulary = int(engine.model.config.get_text_config().vocab_size)
    return Grammars(engine.generator.tokenizer, vocabulary, engine.generator.end_tokens)


def _answer(engine: Engine, grammars: Grammars, schema: Any, **sampling: Any) -> Memory:
    """Raises MoeLocalError for a schema that answers cannot be held to."""
    asked = Asked("the hen", Sampling(max_new_tokens=_TOKENS, **sampling), schema=schema)
    request, ids = prepare(engine.generator, asked, lambda: grammars)
    batch, memory = engine.live_batch(), Memory()
    batch.on_error = _raise
    batch.add(FollowedSequence(request, ids, engine.generator, memory))
    finish(batch)
    return memory


def _raise(error: Exception) -> None:
    raise error


_ended = {"stop": 0, "length": 0, "refused": 0}


@settings(
    max_examples=200, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None
)
@given(schemas(), st.sampled_from([0.0, 0.7, 1.5]), st.integers(0, 99))
def _each_is_json_of_its_schema(engine: Engine, grammars: Grammars, schema: Any, heat: float, seed: int) -> None:
    try:
        memory = _answer(engine, grammars, schema, temperature=heat, seed=seed)
    except MoeLocalError:
        _ended["refused"] += 1
        return
    assert memory.answer is not None and memory.answer.error is None, (schema, memory.answer)
    _ended[memory.answer.finish_reason] += 1
    if memory.answer.finish_reason == "stop":
        jsonschema.validate(json.loads(memory.answer.text), schema)


def test_answers_are_json_of_their_schemas(engine: Engine, grammars: Grammars) -> None:
    _each_is_json_of_its_schema(engine, grammars)
    assert _ended["stop"] > 150, _ended


def _defs(**parts: Any) -> Any:
    return {"$defs": parts, "$ref": "#/$defs/a"}


def _nested(depth: int) -> Any:
    found: Any = {"type": "integer"}
    for _ in range(depth):
        found = {"type": "array", "items": found}
    return found


HOSTILE: dict[str, Any] = {
    "refers to itself": _defs(a={"$ref": "#/$defs/a"}),
    "refers in a circle": _defs(a={"$ref": "#/$defs/b"}, b={"$ref": "#/$defs/a"}),
    "is recursive": _defs(a={"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}),
    "has no end": _defs(a={"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}),
    "refers to nowhere": {"$ref": "#/$defs/nowhere"},
    "refers to the web": {"$ref": "https://example.org/schema.json"},
    "refers to a file": {"$ref": "file:///etc/passwd"},
    "many properties": {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(10_000)}},
    "a huge enum": {"enum": [f"value {n}" for n in range(50_000)]},
    "exponential": {"type": "string", "pattern": "^(a|a|a)*(a*)*b$"},
    "doubling": {"type": "string", "pattern": "^(.*a.{20}){1,20}$"},
    "repeated": {"type": "string", "pattern": "^((a{1,999}){1,999}){1,999}$"},
    "looks behind": {"type": "string", "pattern": "(?<=a)b"},
    "no pattern": {"type": "string", "pattern": "("},
    "long": {"type": "string", "minLength": 10**9, "maxLength": 10**9},
    "long at most": {"type": "string", "maxLength": 10**9},
    "many items": {"type": "array", "items": {"type": "null"}, "minItems": 10**9},
    "great bounds": {"type": "integer", "minimum": -(10**40), "maximum": 10**40},
    "crossed bounds": {"type": "integer", "minimum": 3, "maximum": 2},
    "never": False,
    "nested": _nested(90),
    "half a character": {"const": "\ud800"},
    "all of much": {"allOf": [{"anyOf": [{"const": n * m} for n in range(30)]} for m in range(6)]},
    "no schema": {"type": "no"},
    "types that are none": {"type": [1, None], "properties": 3, "required": "x"},
    "own settings": {"type": "integer", "x-guidance": {"whitespace_flexible": True, "lenient": True}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_kept_to_or_refused_soon(name: str, engine: Engine, grammars: Grammars) -> None:
    grammars.bytes_of(0)  # once a model
    began = process_time()
    try:
        memory = _answer(engine, grammars, HOSTILE[name], temperature=0, seed=0)
    except MoeLocalError:
        pass
    else:
        assert memory.answer is not None
    assert process_time() - began < _SECONDS
