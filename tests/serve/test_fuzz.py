"""Whatever the server's own description of itself allows, and much that it does not: no 5xx, and it still answers."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serve.conftest import Running

_EXAMPLES = 40
_ASKED = (
    ("POST", "/v1/chat/completions", "max_completion_tokens"),
    ("POST", "/v1/completions", "max_tokens"),
    ("POST", "/v1/responses", "max_output_tokens"),
    ("POST", "/v1/messages", "max_tokens"),
    ("POST", "/v1/messages/count_tokens", None),
    ("POST", "/budgets", None),
    ("GET", "/v1/models/{name}", None),
    ("GET", "/api/facts", None),
)


_CHECKS = ("response_schema_conformance", "status_code_conformance", "content_type_conformance")


def _bounded(body: Any, limit: str | None) -> Any:
    """With an answer of a few tokens, where a body asks for one at all."""
    if not isinstance(body, dict) or limit is None:
        return body
    short = {key: value for key, value in body.items() if key not in ("max_tokens", limit)}
    return {**short, limit: 2}


@pytest.mark.parametrize(("method", "path", "limit"), _ASKED)
def test_nothing_that_is_asked_is_an_error_of_the_server(
    method: str, path: str, limit: str | None, qwen_server: Running
) -> None:
    schema = schemathesis.openapi.from_url(f"{qwen_server.url}/openapi.json")
    operation = schema[path][method]
    cases = st.one_of(
        operation.as_strategy(generation_mode=mode)
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    )

    @settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: Any) -> None:
        case.body = _bounded(case.body, limit)
        reply = case.call(base_url=qwen_server.url, timeout=60)
        assert reply.status_code < 500, (case.body, reply.text)
        assert reply.status_code != 422
        case.validate_response(reply, checks=[schemathesis.checks.CHECKS.get_one(name) for name in _CHECKS])

    ask()
    assert qwen_server.process.poll() is None
    with qwen_server.client() as client:
        assert client.post("/v1/completions", json={"prompt": "the hen", "max_tokens": 2}).status_code == 200
