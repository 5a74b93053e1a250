"""OpenAI's chat completions: https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from moe_local.generation.batch.steering import Steering, TokenChoice
from moe_local.serve.answers import Answers, Whole
from moe_local.serve.asking import JSON_OBJECT, Asked
from moe_local.serve.errors import RefusedError
from moe_local.serve.feed import Call, Ended, Reasoning, Text
from moe_local.serve.fields import Json, SamplingFields, StreamOptions, Strict, Tokens, Unused, template_variables
from moe_local.serve.replies import event
from moe_local.serve.service import Service
from moe_local.serve.tool_fields import Tool, ToolChoice, call_json, tools_of

MOST_ANSWERS = 16
DONE = "data: [DONE]\n\n"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TextPart(Strict):
    """Text is all that is understood here: no pictures, no sound."""

    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    name: str
    arguments: str


class MadeCall(Strict):
    """A call that the model made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Strict):
    """What was said before."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    audio: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    function_call: None = None


class JsonSchema(Strict):
    name: str
    description: str | None = None
    schema_: Json | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(SamplingFields, Unused):
    """A conversation to be answered. What is not named here is refused."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = Field(None, max_length=1024)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: Json | None = Field(None, description="Of local servers.")
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None

    def asked(self, service: Service) -> list[Asked]:
        """As many as `n`, each to be answered for itself. Raises RefusedError."""
        asked = Asked(
            prompt=[message.model_dump(exclude_none=True) for message in self.messages],
            sampling=self.sampling(self.max_completion_tokens or self.max_tokens),
            steering=self._steering(service),
            variables=template_variables(self.reasoning_effort, self.chat_template_kwargs),
            schema=schema_of(self.response_format),
            **tools_of(self.tools, self.tool_choice, many=self.parallel_tool_calls is not False),
        )
        return several(asked, self.n or 1)

    def _steering(self, service: Service) -> Steering:
        if self.top_logprobs and not self.logprobs:
            raise RefusedError(400, "top_logprobs needs logprobs", param="top_logprobs")
        return self.steering(service.vocabulary, (self.top_logprobs or 0) if self.logprobs else None)


def schema_of(asked: ResponseFormat | None) -> Mapping[str, Any] | None:
    """What an answer has to be JSON of; None where it may be any text. Raises RefusedError."""
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return JSON_OBJECT
    if asked.json_schema is None:
        raise RefusedError(400, "json_schema is missing", param="response_format.json_schema")
    return asked.json_schema.schema_ if asked.json_schema.schema_ is not None else JSON_OBJECT


def several(asked: Asked, count: int) -> list[Asked]:
    """The same as often as `count` says: with a seed, each with another one."""
    seed = asked.sampling.seed
    if seed is None:
        return [asked] * count
    return [replace(asked, sampling=replace(asked.sampling, seed=_seed(seed, n))) for n in range(count)]


def _seed(seed: int, number: int) -> int:
    return seed if number == 0 else (seed + number) % (2**63)


class ChatReply:
    """What is said of the answers, at once or piece by piece."""

    def __init__(self, service: Service, request: ChatRequest, model: str) -> None:
        self._service = service
        self._request = request
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._usage_asked = bool(request.stream_options and request.stream_options.include_usage)

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The reply in one. Raises RefusedError."""
        found = await answers.whole()
        choices = [self._choice(number, each) for number, each in enumerate(found)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(found)}

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """Server-sent events; an error in the middle is one as well."""
        count = self._request.n or 1
        found: dict[int, Whole] = {}
        tokens: list[list[TokenChoice]] = [[] for _ in range(count)]
        for number in range(count):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        try:
            async for number, each in answers.events():
                if isinstance(each, TokenChoice):
                    tokens[number].append(each)
                elif isinstance(each, Ended):
                    found[number] = Whole(each.answer, answers.cached[number])
                    yield self._chunk(number, {}, tokens[number], finish_reason(each.answer))
                elif (delta := _delta(each)) is not None:
                    yield self._chunk(number, delta, tokens[number])
                    tokens[number] = []
        except RefusedError as error:
            yield event(error.for_openai())
            return
        if self._usage_asked:
            whole = [found[number] for number in range(count)]
            yield event({**self._head, "object": _CHUNK, "choices": [], "usage": usage(whole)})
        yield DONE

    def _chunk(
        self, number: int, delta: dict[str, Any], tokens: Sequence[TokenChoice] = (), finish: str | None = None
    ) -> str:
        choice = {"index": number, "delta": delta, "logprobs": self._logprobs(tokens), "finish_reason": finish}
        more = {"usage": None} if self._usage_asked else {}
        return event({**self._head, "object": _CHUNK, "choices": [choice], **more})

    def _choice(self, number: int, found: Whole) -> dict[str, Any]:
        answer = found.answer
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [call_json(call, new_call_id()) for call in answer.tool_calls]
            message["content"] = answer.text or None
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(found.tokens),
            "finish_reason": finish_reason(answer),
        }

    def _logprobs(self, tokens: Sequence[TokenChoice]) -> dict[str, Any] | None:
        if not tokens:
            return None
        return {"content": [self._told(each) for each in tokens], "refusal": None}

    def _told(self, chosen: TokenChoice) -> dict[str, Any]:
        likeliest = [self._token(token, logprob) for token, logprob in chosen.likeliest]
        return {**self._token(chosen.token, chosen.logprob), "top_logprobs": likeliest}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        said = self._service.bytes_of(token)
        return {"token": said.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(said)}


_CHUNK = "chat.completion.chunk"


def _delta(each: object) -> dict[str, Any] | None:
    if isinstance(each, Text):
        return {"content": each.piece}
    if isinstance(each, Reasoning):
        return {"reasoning_content": each.piece}
    if isinstance(each, Call):
        function: dict[str, Any] = {"arguments": each.piece.arguments}
        call: dict[str, Any] = {"index": each.piece.index, "function": function}
        if each.piece.name is not None:
            function["name"] = each.piece.name
            call |= {"id": new_call_id(), "type": "function"}
        return {"tool_calls": [call]}
    return None


def new_call_id() -> str:
    """By which a tool's result will say which call it is of."""
    return f"call_{uuid.uuid4().hex[:24]}"


def finish_reason(answer: Any) -> str:
    """Why an answer is over, in OpenAI's words."""
    return "tool_calls" if answer.tool_calls and answer.finish_reason == "stop" else str(answer.finish_reason)


def usage(found: Sequence[Whole]) -> dict[str, Any]:
    """Tokens of the prompt, counted once, and of all answers."""
    cached = max(each.cached_tokens for each in found)
    return usage_json(found[0].answer.prompt_tokens, cached, found)


def usage_json(prompt: int, cached: int, found: Sequence[Whole]) -> dict[str, Any]:
    """Tokens of the prompts, how many of them were computed before, and those of all answers."""
    new = sum(each.answer.new_tokens for each in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI's stand-in for what cannot be."""
    return max(logprob, -9999.0)
