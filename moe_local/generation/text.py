"""One generation: transformers' `generate`, streamed, interruptible and measured."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from moe_local.errors import CheckpointError, MoeLocalError, first_line
from moe_local.generation.sampling import Sampling
from moe_local.generation.stream import AnswerStream, OnText
from moe_local.generation.template import ChatTemplate, TemplateSettings
from moe_local.memory.limits import peak_memory
from moe_local.model.kv_cache import PLAIN_LAYERS
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.formulas import PREFILL_CHUNK
from moe_local.telemetry import Counters

DAMAGED = "the model's output is not a number (NaN or infinite): its weights are damaged, or overflow in this dtype"
DAMAGED_REMEDY = "download it again, or try --dtype float32"
_OF_SHAPES = re.compile(r"\b(sizes?|shapes?|dimensions?)\b")  # in what torch says of tensors that do not fit
_PIECE = 1 << 16  # characters of a text that are turned into tokens at once, where not all may be needed
_UNSURE = 64  # tokens at the end of a piece, that what follows might change


class TooLongError(MoeLocalError):
    """A text of more tokens than the context holds."""


class KVState:
    """A KV cache and the tokens it was made from, to go on from.

    A generation takes the cache out and puts it back at its end: one that is interrupted leaves nothing behind.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[int], Any] = ([], None)

    def take(self, ids: Sequence[int]) -> tuple[int, Any]:
        """The cache cut down to what `ids` begins with, and how many tokens that is; at least one is left to compute.

        A cache that cannot be cut (recurrent or sliding-window states) is dropped: (0, None).
        """
        (kept, cache), self._kept = self._kept, ([], None)
        differing = (i for i, (a, b) in enumerate(zip(kept, ids, strict=False)) if a != b)
        common = min(next(differing, len(kept)), len(ids) - 1)
        if cache is None or (common < len(kept) and not _cut(cache, len(kept), common)):
            return 0, None
        return common, cache

    def put(self, ids: list[int], cache: Any) -> None:
        """Keeps a cache, computed from `ids`."""
        self._kept = (ids, cache)

    def clear(self) -> None:
        self._kept = ([], None)


def _cut(cache: Any, length: int, wanted: int) -> bool:
    layers = getattr(cache, "layers", None)
    if wanted == 0 or not layers or any(type(layer) not in PLAIN_LAYERS for layer in layers):
        return False
    cache.crop(wanted - length)  # a negative number: tokens to take off the end
    return True


