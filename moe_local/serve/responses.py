"""OpenAI's responses: https://platform.openai.com/docs/api-reference/responses. Nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from moe_local.generation.batch import Answer
from moe_local.generation.batch.steering import Steering
from moe_local.serve.answers import Answers, Whole
from moe_local.serve.asking import JSON_OBJECT, Asked
from moe_local.serve.blocks import Block, Blocks, Kind, Step, blocks_of
from moe_local.serve.chat import Effort, new_call_id
from moe_local.serve.errors import RefusedError
from moe_local.serve.feed import Ended
from moe_local.serve.fields import Strict, Tokens, Unused, sampling, template_variables
from moe_local.serve.replies import event
from moe_local.serve.service import Service
from moe_local.serve.tool_fields import Function, Name, NamedFunction, NamedTool, Tool, tools_of

_LOWEST = 5e-3
_LOGPROBS: dict[str, Any] = {"logprobs": []}


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
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedResponsesTool(Strict):
    type: Literal["function"]
    name: str


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
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
        cold = self.temperature is not None and self.temperature < _LOWEST
        chosen = sampling(
            max_new_tokens=self.max_output_tokens,
            temperature=0.0 if cold else self.temperature,
            top_p=None if cold else self.top_p,
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
                steering=Steering(),
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


class ResponsesReply:
    """What is said of the answer, at once or piece by piece."""

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        self._request = request
        self._numbered = 0
        asked = request.model_dump(by_alias=True, exclude_none=True)
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "instructions": request.instructions,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": [{"strict": None, "parameters": None, **tool} for tool in asked.get("tools", [])],
            "text": asked.get("text", {"format": {"type": "text"}}),
            "truncation": "disabled",
            "store": False,
        }

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The reply in one. Raises RefusedError."""
        (found,) = await answers.whole()
        return self._done(found, [_Item(block) for block in blocks_of(found.answer)])

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """Server-sent events; an error in the middle is one as well."""
        begun = {**self._head, "status": "in_progress", "output": [], "incomplete_details": None, "usage": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        blocks, items = Blocks(), []
        try:
            async for _, each in answers.events():
                steps = [*blocks.take(each), *(blocks.end() if isinstance(each, Ended) else ())]
                for step, block, piece in steps:
                    if step is Step.BEGINS:
                        items.append(_Item(block))
                    for kind, more in items[block.number].events(step, piece):
                        yield self._event(kind, output_index=block.number, **more)
                if isinstance(each, Ended):
                    done = self._done(Whole(each.answer, answers.cached[0]), items)
                    yield self._event(f"response.{done['status']}", response=done)
        except RefusedError as error:
            yield self._event("error", code=error.code, message=error.message, param=error.param)

    def _event(self, kind: str, **more: Any) -> str:
        number, self._numbered = self._numbered, self._numbered + 1
        return event({"type": kind, "sequence_number": number, **more}, kind)

    def _done(self, found: Whole, items: Sequence[_Item]) -> dict[str, Any]:
        answer, whole = found.answer, found.answer.finish_reason != "length"
        return {
            **self._head,
            "status": "completed" if whole else "incomplete",
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "output": [item.json("completed" if whole else "incomplete") for item in items],
            "usage": _usage(answer, found.cached_tokens),
        }


class _Item:
    """A block as an item of the output."""

    def __init__(self, block: Block) -> None:
        self._block = block
        prefix = {Kind.TEXT: "msg", Kind.REASONING: "rs", Kind.CALL: "fc"}[block.kind]
        self._id = f"{prefix}_{uuid.uuid4().hex}"
        self._call_id = new_call_id()

    def json(self, status: str) -> dict[str, Any]:
        """The whole item; with nothing in it where it is `in_progress`."""
        text = "" if status == "in_progress" else self._block.text
        content = [] if status == "in_progress" else [self._part(text)]
        head = {"id": self._id, "status": status}
        if self._block.kind is Kind.TEXT:
            return {**head, "type": "message", "role": "assistant", "content": content}
        if self._block.kind is Kind.REASONING:
            return {**head, "type": "reasoning", "summary": [], "content": content}
        call = {"call_id": self._call_id, "name": self._block.name, "arguments": text}
        return {**head, "type": "function_call", **call}

    def events(self, step: Step, piece: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is told of a step."""
        where = {"item_id": self._id}
        inside = {**where, "content_index": 0}
        name, call = self._name(), self._block.kind is Kind.CALL
        if step is Step.BEGINS:
            yield "response.output_item.added", {"item": self.json("in_progress")}
            if not call:
                yield "response.content_part.added", {**inside, "part": self._part("")}
        elif step is Step.GOES_ON:
            more = _LOGPROBS if self._block.kind is Kind.TEXT else {}
            yield f"response.{name}.delta", {**(where if call else inside), "delta": piece, **more}
        else:
            text = self._block.text
            if call:
                yield f"response.{name}.done", {**where, "name": self._block.name, "arguments": text}
            else:
                more = _LOGPROBS if self._block.kind is Kind.TEXT else {}
                yield f"response.{name}.done", {**inside, "text": text, **more}
                yield "response.content_part.done", {**inside, "part": self._part(text)}
            yield "response.output_item.done", {"item": self.json("completed")}

    def _name(self) -> str:
        return {Kind.TEXT: "output_text", Kind.REASONING: "reasoning_text", Kind.CALL: "function_call_arguments"}[
            self._block.kind
        ]

    def _part(self, text: str) -> dict[str, Any]:
        if self._block.kind is Kind.REASONING:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answer: Answer, cached: int) -> dict[str, Any]:
    prompt, new = answer.prompt_tokens, answer.new_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": new,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + new,
    }
