"""`load` a model under a budget and get an `Engine`: generate, chat, stats, close."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_local.checkpoint.tokenizer import load_tokenizer, no_tokenizer
from moe_local.errors import UnsupportedError
from moe_local.experts.cache import ExpertCache
from moe_local.experts.misses import ZERO_COPY
from moe_local.experts.routing import PaddingMask, RoutingHook, in_turn
from moe_local.experts.warm import fill, remember, warm_up
from moe_local.generation.batch import Answer, BatchGenerator, LiveBatch, Request
from moe_local.generation.chat import ChatSession
from moe_local.generation.defaults import generation_defaults
from moe_local.generation.encoder_decoder import translation
from moe_local.generation.end_tokens import with_end_tokens
from moe_local.generation.generate import Generation, TextGenerator
from moe_local.generation.prompt import is_chat, prompt_ids
from moe_local.generation.sampling import Sampling
from moe_local.generation.stream import OnText
from moe_local.memory.files import FileReader, ReadAt
from moe_local.memory.limits import peak_memory, process_memory
from moe_local.memory.pages import free_caches
from moe_local.model.build import load_dense
from moe_local.model.hooks import register_forward_hook
from moe_local.paging import PagedExperts
from moe_local.planning.options import Options
from moe_local.planning.placement import Plan
from moe_local.planning.plan_load import LoadPlan, plan_load
from moe_local.planning.tiers import make_cache, settled
from moe_local.store.open import ModelFiles

B = TypeVar("B", BatchGenerator, LiveBatch)
Report = Callable[[str, float], None]  # (stage, fraction done)


def load(
    model: str | Path | ModelFiles,
    options: Options | None = None,
    *,
    report: Report | None = None,
    read_at: Callable[[FileReader], ReadAt] = lambda reader: reader,
) -> Engine:
    """Loads a checkpoint directory, GGUF file or hub id within its budgets.

    `read_at` may wrap the file reader (see `moe_local.testing` for slow and failing disks).
    """
    began = perf_counter()
    report = report or (lambda stage, fraction: None)
    report("planning", 0.0)
    if options is not None and options.threads is not None:
        torch.set_num_threads(options.threads)
    load_plan = plan_load(model, options)
    defaults, remarks = generation_defaults(load_plan.checkpoint.directory, load_plan.config)
    report("dense weights", 0.1)
    files = FileReader()
    load_plan.accelerator.fence(load_plan.fence)
    try:
        files.open(load_plan.checkpoint.files, direct=load_plan.direct_io)
        reader = read_at(files)
        network = load_dense(load_plan, reader, load_plan.device, exact=load_plan.exact)
        tokenizer, doubts = load_tokenizer(load_plan.checkpoint)
        network.generation_config = with_end_tokens(defaults, load_plan.config, tokenizer)
        report("expert cache", 0.9)
        load_plan = settled(load_plan)
        said: list[str] = []
        cache = make_cache(load_plan, reader, said.append)
        if load_plan.options.misses == ZERO_COPY:
            fill(cache, lambda done: report("experts into RAM", 0.9 + done / 20))
        if load_plan.options.warm:
            warm_up(cache, load_plan.warm_file, lambda done: report("hot experts", 0.9 + done / 10))
    except BaseException:
        load_plan.accelerator.fence(None)
        files.close()
        raise
    report("ready", 1.0)
    notes = (*load_plan.notes, *said, *remarks, *doubts)
    if load_plan.options.io == "direct" and not files.direct:
        where = load_plan.checkpoint.directory
        notes += (f"{where} cannot be read past the system's cache: reads are buffered, as with --io buffered",)
    return Engine(load_plan, network, tokenizer, cache, files, notes=notes, load_seconds=perf_counter() - began)


class Engine:
    """A model that is ready to generate. One generation at a time; close it, or use it in a `with`."""

    def __init__(
        self,
        load_plan: LoadPlan,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        cache: ExpertCache,
        files: FileReader,
        *,
        notes: tuple[str, ...],
        load_seconds: float,
    ) -> None:
        self.load_plan = load_plan
        self.files = files
        self.notes = notes  # for the user: what is not as it was asked for
        self.load_seconds = load_seconds
        self._tokenizer = tokenizer
        self._generator: TextGenerator | None = None
        self._experts = PagedExperts(load_plan, model, cache)
        self.notes += self._experts.doubts
        register_forward_hook(model, self._resize_for)
        if model.config.is_encoder_decoder:  # its encoder is called by itself
            register_forward_hook(model.get_encoder(), self._resize_for)

    def _resize_for(self, model: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Before a forward pass, of the whole model or without its head: leaves it the memory that it needs."""
        given = [inputs.get("input_ids"), inputs.get("inputs_embeds"), *args]
        ids = next((tensor for tensor in given if isinstance(tensor, Tensor)), None)
        tokens = self.load_plan.context if ids is None else ids.shape[0] * ids.shape[1]
        self.cache.resize_for(self._experts.in_step.tokens(tokens))

    def use(self, cache: ExpertCache) -> None:
        """Runs the experts over another cache of the same checkpoint from now on."""
        self._experts.use(cache)
        self._tell_generator()

    def resize(self, *, ram: int | None = None, vram: int | None = None) -> None:
        """Gives the process another budget, in bytes, from now on: memory is given back, or taken for more experts.

        Dense weights and conversations stay; the experts that are worth most are brought in again. Raises BudgetError
        for a budget that is too small, or more than there is, and MoeLocalError for `vram` where experts are in RAM
        alone; goes on with the former one where memory cannot be had.
        """
        self.load_plan.accelerator.fence(None)  # it may be more
        try:
            self._experts.resize(self.files, ram, vram)
        finally:
            self.load_plan = self._experts.load_plan
            self.load_plan.accelerator.fence(self.load_plan.fence)
            self._tell_generator()

    def _tell_generator(self) -> None:
        if self._generator is not None:
            self._generator.counters = self.cache
            self._generator.prefill_chunk = self.load_plan.prefill_chunk

    def tap(self, tap: RoutingHook | None) -> None:
        """From now on shows `tap` the routing of every forward pass; see `RoutingHook`."""
        self._experts.tap(tap)

    @property
    def model(self) -> PreTrainedModel:
        """transformers' model, with our experts. Raises MoeLocalError once the engine is closed."""
        return self._experts.model

    @property
    def cache(self) -> ExpertCache:
        """What brings in the experts, with its counters."""
        return self._experts.cache

    @property
    def plan(self) -> Plan:
        return self.load_plan.plan

    @property
    def speaks(self) -> bool:
        """Whether there is a tokenizer, and the model generates text."""
        return self._tokenizer is not None and bool(self.model.can_generate())

    @property
    def generator(self) -> TextGenerator:
        """The model with its tokenizer. Raises CheckpointError if the checkpoint has none."""
        if self._generator is not None:
            return self._generator
        if self._tokenizer is None:
            raise no_tokenizer(self.load_plan.checkpoint)
        if not self.model.can_generate():
            raise UnsupportedError(f"{type(self.model).__name__} does not generate text")
        made = TextGenerator(
            self.model,
            self._tokenizer,
            self.cache,
            self.load_plan.context,
            prefill_chunk=self.load_plan.prefill_chunk,
        )
        self._generator = made
        return made

    def encode(self, prompt: str, *, raw: bool = False, system: str | None = None) -> list[int]:
        """Token ids of a prompt: as a user's message in the model's chat template, or `raw` text to go on from."""
        return prompt_ids(self.generator, prompt, raw=raw, system=system)

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        *,
        raw: bool = False,
        system: str | None = None,
        source: str | None = None,
        target: str | None = None,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        interrupt: threading.Event | None = None,
    ) -> Generation:
        """Text (see `encode`) or token ids in, a Generation out; `on_text` gets it piece by piece.

        What a model marks off as reasoning, answering in its chat template, goes to `on_reasoning` instead. One that
        translates takes text as `source` and makes a text of `target`: languages by its tokenizer's names.
        """
        generator = self.generator
        ids, first = prompt_ids(generator, prompt, raw=raw, system=system), None
        if isinstance(prompt, str):
            ids, first = translation(self.model, generator.tokenizer, ids, source, target)
        return generator.generate(
            ids,
            sampling or Sampling(),
            on_text=on_text,
            on_reasoning=on_reasoning,
            interrupt=interrupt,
            chat=is_chat(generator, prompt, raw=raw),
            first=first,
        )

    def chat(self, sampling: Sampling | None = None, *, system: str | None = None) -> ChatSession:
        """A new conversation with a KV cache of its own."""
        return ChatSession(self.generator, sampling or Sampling(), system=system)

    def batch(self, requests: Iterable[Request | str], interrupt: threading.Event | None = None) -> Iterator[Answer]:
        """Answers many requests (a text is one) together, as they are finished; see `Options.max_sequences`."""
        yield from self.batch_generator().run(
            (Request(each) if isinstance(each, str) else each for each in requests), interrupt
        )

    def batch_generator(self) -> BatchGenerator:
        """What `batch` runs, for those that want to watch its progress."""
        return self._batching(BatchGenerator)

    def live_batch(self, *watching: RoutingHook) -> LiveBatch:
        """What answers requests that come one by one; `watching` see the routing of its passes."""
        return self._batching(LiveBatch, *watching)

    def _batching(self, kind: type[B], *watching: RoutingHook) -> B:
        if self.generator.graphs is not None:  # whose memory is for one conversation
            self.generator.graphs.release()
        padding = PaddingMask(self.cache.experts)
        self.tap(in_turn(padding, *watching))
        load_plan = self.load_plan
        return kind(
            self.generator,
            sequences=load_plan.sequences,
            kv_tokens=load_plan.kv_tokens,
            hide=padding.hide,
            in_step=self._experts.in_step,
        )

    def stats(self) -> dict[str, Any]:
        """Totals since loading, and memory against its budget (bytes)."""
        counters = self.cache.counters
        return {
            **vars(counters),
            "hits": counters.hits,
            "misses": counters.misses,
            "host_hits": counters.host_hits,
            "hit_rate": counters.hit_rate,
            "memory": process_memory(),
            "peak_memory": peak_memory(),
            "ram_budget": self.plan.ram,
            "vram_budget": self.plan.vram,
            "load_seconds": round(self.load_seconds, 3),
            "experts_in_device_tier": self.plan.device_experts,
            "experts": self.plan.needs.all_experts,
        }

    def close(self) -> None:
        """Frees the weights, the expert cache and the files at once; conversations with it can only be read."""
        if self.load_plan.options.warm and not self.cache.closed:
            remember(self.cache, self.load_plan.warm_file)
        self._experts.close()
        self.files.close()
        if self._generator is not None:
            self._generator.close()
        self.load_plan.accelerator.fence(None)
        free_caches(self.load_plan.accelerator)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
