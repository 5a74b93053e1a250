"""Replies of Anthropic's messages: in one, or as events."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from moe_local.generation.batch import Answer
from moe_local.serve.answers import Answers, Whole
from moe_local.serve.blocks import Block, Blocks, Kind, Step, blocks_of
from moe_local.serve.errors import RefusedError
from moe_local.serve.feed import Begun, Ended
from moe_local.serve.replies import event

PING = event({"type": "ping"}, "ping")
_REASONS = {"stop": "end_turn", "length": "max_tokens"}


class MessagesReply:
    """What is said of the answer, at once or piece by piece."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The reply in one. Raises RefusedError."""
        (found,) = await answers.whole()
        content = [_block_json(block, whole=True) for block in blocks_of(found.answer)]
        return {**self._head, "content": content, **self._reason(found.answer), "usage": _usage(found)}

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """Server-sent events; an error in the middle is one as well."""
        blocks, begun = Blocks(), False
        try:
            async for _, each in answers.events():
                if isinstance(each, Begun) and not begun:
                    begun = True
                    yield event({"type": "message_start", "message": self._start(answers)}, "message_start")
                    yield PING
                for step, block, piece in blocks.take(each):
                    yield _step_event(step, block, piece)
                if isinstance(each, Ended):
                    usage = {"output_tokens": each.answer.new_tokens}
                    delta = {"type": "message_delta", "delta": self._reason(each.answer), "usage": usage}
                    yield event(delta, "message_delta")
        except RefusedError as error:
            yield event(error.for_anthropic(), "error")
            return
        yield event({"type": "message_stop"}, "message_stop")

    def _start(self, answers: Answers) -> dict[str, Any]:
        usage = _tokens(answers.prompt_tokens, answers.cached[0], 0)
        return {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}

    def _reason(self, answer: Answer) -> dict[str, Any]:
        if answer.stop_string is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop_string}
        called = answer.tool_calls and answer.finish_reason == "stop"
        reason = "tool_use" if called else _REASONS.get(answer.finish_reason, answer.finish_reason)
        return {"stop_reason": reason, "stop_sequence": None}


def _block_json(block: Block, *, whole: bool) -> dict[str, Any]:
    """A block as it is, or as it begins."""
    text = block.text if whole else ""
    if block.kind is Kind.TEXT:
        return {"type": "text", "text": text}
    if block.kind is Kind.REASONING:
        return {"type": "thinking", "thinking": text, "signature": ""}
    given = json.loads(block.text) if whole and block.text else {}
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": block.name, "input": given}


def _step_event(step: Step, block: Block, piece: str) -> str:
    if step is Step.BEGINS:
        name, more = "content_block_start", {"content_block": _block_json(block, whole=False)}
    elif step is Step.ENDS:
        name, more = "content_block_stop", {}
    else:
        name, more = "content_block_delta", {"delta": _delta(block.kind, piece)}
    return event({"type": name, "index": block.number, **more}, name)


def _delta(kind: Kind, piece: str) -> dict[str, Any]:
    return {
        Kind.TEXT: {"type": "text_delta", "text": piece},
        Kind.REASONING: {"type": "thinking_delta", "thinking": piece},
        Kind.CALL: {"type": "input_json_delta", "partial_json": piece},
    }[kind]


def _usage(found: Whole) -> dict[str, Any]:
    return _tokens(found.answer.prompt_tokens, found.cached_tokens, found.answer.new_tokens)


def _tokens(prompt: int, cached: int, new: int) -> dict[str, Any]:
    """Anthropic counts what was computed before apart."""
    return {
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": new,
    }
