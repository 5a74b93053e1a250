"""Replies of OpenAI's responses: in one, or as events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from moe_local.generation.batch import Answer
from moe_local.serve.answers import Answers, Whole
from moe_local.serve.blocks import Block, Blocks, Kind, Step, blocks_of
from moe_local.serve.chat import new_call_id
from moe_local.serve.errors import RefusedError
from moe_local.serve.feed import Ended
from moe_local.serve.replies import event
from moe_local.serve.responses import ResponsesRequest

_LOGPROBS: dict[str, Any] = {"logprobs": []}


class ResponsesReply:
    """What is said of the answer, at once or piece by piece."""

    def __init__(self, request: ResponsesRequest, model: str) -> None:
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
                for step, block, piece in blocks.take(each):
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
