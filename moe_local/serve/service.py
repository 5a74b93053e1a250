"""The engine behind a server: one thread loads it and generates, whoever asks waits for their answer elsewhere."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeVar

from moe_local.engine import Engine, Report
from moe_local.errors import MoeLocalError
from moe_local.generation.batch import FollowedSequence, LiveBatch
from moe_local.generation.batch.live import INTERNAL
from moe_local.generation.grammar import Grammars
from moe_local.serve.asking import Asked, prepare
from moe_local.serve.errors import BUSY, SERVER, RefusedError, refused
from moe_local.serve.feed import Feed
from moe_local.serve.live import LiveExperts
from moe_local.serve.settings import ServeSettings

T = TypeVar("T")
_PAUSE, _GATHERING = 0.005, 0.05  # seconds without a request after which nobody comes along, and in all
_MANY = 0.25  # seconds in all while others are being prepared
ENDING = "the server is ending"


class State(StrEnum):
    """How far a server has come."""

    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"
    FAILED = "failed"


class Service:
    """Loads an engine with `load`, which is told whom to report to, and answers with it until it is closed.

    `on_ready` and `on_failed` are called in its thread.
    """

    def __init__(self, load: Callable[[Report], Engine], settings: ServeSettings) -> None:
        self.settings = settings
        self.state = State.LOADING
        self.stage: tuple[str, float] = ("starting", 0.0)  # of loading, and the part of it that is done
        self.error: BaseException | None = None  # what ended loading
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failed: Callable[[], None] = lambda: None
        self.on_error: Callable[[Exception], None] = lambda error: None  # told of errors that are not our own
        self.on_over: Callable[[Feed], None] = lambda feed: None  # told of every answer that was waited for
        self.began = int(time.time())
        self._feeds: set[Feed] = set()  # of requests that are not over
        self._preparing = 0  # requests that will be tasks soon
        self._load = load
        self._engine: Engine | None = None
        self._batch: LiveBatch | None = None
        self._live: LiveExperts | None = None
        self._grammars: Grammars | None = None
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closing = False
        self._prompts = ThreadPoolExecutor(1, "prompts")  # tokenizers are not for several threads
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to load."""
        self._thread.start()

    @property
    def engine(self) -> Engine:
        """Raises RefusedError where it is not there (yet)."""
        if self._engine is None or self.state is not State.READY:
            raise self._not_ready()
        return self._engine

    @property
    def batch(self) -> LiveBatch:
        """Raises RefusedError where it is not there (yet)."""
        if self._batch is None or self.state is not State.READY:
            raise self._not_ready()
        return self._batch

    @property
    def live(self) -> LiveExperts:
        """What is to be seen of the experts. Raises RefusedError where they are not there (yet)."""
        if self._live is None or not self.is_ready:
            raise self._not_ready()
        return self._live

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self.state is State.READY

    @property
    def open(self) -> int:
        """Requests that are prepared, wait or are answered. What only has to be read has given up its place."""
        return sum(feed.ended_at is None for feed in self._feeds)

    @property
    def room(self) -> int:
        """Answers that it takes on at once."""
        return self.batch.turns.places + self.settings.queue

    @property
    def waiting(self) -> int:
        """Requests that have no place yet."""
        return max(0, self.open - (0 if self._batch is None else self._batch.active))

    async def ask(self, asked: Asked) -> Feed:
        """A feed that the answer will come through. Raises RefusedError where there will be none."""
        engine, batch = self.engine, self.batch
        beyond = self.open - batch.turns.places  # those that come now have no place, though it is not taken yet
        if beyond >= self.settings.queue:
            raise RefusedError(
                429,
                f"{beyond} requests wait already; try again later",
                kind=BUSY,
                code="queue_full",
                retry_after=self._retry_after(),
            )
        feed = Feed()
        self._feeds.add(feed)
        self._preparing += 1
        try:
            sequence = await asyncio.wrap_future(self._prompts.submit(self._prepared, engine, asked, feed))
            feed.prompt_tokens = sequence.prompt_tokens
            self._tasks.put(lambda: batch.add(sequence))  # it may be ending by then: the answer ends with it
        except (MoeLocalError, ValueError) as error:
            self._feeds.discard(feed)
            raise (refused(error) if isinstance(error, MoeLocalError) else RefusedError(400, str(error))) from error
        except BaseException:
            self._feeds.discard(feed)
            raise
        finally:
            self._preparing -= 1
        return feed

    def over(self, feed: Feed) -> None:
        """The answer was read to its end, or is not wanted any more."""
        feed.leave()
        self._feeds.discard(feed)
        self.on_over(feed)

    async def call(self, work: Callable[[Engine], T]) -> T:
        """What `work` gives, done between two tokens in the engine's thread."""
        engine, future = self.engine, Future[T]()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return  # whoever asked has gone
            try:
                future.set_result(work(engine))
            except BaseException as error:
                future.set_exception(error)

        self._tasks.put(run)
        return await asyncio.wrap_future(future)

    async def prepared(self, work: Callable[[Engine], T]) -> T:
        """What `work` gives, done in the thread that makes tokens of prompts."""
        return await asyncio.wrap_future(self._prompts.submit(work, self.engine))

    @property
    def vocabulary(self) -> int:
        """Tokens that the model chooses from. Raises RefusedError where it is not there."""
        return int(self.engine.model.config.get_text_config().vocab_size)

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for in a text."""
        return self.grammars.bytes_of(token)

    @property
    def grammars(self) -> Grammars:
        """Made once it is first asked for; in the thread that makes tokens of prompts."""
        if self._grammars is None:
            generator = self.engine.generator
            self._grammars = Grammars(generator.tokenizer, self.vocabulary, generator.end_tokens)
        return self._grammars

    def cut(self) -> None:
        """Ends what is under way after the pass that is being computed."""
        self._closing = True
        self._tasks.put(lambda: None)

    def close(self) -> None:
        """Ends what is under way, and frees the engine."""
        self.cut()
        if self._thread.is_alive():
            self._thread.join()
        self._prompts.shutdown(cancel_futures=True)

    def end(self) -> None:
        """Takes no new requests from now on."""
        if self.state is State.READY:
            self.state = State.ENDING

    def _prepared(self, engine: Engine, asked: Asked, feed: Feed) -> FollowedSequence:
        if feed.gone:
            raise RefusedError(400, "the client has gone")
        if asked.steering.logprobs is not None:
            self.bytes_of(0)  # whether tokens can be told apart is known before there are any
        request, ids = prepare(engine.generator, asked, lambda: self.grammars)
        return FollowedSequence(request, ids, engine.generator, feed)

    def _retry_after(self) -> int:
        """Seconds after which there may be a place: a guess."""
        return max(1, min(60, self.waiting // max(1, self.batch.turns.places)))

    def _not_ready(self) -> RefusedError:
        said = {
            State.LOADING: f"the model is being loaded: {self.stage[0]}, {self.stage[1]:.0%}",
            State.ENDING: ENDING,
            State.FAILED: "the model could not be loaded",
        }
        return RefusedError(503, said.get(self.state, "not ready"), kind=SERVER, code=self.state, retry_after=2)

    def _run(self) -> None:
        try:
            self._engine = self._load(self._report)
            self._live = LiveExperts(self._engine)
            self._batch = self._engine.live_batch(self._live)
            self._batch.on_error = self.on_error
            self._begin()
        except _EndedError:
            self._free()
            return
        except BaseException as error:
            self.error, self.state = error, State.FAILED
            self._free()
            self.on_failed()
            return
        try:
            self._serve(self._batch)
        finally:
            self._free()

    def _begin(self) -> None:
        if self._closing:
            raise _EndedError
        self.state = State.READY
        self.on_ready()

    def _free(self) -> None:
        if self._batch is not None:
            self._batch.close(ENDING)
        if self._engine is not None:
            self._engine.close()

    def _serve(self, batch: LiveBatch) -> None:
        busy = False
        while not self._closing:
            self._do_tasks(wait=not busy)
            try:
                busy = batch.step()
            except Exception as error:  # in the batch's own books: nobody's caches are certain any more
                self.on_error(error)
                batch.close(INTERNAL)
                busy = False

    def _do_tasks(self, *, wait: bool) -> None:
        """What others want done in this thread; `wait`s for the first where there is nothing else to do.

        Whoever comes along with the first is read along with it: a pass over one prompt needs most experts already.
        """
        began = -inf
        if wait:
            self._tasks.get()()
            began = monotonic()
        while True:
            left = began + (_MANY if self._preparing else _GATHERING) - monotonic()
            try:
                task = self._tasks.get(block=left > 0, timeout=min(_PAUSE, max(0.0, left)))
            except Empty:
                if left <= 0 or not self._preparing:
                    return
            else:
                task()

    def _report(self, stage: str, fraction: float) -> None:
        if self._closing:
            raise _EndedError
        self.stage = (stage, fraction)


class _EndedError(Exception):
    """The server is closed before the model is loaded."""
