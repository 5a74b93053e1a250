"""JSON that is handed on as it is: neither its depth nor numbers that JSON has not are an error of the server."""

from __future__ import annotations

import pytest

from tests.serve.conftest import Running


def _nested(depth: int, key: str = "items") -> str:
    return f'{{"{key}":' * depth + "{}" + "}" * depth


BODIES = (
    (
        "/v1/chat/completions",
        '"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}',
    ),
    ("/v1/chat/completions", '"chat_template_kwargs": {"x": %s}'),
    ("/v1/chat/completions", '"tools": [{"type": "function", "function": {"name": "f", "parameters": %s}}]'),
    ("/v1/messages", '"tools": [{"name": "f", "input_schema": %s}]'),
    ("/v1/messages/count_tokens", '"tools": [{"name": "f", "input_schema": %s}]'),
    ("/v1/responses", '"tools": [{"type": "function", "name": "f", "parameters": %s}]'),
)


@pytest.mark.parametrize(("path", "field"), BODIES)
@pytest.mark.parametrize("value", [_nested(300), _nested(900), _nested(20_000), '{"x": NaN}', '{"x": [-Infinity]}'])
def test_what_cannot_be_handed_on_is_refused(path: str, field: str, value: str, qwen_server: Running) -> None:
    said = (
        '"input": "hen", "max_output_tokens": 2'
        if path.endswith("responses")
        else '"messages": [{"role": "user", "content": "hen"}]'
    )
    limit = "" if path.endswith(("responses", "count_tokens")) else '"max_tokens": 2,'
    with qwen_server.client() as client:
        body = f"{{{limit} {said}, {field % value}}}"
        reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["message"]
