"""Tools as clients describe them, and which of them are to be called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from moe_local.serve.errors import RefusedError
from moe_local.serve.fields import Json, Strict

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]


class Function(Strict):
    """A function that the model may ask to be called; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


Forced = str | bool | None  # the tool that has to be called, or whether any has to; None: none may be
ToolChoice = Literal["none", "auto", "required"] | NamedTool


def tools_of(tools: Sequence[Tool] | None, choice: ToolChoice | None, *, many: bool) -> dict[str, Any]:
    """As `offered`, of OpenAI's tools."""
    forced: Forced = choice.function.name if isinstance(choice, NamedTool) else choice == "required"
    if choice == "none":
        forced = None
    return offered([described(each.function) for each in tools or ()], forced, many=many)


def offered(tools: Sequence[dict[str, Any]], forced: Forced, *, many: bool) -> dict[str, Any]:
    """The fields of `Asked` that say which tools there are, as chat templates take them, and which has to be called.

    Raises RefusedError.
    """
    known = [str(each["function"]["name"]) for each in tools]
    if len(set(known)) < len(known):
        raise RefusedError(400, "two tools have one name", param="tools")
    if isinstance(forced, str) and forced not in known:
        raise RefusedError(400, f"there is no tool {forced!r}", param="tool_choice")
    if forced is True and not known:
        raise RefusedError(400, "there is no tool to call", param="tool_choice")
    if not tools or forced is None:
        return {}
    named = (forced,) if isinstance(forced, str) else tuple(known if forced else ())
    return {"tools": tools, "forced": named, "many": many}


def described(function: Function) -> dict[str, Any]:
    """As chat templates take it."""
    told: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        told["description"] = function.description
    told["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": told}


def call_json(call: Any, identity: str) -> dict[str, Any]:
    """A call as OpenAI's clients read it."""
    return {"id": identity, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
