"""What Prometheus is told: requests and tokens, experts found and read, memory against budgets.

https://prometheus.io/docs/instrumenting/exposition_formats/. Collected when it is asked for; nothing runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from moe_local.memory.limits import peak_memory, process_memory
from moe_local.serve.feed import Feed
from moe_local.serve.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)


class Metrics:
    """Those of one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "moe_local_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._first = Histogram(
            "moe_local_first_token_seconds",
            "From asking to the first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._whole = Histogram(
            "moe_local_answer_seconds", "From asking to the last token.", buckets=_SECONDS, registry=self._registry
        )
        self._registry.register(self)

    def replied(self, path: str, status: int) -> None:
        """A request was replied to."""
        self._requests.labels(path, str(status)).inc()

    def answered(self, feed: Feed) -> None:
        """An answer came to its end."""
        if feed.first_at is not None and feed.ended_at is not None:
            self._first.observe(feed.first_at - feed.asked_at)
            self._whole.observe(feed.ended_at - feed.asked_at)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called for `text`: what others count already."""
        service = self._service
        yield _gauge("moe_local_ready", "1 once requests are answered.", float(service.is_ready))
        yield _gauge("moe_local_requests_open", "Requests under way, those that wait among them.", service.open)
        yield _gauge("moe_local_requests_waiting", "Requests that have no place yet.", service.waiting)
        yield _gauge("moe_local_process_memory_bytes", "RAM of the process.", process_memory())
        yield _gauge("moe_local_process_memory_peak_bytes", "Most RAM that the process has held.", peak_memory())
        if service.is_ready:
            yield from self._of_batch()
            yield from self._of_experts()

    def _of_batch(self) -> Iterator[Metric]:
        batch = self._service.batch
        totals = batch.totals
        yield _gauge("moe_local_answers_running", "Answers that get a token a pass.", len(batch.turns.running))
        yield _gauge("moe_local_prompts_reading", "Prompts that are being read.", len(batch.turns.reading))
        yield _gauge("moe_local_kept_tokens", "Columns of KV caches that are kept.", batch.kept.columns)
        yield _counter("moe_local_prompt_tokens", "Tokens of prompts.", totals.prompt_tokens)
        yield _counter("moe_local_cached_tokens", "Of these, computed before.", totals.cached_tokens)
        yield _counter("moe_local_generated_tokens", "Tokens of answers.", totals.new_tokens)
        yield _counter("moe_local_passes", "Forward passes that chose tokens.", totals.passes)
        yield _counter("moe_local_put_back", "Answers that had to make room.", totals.put_back)

    def _of_experts(self) -> Iterator[Metric]:
        engine = self._service.engine
        counters, plan = engine.cache.counters, engine.plan
        found = CounterMetricFamily("moe_local_experts", "Experts needed, by where they were.", labels=["tier"])
        found.add_metric(["device"], counters.hits)
        found.add_metric(["host"], counters.host_hits)
        found.add_metric(["disk"], counters.misses - counters.host_hits)
        yield found
        yield _counter("moe_local_bytes_read", "Read from disk.", counters.bytes_read)
        yield _counter("moe_local_bytes_uploaded", "From RAM to the device.", counters.bytes_uploaded)
        yield _counter("moe_local_bytes_wasted", "Read ahead for nothing.", counters.bytes_wasted)
        yield _counter("moe_local_stall_seconds", "Compute waited for an expert.", counters.stall_seconds)
        budgets = GaugeMetricFamily("moe_local_budget_bytes", "Budgets, by memory.", labels=["memory"])
        budgets.add_metric(["ram"], plan.ram)
        if plan.vram is not None:
            budgets.add_metric(["vram"], plan.vram)
        yield budgets
        slots = GaugeMetricFamily("moe_local_slots_bytes", "Bytes of experts' slots, by tier.", labels=["tier"])
        slots.add_metric(["device"], plan.device_bytes)
        slots.add_metric(["host"], plan.host_bytes)
        yield slots


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value)
