"""Engines on a Ray cluster that share a job's lines: one a GPU, or as many as asked for.

The driver alone reads the input and writes the output, so a job's promises do not depend on the workers: what one had
not answered when it was lost, another answers.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from moe_local.errors import MoeLocalError, UnsupportedError, first_line
from moe_local.generation.batch import Answer, Request
from moe_local.generation.template_settings import TemplateSettings
from moe_local.paths import cache_dir
from moe_local.planning.options import Options

_LOSSES = 3  # workers lost for each that there is, before the job gives up
_CONNECT = 5.0  # seconds
_POLL = 0.5  # seconds between two looks at an interrupt


def gpus_of_each(workers: int, gpus: int, device: str) -> int:
    """GPUs for each of some workers, of a cluster with so many. Raises MoeLocalError where there are not enough.

    Ray hides all GPUs from a worker that has asked for none: it would compute on a CPU, and not say so.
    """
    if device == "cpu" or not gpus:
        return 0
    if workers > gpus:
        raise MoeLocalError(
            f"{workers} workers cannot have a GPU each: the cluster has {gpus}",
            remedy=f"give --workers {gpus}, or --device cpu for all of them",
        )
    return 1


@dataclass(frozen=True)
class Loading:
    """What a worker loads."""

    model: str | None  # a path or hub id that every node knows; None is the demo
    options: Options
    pack: bool
    template: TemplateSettings = field(default_factory=TemplateSettings)

    def engine(self, neighbours: int) -> Any:
        """Loaded in this process, with an equal share of the machine's free memory for each of its `neighbours`."""
        from moe_local.demo import ensure_demo
        from moe_local.engine import load
        from moe_local.memory.limits import memory_available
        from moe_local.store.first_use import ensure_packed
        from moe_local.store.open import ModelFiles

        def quiet(stage: str, fraction: float) -> None:
            pass

        where: str | Path | ModelFiles = ensure_demo(cache_dir(), quiet) if self.model is None else self.model
        if self.pack and self.model is not None and self.options.dtype != "float32":
            where, _ = ensure_packed(self.model, quiet, dtype=self.options.dtype)
        options = self.options
        if options.ram is None and neighbours > 1:
            options = replace(options, ram=int(memory_available() * 0.9 / neighbours))
        engine = load(where, options)
        engine.generator.use_template(self.template)
        return engine


class Worker:
    """An engine in a process of its own, as a Ray actor."""

    def __init__(self, loading: Loading, neighbours: int) -> None:
        self._engine = loading.engine(neighbours)

    def capacity(self) -> int:
        """Sequences that it generates at once."""
        return int(self._engine.load_plan.sequences)

    def answer(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Answers as they are finished, their tags as they were."""
        for answer in self._engine.batch(requests):  # noqa: UP028 - Ray would send into what it yields from
            yield answer


class Pool:
    """Workers on a cluster. Close it, or use it in a `with`: its workers end, the cluster stays."""

    def __init__(
        self, address: str, workers: int | None, loading: Loading, report: Callable[[str], None] = lambda text: None
    ) -> None:
        self._open = ExitStack()
        self._ray = _connect(address)
        self._open.enter_context(redirect_stdout(sys.stderr))  # Ray prints there, and answers may go there
        self._open.callback(self._ray.shutdown)
        self._loading = loading
        self._report = report
        resources = self._ray.cluster_resources()
        gpus, nodes = int(resources.get("GPU", 0)), max(1, len(self._ray.nodes()))
        self.size = workers or gpus or nodes
        self.lost = 0
        self.new_tokens = 0
        self._neighbours = -(-self.size // nodes)
        actor = self._ray.remote(Worker)
        self._actor = actor.options(
            num_gpus=gpus_of_each(self.size, gpus, loading.options.device),
            num_cpus=max(1, int(resources.get("CPU", 1)) // self.size),
        )
        self._workers: list[Any] = []
        try:
            self._workers = [self._start() for _ in range(self.size)]
            self._share = 2 * min(self._ray.get([worker.capacity.remote() for worker in self._workers]))
        except self._ray.exceptions.RayError as error:
            self.close()
            raise _said(error) from error

    def _start(self) -> Any:
        return self._actor.remote(self._loading, self._neighbours)

    def run(self, requests: Iterable[Request], interrupt: threading.Event | None = None) -> Iterator[Answer]:
        """Answers as they are finished, whichever worker they come from."""
        interrupt = interrupt or threading.Event()
        source = iter(requests)
        again: deque[Request] = deque()  # of workers that were lost
        under_way: dict[Any, _Share] = {}  # stream of answers -> what it is to answer
        idle = deque(self._workers)
        while not interrupt.is_set():
            while idle and (some := [*islice(_drained(again), self._share)] or [*islice(source, self._share)]):
                worker = idle.popleft()
                numbered = dict(enumerate(some))
                asked = [replace(request, tag=number) for number, request in numbered.items()]
                stream = worker.answer.options(num_returns="streaming").remote(asked)
                under_way[stream] = _Share(worker, numbered)
            if not under_way:
                return
            ready, _ = self._ray.wait(list(under_way), timeout=_POLL)
            for stream in ready:
                share = under_way[stream]
                try:
                    answer = self._ray.get(next(stream))
                except StopIteration:
                    del under_way[stream]
                    idle.append(share.worker)
                except self._ray.exceptions.RayActorError as error:
                    del under_way[stream]
                    again.extend(share.left.values())
                    idle.append(self._replaced(share.worker, error))
                except self._ray.exceptions.RayTaskError as error:
                    raise _said(error) from error
                else:
                    self.new_tokens += answer.new_tokens
                    yield replace(answer, request=share.left.pop(answer.request.tag))

    def _replaced(self, worker: Any, error: Exception) -> Any:
        self.lost += 1
        if self.lost > _LOSSES * self.size:
            raise MoeLocalError(
                f"{self.lost} workers were lost ({first_line(error)})",
                remedy="give each less to hold with --ram, then run the same command: it goes on",
            ) from error
        self._report("a worker was lost; what it had not answered goes to another")
        self._workers.remove(worker)
        self._workers.append(self._start())
        return self._workers[-1]

    def close(self) -> None:
        for worker in self._workers:
            self._ray.kill(worker)
        self._open.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Share:
    worker: Any
    left: dict[int, Request]  # by the number that its answer will carry


def _drained(queue: deque[Request]) -> Iterator[Request]:
    while queue:
        yield queue.popleft()


def _connect(address: str) -> Any:
    try:
        import ray
        from ray._private.services import canonicalize_bootstrap_address
    except ModuleNotFoundError as error:
        raise UnsupportedError("Ray is not installed", remedy="pip install 'moe-local[ray]'") from error
    try:
        found = canonicalize_bootstrap_address(address)
        host, _, port = str(found).rpartition(":")
        # Ray itself would wait for minutes.
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT).close()
        ray.init(address=found, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise MoeLocalError(
            f"there is no Ray cluster at {address} ({first_line(error)})",
            remedy="start one with `ray start --head`",
        ) from error
    return ray


def _said(error: Exception) -> MoeLocalError:
    """What made a worker end, in its own words if they are ours."""
    cause = getattr(error, "cause", None)
    return (
        cause if isinstance(cause, MoeLocalError) else MoeLocalError(f"a worker did not start ({first_line(error)})")
    )
