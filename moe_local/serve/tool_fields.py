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


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def tools_of(tools: Sequence[Tool] | None, choice: ToolChoice | None, *, many: bool) -> dict[str, Any]:
    """The fields of `Asked` that say which tools there are and whether one has to be called. Raises RefusedError."""
    known = [each.function.name for each in tools or ()]
    if len(set(known)) < len(known):
        raise RefusedError(400, "two tools have one name", param="tools")
    name = choice.function.name if isinstance(choice, NamedTool) else None
    if name is not None and name not in known:
        raise RefusedError(400, f"there is no tool {name!r}", param="tool_choice")
    if choice == "required" and not known:
        raise RefusedError(400, "there is no tool to call", param="tool_choice")
    if not tools or choice == "none":
        return {}
    forced = (name,) if name is not None else tuple(known if choice == "required" else ())
    return {"tools": [described(each.function) for each in tools], "forced": forced, "many": many}


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
