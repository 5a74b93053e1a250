"""OpenAI's completions of text: https://platform.openai.com/docs/api-reference/completions"""

from __future__ import annotations

import time
import uuid
from codecs import getincrementaldecoder
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from moe_local.generation.batch.steering import TokenChoice
from moe_local.serve.answers import Answers, Whole
from moe_local.serve.asking import Asked
from moe_local.serve.chat import DONE, MOST_ANSWERS, several, usage_json
from moe_local.serve.errors import RefusedError
from moe_local.serve.feed import Ended, Text
from moe_local.serve.fields import SamplingFields, StreamOptions, Tokens, Unused
from moe_local.serve.replies import event
from moe_local.serve.service import Service

Id = Annotated[int, Field(ge=0, lt=1 << 40)]
_MOST_PROMPTS = 64
_TOKENS = 16  # of an answer, where nothing is said: OpenAI's default


class CompletionRequest(SamplingFields, Unused):
    """Texts to go on from, or tokens. What is not named here is refused."""

    model: str | None = None
    prompt: (
        str | Annotated[list[Id], Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] | list[list[Id]]
    )
    max_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    def asked(self, service: Service) -> list[Asked]:
        """One for each answer to each prompt. Raises RefusedError."""
        prompts = self._prompts()
        if len(prompts) > _MOST_PROMPTS:
            raise RefusedError(400, f"a request has {_MOST_PROMPTS} prompts at most", param="prompt")
        if self.echo:
            raise RefusedError(400, "echo is not supported here", param="echo", code="unsupported_parameter")
        steering = self.steering(service.vocabulary, self.logprobs)
        sampling = self.sampling(self.max_tokens or _TOKENS)
        made = [Asked(prompt=prompt, sampling=sampling, steering=steering, raw=True) for prompt in prompts]
        return [each for asked in made for each in several(asked, self.n or 1)]

    def _prompts(self) -> Sequence[str | Sequence[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(each, int) for each in self.prompt):
            return [[each for each in self.prompt if isinstance(each, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]


class _Offsets:
    """Where in a text its tokens begin, in characters; one inside a character begins where that does."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def of(self, token: bytes) -> int:
        """The next token's."""
        begin = self._length
        self._length += len(self._decoder.decode(token))
        return begin


class CompletionReply:
    """What is said of the answers, at once or piece by piece."""

    def __init__(self, service: Service, request: CompletionRequest, model: str) -> None:
        self._service = service
        self._each = request.n or 1
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._usage_asked = bool(request.stream_options and request.stream_options.include_usage)
        self._offsets: dict[int, _Offsets] = defaultdict(_Offsets)  # by the answer's number

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The reply in one. Raises RefusedError."""
        found = await answers.whole()
        choices = [
            self._choice(number, each.answer.text, each.tokens, each.answer.finish_reason)
            for number, each in enumerate(found)
        ]
        return {**self._head, "choices": choices, "usage": self._usage(found)}

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """Server-sent events; an error in the middle is one as well."""
        found: dict[int, Whole] = {}
        tokens: dict[int, list[TokenChoice]] = {}
        try:
            async for number, each in answers.events():
                if isinstance(each, TokenChoice):
                    tokens.setdefault(number, []).append(each)
                elif isinstance(each, Ended):
                    found[number] = Whole(each.answer, answers.cached[number])
                    yield self._piece(number, "", tokens.pop(number, []), each.answer.finish_reason)
                elif isinstance(each, Text):
                    yield self._piece(number, each.piece, tokens.pop(number, []), None)
        except RefusedError as error:
            yield event(error.for_openai())
            return
        if self._usage_asked:
            yield event({**self._head, "choices": [], "usage": self._usage([found[n] for n in sorted(found)])})
        yield DONE

    def _piece(self, number: int, text: str, tokens: Sequence[TokenChoice], finish: str | None) -> str:
        more = {"usage": None} if self._usage_asked else {}
        return event({**self._head, "choices": [self._choice(number, text, tokens, finish)], **more})

    def _choice(self, number: int, text: str, tokens: Sequence[TokenChoice], finish: str | None) -> dict[str, Any]:
        told = self._logprobs(tokens, self._offsets[number]) if tokens else None
        return {"index": number, "text": text, "logprobs": told, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[TokenChoice], offsets: _Offsets) -> dict[str, Any]:
        return {
            "tokens": [self._said(each.token) for each in tokens],
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": [{self._said(token): logprob for token, logprob in each.likeliest} for each in tokens],
            "text_offset": [offsets.of(self._service.bytes_of(each.token)) for each in tokens],
        }

    def _said(self, token: int) -> str:
        return self._service.bytes_of(token).decode("utf-8", "replace")

    def _usage(self, found: Sequence[Whole]) -> dict[str, Any]:
        prompts = found[:: self._each]
        asked = sum(each.answer.prompt_tokens for each in prompts)
        return usage_json(asked, sum(each.cached_tokens for each in prompts), found)
