"""What a client is told of what went wrong, in the shapes of OpenAI's and Anthropic's protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_local.errors import BudgetError, MoeLocalError
from moe_local.generation.encoding import TooLongError

INVALID, AUTHENTICATION, NOT_FOUND = "invalid_request_error", "authentication_error", "not_found_error"
PERMISSION, BUSY, SERVER = "permission_error", "rate_limit_error", "server_error"
_OF_ANTHROPIC = {SERVER: "api_error"}  # types that go by another name there
_OVERLOADED = 503


def _described(error: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Of a route's description: what every reply that is no answer looks like."""
    content = {"application/json": {"schema": error}}
    return {
        "4XX": {"description": "The request is refused.", "content": content},
        "5XX": {"description": "The server has failed, or is not ready.", "content": content},
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_TEXT, _TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
ERRORS_OF_OPENAI = _described(
    _object(error=_object(message=_TEXT, type=_TEXT, param=_TEXT_OR_NULL, code=_TEXT_OR_NULL))
)
ERRORS_OF_ANTHROPIC = _described(_object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT)))


class RefusedError(Exception):
    """A request that is not answered: an HTTP status, and what is wrong with which of its fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after  # seconds
        super().__init__(message)

    @property
    def headers(self) -> dict[str, str]:
        """Beside those of any reply."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def for_openai(self) -> dict[str, Any]:
        """https://platform.openai.com/docs/guides/error-codes"""
        said = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": said}

    def for_anthropic(self) -> dict[str, Any]:
        """https://docs.anthropic.com/en/api/errors"""
        kind = "overloaded_error" if self.status == _OVERLOADED else _OF_ANTHROPIC.get(self.kind, self.kind)
        message = self.message if self.param is None else f"{self.param}: {self.message}"
        return {"type": "error", "error": {"type": kind, "message": message}}


def refused(error: MoeLocalError) -> RefusedError:
    """What an error of ours is to a client: what it asked cannot be done."""
    if isinstance(error, TooLongError):
        return RefusedError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, BudgetError):
        return RefusedError(400, str(error), code="budget_too_small")
    return RefusedError(400, str(error))


def of_validation(errors: Sequence[Any]) -> RefusedError:
    """What pydantic found in a request's body: of what could be several things the one that comes nearest."""
    first = max(errors, key=lambda error: len(error.get("loc", ())))
    where = [part for part in first.get("loc", ()) if part != "body" and not _is_of_types(part)]
    param = _dotted(where) or None
    kind, message = first.get("type"), str(first.get("msg", "cannot be read"))
    if kind == "extra_forbidden":
        return RefusedError(400, f"{param} is not supported here", param=param, code="unsupported_parameter")
    if kind == "missing":
        return RefusedError(
            400, f"{param or 'a JSON body'} is missing", param=param, code="missing_required_parameter"
        )
    if kind == "json_invalid":
        return RefusedError(400, f"the body is not JSON ({_reason(first)})", code="invalid_json")
    return RefusedError(400, f"{param or 'the body'}: {message.removeprefix('Value error, ')}", param=param)


def _is_of_types(part: Any) -> bool:
    """Whether a part of a place is pydantic's name of a type, and no name of a field."""
    return isinstance(part, str) and (
        not part.isidentifier() or part[:1].isupper() or part in ("str", "function-after")
    )


def _dotted(where: Sequence[Any]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".")


def _reason(error: Any) -> str:
    return str(error.get("ctx", {}).get("error", error.get("msg", "")))
