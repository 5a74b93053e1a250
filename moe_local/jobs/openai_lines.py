"""Lines of OpenAI's batch files, and the answers that its own tools read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.generation.batch import Answer, Request
from moe_local.jobs.fields import (
    COUNT,
    LIMITS,
    NUMBER,
    Fields,
    json_object,
    line_id,
    listed,
    naming,
    prompt_or_messages,
    sampling_options,
    template_variables,
    typed,
)
from moe_local.jobs.line import Defaults, Line


class OpenAI:
    """The files of OpenAI's batch API, `/v1/chat/completions` and `/v1/completions`.

    https://platform.openai.com/docs/guides/batch
    """

    _OPTIONS: Mapping[str, tuple[type, ...]] = {"temperature": NUMBER, "top_p": NUMBER, "seed": COUNT}
    # Allowed if they ask for what is done anyway.
    _HARMLESS: Mapping[str, tuple[Any, ...]] = {
        "n": (1,), "stream": (False,), "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,),
        "best_of": (1,), "echo": (False,), "response_format": ({"type": "text"},), "tools": ([],),
        "logit_bias": ({},), "modalities": (["text"],), "parallel_tool_calls": (True, False),
    }  # fmt: skip
    _IGNORED = ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")

    def read(self, number: int, text: str, defaults: Defaults) -> Line:
        given = json_object(text)
        id = line_id(given.get("custom_id"))
        with naming(id):
            if id is None:
                raise MoeLocalError("there is no custom_id")
            url, body = given.get("url"), given.get("body")
            if given.get("method") != "POST" or url not in ("/v1/chat/completions", "/v1/completions"):
                raise MoeLocalError(
                    f"{given.get('method')} {url} is not answered here",
                    remedy="use POST with /v1/chat/completions or /v1/completions",
                )
            if not isinstance(body, dict):
                raise MoeLocalError("body is not an object")
            return Line(number, id, self._request(dict(body), url, defaults), extra=(url, body.get("model")))

    def _request(self, body: Fields, url: str, defaults: Defaults) -> Request:
        chat = url.endswith("/chat/completions")
        model = body.pop("model", None)
        if model is not None and not isinstance(model, str):
            raise MoeLocalError("model is not text")
        for name in self._IGNORED:
            body.pop(name, None)
        for name, values in self._HARMLESS.items():
            if (value := body.pop(name, None)) is not None and value not in values:
                raise MoeLocalError(f"{name} {value!r} is not done here", remedy="leave it out")
        limits = [typed(body, name, int) for name in LIMITS]
        limit = next((each for each in limits if each is not None), None)
        sampling = sampling_options(body, defaults.sampling, self._OPTIONS)
        variables = template_variables(body)
        field = "messages" if chat else "prompt"
        prompt = prompt_or_messages({field: body.pop(field)} if field in body else {})
        if unknown := {name for name, value in body.items() if value is not None}:
            raise MoeLocalError(f"{listed(unknown)} is not done here", remedy="leave it out")
        chosen = sampling if limit is None else replace(sampling, max_new_tokens=limit)
        return Request(prompt, chosen, raw=not chat, template_variables=variables)

    def write(self, line: Line, answer: Answer | None) -> Fields:
        begin: Fields = {"id": f"batch_req_{line.number}", "custom_id": line.id}
        if answer is None or answer.error is not None:
            message = line.error or (answer and answer.error)
            return {**begin, "response": None, "error": {"code": "invalid_request", "message": message}}
        url, model = line.extra
        chat = url.endswith("/chat/completions")
        spoken: Fields = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            spoken["reasoning_content"] = answer.reasoning
        said: Fields = {"message": spoken} if chat else {"text": answer.text}
        body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{line.number}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model or "moe-local",
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": answer.finish_reason}],
            "usage": {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.new_tokens,
                "total_tokens": answer.prompt_tokens + answer.new_tokens,
            },
        }
        request = f"req_{line.number}"
        return {**begin, "response": {"status_code": 200, "request_id": request, "body": body}, "error": None}
