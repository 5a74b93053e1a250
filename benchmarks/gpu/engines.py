"""moe-local itself, with shares of a model's experts on the device and in RAM, beside what its links would allow."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measuring import Say
from benchmarks.gpu.scale import Model, Scale, Setting
from moe_local import Engine, Options, Sampling, load
from moe_local.bench.links import measure_disk
from moe_local.generation.generate import Generation
from moe_local.model.decode_graphs import DecodeGraphs
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.known_models import find_sizes
from moe_local.planning.weights import dense_bytes

SHORT = 32  # tokens of a prompt that is decoded after
# What CUDA's calls are named in a profile.
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def setting(
    say: Say, store: Path, model: Model, scale: Scale, setting: Setting, speeds: Mapping[str, float | None]
) -> None:
    """Decoding and prefill; `speeds` are `links`', GB/s."""
    device, host, misses = setting
    options = Options(
        device="cuda", context=scale.context, experts=device, host_experts=host, misses=misses,
        io="direct" if host < 1 else "auto",
    )  # fmt: skip
    with load(store, options) as engine:
        plan = engine.plan
        say(
            load_seconds=round(engine.load_seconds, 2), notes=list(engine.notes), vram_budget=plan.vram,
            vram_planned=plan.vram_used, device_share_planned=round(plan.share, 4),
        )  # fmt: skip
        engine.generate(_ids(engine, SHORT), _greedy(2))
        engine.model.generation_config.eos_token_id = None
        _prefill(say, engine, scale)
        disk = measure_disk(engine) if host < 1 else None
        _decode(say, engine, scale, dense_bytes(find_sizes(str(store)), model.formats)[1], {**speeds, "disk": disk})
        _memory(say, engine)
        if plan.device_experts == plan.needs.all_experts:
            _host_time(say, engine, scale)


