"""A prompt in, a `Generation` out: transformers' `generate`, streamed, interruptible and measured."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from moe_local.errors import CheckpointError, MoeLocalError, first_line
from moe_local.generation.damage import RefuseDamage
from moe_local.generation.encoding import PromptEncoder, TooLongError
from moe_local.generation.handed import Halt, ReadingInterruptedError, TokenStream
from moe_local.generation.kv_reuse import KVState
from moe_local.generation.sampling import Sampling
from moe_local.generation.stream import AnswerStream, OnCall, OnText
from moe_local.generation.template import ChatTemplate
from moe_local.generation.template_settings import TemplateSettings
from moe_local.generation.tools.base import Tool
from moe_local.generation.tools.reader import CallReader
from moe_local.memory.limits import peak_memory
from moe_local.model.decode_graphs import use_graphs
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.formulas import PREFILL_CHUNK
from moe_local.telemetry import Counters, Counting

_OF_SHAPES = re.compile(r"\b(sizes?|shapes?|dimensions?)\b")  # in what torch says of tensors that do not fit


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
        """Tokens of the answer, its end token among them."""
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
        counters: Counting,
        context: int,
        *,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        self._model: PreTrainedModel | None = model
        self.tokenizer = tokenizer
        self.counters = counters
        self.context = context
        self.encoder = PromptEncoder(tokenizer, context)
        self.prefill_chunk = prefill_chunk  # tokens of a prompt that go through the model at once, at most
        self.on_notice: Callable[[str], None] = lambda text: None  # told once of each change to what was asked
        self._noticed: set[str] = set()
        self.template = ChatTemplate(tokenizer, self.notice, TemplateSettings())
        self.graphs = use_graphs(model, context, self.notice)

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
        """transformers' model. Raises MoeLocalError once it is closed."""
        if self._model is None:
            raise MoeLocalError("this engine is closed", remedy="load the model again")
        return self._model

    def close(self) -> None:
        """Lets go of the model."""
        self._model = self.graphs = None

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
        first: int | None = None,
    ) -> Generation:
        """Continues the tokens `ids`; an encoder-decoder makes a text of them, which begins with the token `first`.

        `on_text` is given each piece of text as it comes. With `chat` the model answers a conversation, and what it
        marks off as reasoning goes to `on_reasoning`. Setting `interrupt` ends the generation after the token
        under way, or in the layer under way while the prompt is read. `state` carries the KV cache from one call to
        the next; an error empties it.
        """
        limit = self.limit(ids, sampling)
        state = state or KVState()
        cached, cache = state.take(ids)
        stream = TokenStream(self.answer_stream(ids, sampling, chat, on_text, on_reasoning), self.counters)
        halt = Halt(stream.answer, interrupt or threading.Event())
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        inputs = torch.tensor([list(ids)], device=self.model.device)  # [1, T]
        goes_on = not self.model.config.is_encoder_decoder
        in_parts = goes_on and len(ids) - cached > self.prefill_chunk
        more: dict[str, Any] = {"prefill_chunk_size": self.prefill_chunk} if in_parts else {}
        if first is not None:
            more["forced_bos_token_id"] = first
        more |= {"max_new_tokens": limit, CACHE: cache, **sampling.for_transformers()}
        try:
            output = self._run(inputs, stream, halt, more)
        except ReadingInterruptedError:
            state.put_back(list(ids[:cached]), cache)
            return self._generation([], len(ids), cached, stream, halt)
        sequence: list[int] = output.sequences[0].tolist()
        if goes_on:
            state.put(sequence[:-1], kv_cache(output))  # the last token was chosen but not yet computed
        begun = len(ids) if goes_on else 1
        return self._generation(sequence[begun:], len(ids), cached, stream, halt)

    def _run(self, inputs: Tensor, stream: TokenStream, halt: Halt, more: dict[str, Any]) -> Any:
        """transformers' own `generate`, of inputs [1, T]. Raises ReadingInterruptedError."""
        alone = nullcontext() if self.graphs is None else self.graphs.alone()
        with _misfits_said(), halt.ends_reading(self.model, stream), alone:
            return self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                streamer=stream,
                stopping_criteria=StoppingCriteriaList([halt]),
                logits_processor=LogitsProcessorList([RefuseDamage()]),
                return_dict_in_generate=True,
                **more,
            )

    def _generation(self, new: list[int], prompt: int, cached: int, stream: TokenStream, halt: Halt) -> Generation:
        """The new tokens and what they took; `cached` of the prompt's tokens an earlier turn had computed."""
        seconds = perf_counter() - stream.began
        counters = self.counters.snapshot()
        return Generation(
            text=stream.answer.text,
            reasoning=stream.answer.reasoning,
            token_ids=new,
            prompt_tokens=prompt,
            cached_tokens=cached,
            finish_reason=self._reason(new, halt),
            seconds=seconds,
            time_to_first_token=stream.first_token_at - stream.began,
            token_times=tuple(stream.token_times),
            counters=counters - stream.counters_before,
            decode=counters - stream.counters_at_first_token,
            peak_memory=peak_memory(),
        )

    def _reason(self, new: list[int], halt: Halt) -> str:
        if halt.answer.stopped or (new and new[-1] in self.end_tokens):
            return "stop"
        return "interrupted" if halt.interrupted else "length"

    def answer_stream(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        chat: bool,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        tools: Sequence[Tool] = (),
        on_call: OnCall | None = None,
    ) -> AnswerStream:
        """What makes text of the tokens that follow `ids`, and calls of `tools`."""
        return AnswerStream(
            self.tokenizer,
            sampling.stop,
            format=self.template.answers if chat else None,
            prompt=ids,
            on_text=on_text,
            on_reasoning=on_reasoning,
            calls=CallReader(self.template.calls, tools) if chat and tools else None,
            on_call=on_call,
        )

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end an answer, by the model's generation config."""
        end = self.model.generation_config.eos_token_id
        return end if isinstance(end, list) else [end]

    def limit(self, ids: Sequence[int], sampling: Sampling) -> int:
        """How many tokens may come of a prompt at most. Raises MoeLocalError for one that cannot be run."""
        if not ids:
            raise MoeLocalError("the prompt is empty", remedy="write something")
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if not (min(ids) >= 0 and max(ids) < vocabulary):
            raise CheckpointError(
                f"the prompt has token {min(ids) if min(ids) < 0 else max(ids)} and the model {vocabulary} of them",
                remedy="use the tokenizer that belongs to the model",
            )
        if len(ids) >= self.context:
            raise TooLongError(
                f"the prompt has {len(ids)} tokens and the context holds {self.context}",
                remedy="shorten it, or give a larger --context",
            )
        left = self.context if self.model.config.is_encoder_decoder else self.context - len(ids)
        return min(left, sampling.max_new_tokens or self.model.generation_config.max_new_tokens or left)


@contextmanager
def _misfits_said() -> Iterator[None]:
    """Says what torch says of tensors that do not fit together as what it comes from: CheckpointError."""
    try:
        yield
    except RuntimeError as error:
        if not _OF_SHAPES.search(str(error)):
            raise
        raise CheckpointError(
            f"the model does not run as its configuration says ({first_line(error)})", remedy="download it again"
        ) from error