@dataclass(frozen=True)
class Generation:
    """What came out, and what it took."""

    text: str
    token_ids: list[int]
    prompt_tokens: int
    cached_tokens: int  # of the prompt, that an earlier turn had computed
    finish_reason: str  # "stop", "length" or "interrupted"
    seconds: float
    time_to_first_token: float  # seconds
    token_times: tuple[float, ...]  # when each token came, in seconds of `perf_counter`
    counters: Counters
    peak_memory: int  # bytes, of the process since it began
    decode: Counters  # the part of `counters` after the first token
    reasoning: str = ""  # what was said on the way to `text`, where the model marks it off

    @property
    def new_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first, over the time after the first."""
        rest = self.seconds - self.time_to_first_token
        return (self.new_tokens - 1) / rest if self.new_tokens > 1 and rest > 0 else 0.0

    @property
    def bytes_read_per_token(self) -> float:
        """Bytes read from disk for each token after the first."""
        return self.decode.bytes_read / (self.new_tokens - 1) if self.new_tokens > 1 else 0.0

    def as_json(self) -> dict[str, Any]:
        """The fields of `--json`."""
        return {
            "text": self.text,
            "reasoning": self.reasoning or None,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "new_tokens": self.new_tokens,
            "tokens_per_second": round(self.tokens_per_second, 3),
            "time_to_first_token": round(self.time_to_first_token, 4),
            "seconds": round(self.seconds, 4),
            "hit_rate": round(self.counters.hit_rate, 4),
            "hits": self.counters.hits,
            "misses": self.counters.misses,
            "bytes_read": self.counters.bytes_read,
            "bytes_read_per_token": round(self.bytes_read_per_token),
            "stall_seconds": round(self.counters.stall_seconds, 4),
            "peak_memory": self.peak_memory,
        }


class TextGenerator:
    """A loaded model and its tokenizer. One generation at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        counters: Counters,
        context: int,
        *,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        self._model: PreTrainedModel | None = model
        self.tokenizer = tokenizer
        self.counters = counters
        self.context = context
        self.prefill_chunk = prefill_chunk  # tokens of a prompt that go through the model at once, at most
        self.on_notice: Callable[[str], None] = lambda text: None  # told once of each change to what was asked
        self._noticed: set[str] = set()
        self.template = ChatTemplate(tokenizer, self.notice, TemplateSettings())

    def use_template(self, settings: TemplateSettings) -> None:
        """Has conversations rendered as the settings say."""
        self.template = ChatTemplate(self.tokenizer, self.notice, settings)

    def notice(self, text: str) -> None:
        """Tells the user, once."""
        if text not in self._noticed:
            self._noticed.add(text)
            self.on_notice(text)

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            raise MoeLocalError("this engine is closed", remedy="load the model again")
        return self._model

    def close(self) -> None:
        """Lets go of the model."""
        self._model = None

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        interrupt: threading.Event | None = None,
        state: KVState | None = None,
        chat: bool = False,
    ) -> Generation:
        """Continues the tokens `ids`.

        `on_text` is given each piece of text as it comes. With `chat` the model answers a conversation, and what it
        marks off as reasoning goes to `on_reasoning`. Setting `interrupt` ends the generation after the token
        under way. `state` carries the KV cache from one call to the next; an error empties it.
        """
        room = self.room(ids)
        state = state or KVState()
        cached, cache = state.take(ids)
        stream = _Stream(self.answer_stream(ids, sampling, chat, on_text, on_reasoning), self.counters)
        halt = _Halt(stream, interrupt or threading.Event())
        limit = min(room, sampling.max_new_tokens or self.model.generation_config.max_new_tokens or room)
        before = self.counters.snapshot()
        began = perf_counter()
        sequence, cache = self._run(ids, sampling, limit, (cached, cache), stream, halt)
        if cache is not None:
            state.put(sequence[:-1], cache)  # the last token was chosen but not yet computed
        seconds = perf_counter() - began
        after = self.counters.snapshot()
        new = sequence[len(ids) :]
        return Generation(
            text=stream.answer.text,
            reasoning=stream.answer.reasoning,
            token_ids=new,
            prompt_tokens=len(ids),
            cached_tokens=cached,
            finish_reason=self._reason(new, stream, halt),
            seconds=seconds,
            time_to_first_token=stream.first_token_at - began,
            token_times=tuple(stream.token_times),
            counters=after - before,
            decode=after - stream.counters_at_first_token,
            peak_memory=peak_memory(),
        )

    def answer_stream(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        chat: bool,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
    ) -> AnswerStream:
        """What makes text of the tokens that follow `ids`."""
        return AnswerStream(
            self.tokenizer,
            sampling.stop,
            format=self.template.answers if chat else None,
            prompt=ids,
            on_text=on_text,
            on_reasoning=on_reasoning,
        )

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a prompt, `special` with the tokens that the tokenizer puts around one.

        A long text is taken in pieces first: one that the context cannot hold is refused before all of it is.
        """
        if len(text) > _PIECE:
            self._assert_short(text)
        return self._tokens(text, special=special)

    def encode_text(self, text: str, most: int | None = None) -> list[int]:
        """Token ids of a text to be read, or the first `most` of them, for which no more of it is looked at."""
        if most is None:
            return self._tokens(text)
        part = most * 8 + _PIECE
        while len(ids := self._tokens(text[:part])) < most + _UNSURE and part < len(text):
            part *= 2
        return ids[:most]

    def _tokens(self, text: str, *, special: bool = True) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MoeLocalError(
                f"the text is not Unicode: it has a lone surrogate at character {error.start}",
                remedy="give it as UTF-8",
            ) from error
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _assert_short(self, text: str) -> None:
        """Raises MoeLocalError for a text of more tokens than the context holds, as soon as that is certain."""
        tokens = 0
        for begin in range(0, len(text), _PIECE):
            tokens += max(0, len(self._tokens(text[begin : begin + _PIECE], special=False)) - _UNSURE)
            if tokens > self.context:
                raise TooLongError(
                    f"the prompt has more than {tokens} tokens and the context holds {self.context}",
                    remedy="shorten it, or give a larger --context",
                )

    def room(self, ids: Sequence[int]) -> int:
        """How many tokens may follow a prompt. Raises MoeLocalError for one that cannot be run."""
        if not ids:
            raise MoeLocalError("the prompt is empty", remedy="write something")
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if not (min(ids) >= 0 and max(ids) < vocabulary):
            raise CheckpointError(
                f"the prompt has token {min(ids) if min(ids) < 0 else max(ids)} and the model {vocabulary} of them",
                remedy="use the tokenizer that belongs to the model",
            )
        if len(ids) >= self.context:
            raise MoeLocalError(
                f"the prompt has {len(ids)} tokens and the context holds {self.context}",
                remedy="shorten it, or give a larger --context",
            )
        return self.context - len(ids)

    def _run(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        limit: int,
        past: tuple[int, Any],
        stream: _Stream,
        halt: _Halt,
    ) -> tuple[list[int], Any]:
        """The whole sequence, prompt included, and its KV cache; `past` is how much of it has one already, and it."""
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        inputs = torch.tensor([list(ids)], device=self.model.device)  # [1, T]
        chunk = {"prefill_chunk_size": self.prefill_chunk} if len(ids) - past[0] > self.prefill_chunk else {}
        try:
            output = self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=limit,
                streamer=stream,
                stopping_criteria=StoppingCriteriaList([halt]),
                logits_processor=LogitsProcessorList([_RefuseDamage()]),
                return_dict_in_generate=True,
                **sampling.for_transformers(),
                **{CACHE: past[1]},
                **chunk,
            )
        except RuntimeError as error:
            if not _OF_SHAPES.search(str(error)):
                raise
            raise CheckpointError(
                f"the model does not run as its configuration says ({first_line(error)})", remedy="download it again"
            ) from error
        return output.sequences[0].tolist(), kv_cache(output)

    def _reason(self, new: list[int], stream: _Stream, halt: _Halt) -> str:
        end = self.model.generation_config.eos_token_id
        ends = end if isinstance(end, list) else [end]
        if stream.answer.stopped or (new and new[-1] in ends):
            return "stop"
        return "interrupted" if halt.interrupted else "length"


class _Stream(BaseStreamer):
    """What `generate` hands its tokens to: the prompt first, then one at a time."""

    def __init__(self, answer: AnswerStream, counters: Counters) -> None:
        self.answer = answer
        self._prompt_seen = False
        self._counters = counters
        self._began = perf_counter()
        self.token_times: list[float] = []
        self.counters_at_first_token = counters.snapshot()

    @property
    def first_token_at(self) -> float:
        return self.token_times[0] if self.token_times else self._began

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.token_times.append(perf_counter())
        if len(self.token_times) == 1:
            self.counters_at_first_token = self._counters.snapshot()
        self.answer.add(int(value))

    def end(self) -> None:
        self.answer.end()


class _Halt(StoppingCriteria):
    """Ends a generation at a stop string or when the user asks."""

    def __init__(self, stream: _Stream, event: threading.Event) -> None:
        self._stream = stream
        self._event = event
        self.interrupted = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.interrupted = self._event.is_set()
        done = self.interrupted or self._stream.answer.pending_stop()
        return torch.full((input_ids.shape[0],), done, device=input_ids.device)


class _RefuseDamage(LogitsProcessor):
    """Damaged weights give what is no number; sampling from it would be noise or an obscure error."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        refuse_damage(scores)
        return scores


def refuse_damage(scores: Tensor) -> None:
    """Raises CheckpointError for scores [..., V] of which any cannot be chosen from."""
    if damaged(scores).any():
        raise CheckpointError(DAMAGED, remedy=DAMAGED_REMEDY)


def damaged(scores: Tensor) -> Tensor:
    """[...] bool: where the best of scores [..., V] is no number (NaN), or infinite, or there is none."""
    return ~scores.amax(dim=-1).isfinite()