def _ids(engine: Engine, count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(engine.model.config.vocab_size, (count,), generator=generator).tolist()
    return ids


def _greedy(tokens: int) -> Sampling:
    return Sampling(max_new_tokens=tokens, temperature=0)


def _prefill(say: Say, engine: Engine, scale: Scale) -> None:
    """Tokens/s until the first new token, after another prompt of that length."""
    for tokens in scale.prompts:
        engine.generate(_ids(engine, tokens, 1), _greedy(1))
        result = engine.generate(_ids(engine, tokens, 2), _greedy(1))
        say(
            **{
                f"prefill_{tokens}_tokens_per_second": round(tokens / result.time_to_first_token, 1),
                f"prefill_{tokens}_bytes_uploaded": result.counters.bytes_uploaded,
                f"prefill_{tokens}_bytes_read": result.counters.bytes_read,
            }
        )


def _decode(say: Say, engine: Engine, scale: Scale, dense: int, speeds: Mapping[str, float | None]) -> None:
    engine.generate(_ids(engine, SHORT, 3), _greedy(scale.decoded))
    result = engine.generate(_ids(engine, SHORT, 4), _greedy(scale.decoded))
    tokens, spent, seen = result.new_tokens - 1, result.seconds - result.time_to_first_token, result.decode
    crossed = seen.bytes_uploaded + seen.zero_copied * engine.plan.needs.slot
    say(
        tokens_per_second=round(result.tokens_per_second, 2),
        token_seconds=round(_median_gap(result), 6),
        bytes_uploaded_per_token=round(crossed / tokens),
        bytes_read_per_token=round(seen.bytes_read / tokens),
        tokens_per_second_unrecorded=round(_by_modules(engine, scale), 2),
        tokens_recorded=engine.generator.graphs.played if engine.generator.graphs else 0,
        stall_share=round(seen.stall_seconds / spent, 4),
        device_hit_rate=round(seen.hit_rate, 4),
        host_hit_rate=round(seen.host_hits / seen.misses, 4) if seen.misses else None,
    )
    needs = engine.plan.needs
    carried = {
        "memory": dense + needs.token_set * needs.slot,
        "upload": crossed / tokens,
        "disk": seen.bytes_read / tokens,
    }
    say(**limit(carried, speeds, result.tokens_per_second))


def _by_modules(engine: Engine, scale: Scale) -> float:
    """Tokens/s of decoding without recordings."""
    graphs, engine.generator.graphs = engine.generator.graphs, None
    try:
        return engine.generate(_ids(engine, SHORT, 4), _greedy(scale.decoded)).tokens_per_second
    finally:
        engine.generator.graphs = graphs


def _median_gap(result: Generation) -> float:
    return statistics.median(after - before for before, after in pairwise(result.token_times))


def limit(carried: Mapping[str, float], speeds: Mapping[str, float | None], reached: float) -> dict[str, Any]:
    """What the slowest link alone would allow, of the bytes of a token and GB/s; a link whose speed is not known is
    left out, and there is no limit where that of the memory is not.
    """
    seconds = {link: carried[link] / (speed * 1e9) for link, speed in speeds.items() if speed and link in carried}
    figures: dict[str, Any] = {
        "bytes_computed_per_token": round(carried["memory"]),
        "disk_gb_per_second": None if not speeds.get("disk") else round(speeds["disk"] or 0.0, 3),
    }
    if "memory" not in seconds:
        return {**figures, "limit_tokens_per_second": None}
    slowest = max(seconds, key=lambda link: seconds[link])
    fastest = 1 / seconds[slowest]
    of_limit = round(reached / fastest, 4)
    return {**figures, "limit_tokens_per_second": round(fastest, 2), "limit_by": slowest, "of_limit": of_limit}


def _memory(say: Say, engine: Engine) -> None:
    peak = engine.load_plan.accelerator.peak_memory() + engine.plan.vram_overhead
    free, total = torch.cuda.mem_get_info()
    budget = engine.plan.vram or total
    say(vram_peak=peak, vram_within_budget=peak <= budget, vram_of_card_used=total - free)


def _host_time(say: Say, engine: Engine, scale: Scale) -> None:
    """A token's forward pass with everything resident, by the modules and recorded: all of it, and, of a profile,
    what the host waited for. What the host takes to issue a layer is the difference.
    """
    graphs = engine.generator.graphs
    if graphs is not None:
        graphs.release()  # those of other arguments
    for name, recordings in (("", None), ("recorded_", graphs)):
        with torch.inference_mode():
            ids = torch.tensor([_ids(engine, SHORT)], device=engine.model.device)
            with nullcontext() if recordings is None else recordings.alone():
                found = _layer_times(engine, scale, kv_cache(engine.model(input_ids=ids, use_cache=True)), recordings)
        say(**{name + key: value for key, value in found.items()})


def _layer_times(engine: Engine, scale: Scale, cache: Any, recordings: DecodeGraphs | None) -> dict[str, Any]:
    layers = engine.model.config.num_hidden_layers
    token = torch.tensor([[8]], device=engine.model.device)
    before = 0 if recordings is None else recordings.played
    times = [_forward(engine, token, cache) for _ in range(2 + scale.forwards)][2:]
    found = {"layer_ms": round(statistics.median(times) / layers * 1e3, 4)}
    if recordings is not None and recordings.played == before:
        return {}  # it cannot be
    if scale.tiny:  # no driver tells of a pretend device
        return found
    seen, each = _profile(engine, token, cache, scale.forwards), scale.forwards * layers
    waited = sum(seen.get(name, (0, 0.0))[1] for name in _WAITS) / each
    return found | {
        "profiled_layer_ms": round(seen["wall"][1] / each / 1e3, 4),
        "host_layer_ms": round((seen["wall"][1] / each - waited) / 1e3, 4),
        "kernels_layer_ms": round(seen["kernels"][1] / each / 1e3, 4),
        "launches_per_layer": round(sum(seen.get(name, (0, 0.0))[0] for name in _LAUNCHES) / each, 1),
        "syncs_per_layer": round(sum(seen.get(name, (0, 0.0))[0] for name in _WAITS) / each, 2),
    }


def _forward(engine: Engine, token: Tensor, cache: Any) -> float:
    """Seconds of one token through the model, until the device is done."""
    torch.cuda.synchronize()
    began = perf_counter()
    _pass(engine, token, cache)
    torch.cuda.synchronize()
    return perf_counter() - began


def _pass(engine: Engine, token: Tensor, cache: Any) -> None:
    engine.model(input_ids=token, use_cache=True, **{CACHE: cache})


def _profile(engine: Engine, token: Tensor, cache: Any, count: int) -> dict[str, tuple[int, float]]:
    """Calls and microseconds by name, with all of the time as "wall" and that of kernels as "kernels"."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        began = perf_counter()
        for _ in range(count):
            _pass(engine, token, cache)
        spent = perf_counter() - began
    averages = seen.key_averages()
    kernels = sum(event.self_device_time_total for event in averages if event.device_type == DeviceType.CUDA)
    found = {event.key: (event.count, event.self_cpu_time_total) for event in averages}
    return {**found, "wall": (count, spent * 1e6), "kernels": (0, kernels)}
