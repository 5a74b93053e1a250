"""OpenAI's responses: https://platform.openai.com/docs/api-reference/responses. Nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from moe_local.serve.asking import JSON_OBJECT, Asked
from moe_local.serve.chat import Effort
from moe_local.serve.errors import RefusedError
from moe_local.serve.fields import Json, Strict, Tokens, Unused, sampling, steady, template_variables
from moe_local.serve.service import Service
from moe_local.serve.tool_fields import Function, Name, NamedFunction, NamedTool, Tool, tools_of


class InputText(Strict):
    """Text is all that is understood here."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = None


class InputMessage(Strict):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class InputCall(Strict):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class InputResult(Strict):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: str | None = None


class Said(Strict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class InputReasoning(Strict):
    """What the model reasoned in an earlier turn."""

    type: Literal["reasoning"]
    summary: list[Said] = Field(default_factory=list)
    content: list[Said] | None = None
    id: str | None = None
    status: str | None = None
    encrypted_content: None = None


Item = InputMessage | InputCall | InputResult | InputReasoning


class ResponsesTool(Strict):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class NamedResponsesTool(Strict):
    type: Literal["function"]
    name: str


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Json | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(Unused):
    """What is to be answered. What is not named here is refused."""

    model: str | None = None
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: list[ResponsesTool] | None = Field(None, max_length=1024)
    tool_choice: Literal["none", "auto", "required"] | NamedResponsesTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = Field(
        None, description="Reasoning is never encrypted here: it is in the answer as it is."
    )

    def asked(self, service: Service) -> list[Asked]:
        """What is to be answered. Raises RefusedError."""
        chosen = sampling(
            max_new_tokens=self.max_output_tokens, temperature=steady(self.temperature), top_p=self.top_p
        )
        tools = [Tool(type="function", function=_function(tool)) for tool in self.tools or ()]
        named = self.tool_choice
        choice = (
            NamedTool(type="function", function=NamedFunction(name=named.name))
            if isinstance(named, NamedResponsesTool)
            else named
        )
        return [
            Asked(
                prompt=self._messages(),
                sampling=chosen,
                variables=template_variables(None if self.reasoning is None else self.reasoning.effort, None),
                schema=self._schema(),
                **tools_of(tools, choice, many=self.parallel_tool_calls is not False),
            )
        ]

    def _schema(self) -> Mapping[str, Any] | None:
        form = None if self.text is None else self.text.format
        if form is None or form.type == "text":
            return None
        if form.type == "json_schema" and form.schema_ is None:
            raise RefusedError(400, "the schema is missing", param="text.format.schema")
        return form.schema_ if form.schema_ is not None else JSON_OBJECT

    def _messages(self) -> list[Mapping[str, Any]]:
        """As chat templates take them: what the assistant said, reasoned and called in one turn is one message."""
        begin = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*begin, {"role": "user", "content": self.input}]
        found: list[dict[str, Any]] = [*begin]
        for item in self.input:
            if isinstance(item, InputResult):
                found.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            elif isinstance(item, InputMessage) and item.role != "assistant":
                found.append({"role": item.role, "content": _text(item.content)})
            else:
                _add_to_turn(found, item)
        return [*found]


def _add_to_turn(found: list[dict[str, Any]], item: Item) -> None:
    """Adds what the assistant did to its turn, which begins here if it has not."""
    turn = found[-1] if found and found[-1]["role"] == "assistant" else None
    if turn is None or (isinstance(item, InputReasoning) and (turn["content"] or "tool_calls" in turn)):
        turn = {"role": "assistant", "content": ""}
        found.append(turn)
    if isinstance(item, InputMessage):
        turn["content"] += _text(item.content)
    elif isinstance(item, InputCall):
        function = {"name": item.name, "arguments": item.arguments}
        turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    elif isinstance(item, InputReasoning):
        turn["reasoning_content"] = "".join(said.text for said in item.content or item.summary)


def _function(tool: ResponsesTool) -> Function:
    return Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)


def _text(content: str | Sequence[InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
