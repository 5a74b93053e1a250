"""Everything that is measured, in order, each with its time limit."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import engines, kernels, links, peers, stores
from benchmarks.gpu.measuring import Bench, Measurement
from benchmarks.gpu.scale import FORMATS, Model, Scale

_FIRST = 3  # settings before other people's software: what a short run must have
_FOR_KERNELS = 0.3  # of the time, at most


def run(bench: Bench, scale: Scale, models: Iterable[Model], folder: Path) -> None:
    """Measures all; results are in `bench.found`, also those of what it was interrupted in."""
    bench.measure(Measurement("machine", {}, links.machine, 60))
    speeds = _speeds(bench.measure(Measurement("links", {}, partial(links.links, scale=scale), 40)))
    with bench.within(_FOR_KERNELS):
        for measurement in _kernels(scale):
            bench.measure(measurement)
    remaining = list(models)
    while remaining:
        with bench.within(remaining[0].weight / sum(model.weight for model in remaining)):
            _measure_model(bench, scale, remaining.pop(0), folder, speeds)


def _speeds(found: dict[str, Any]) -> dict[str, float | None]:
    known = [found[name] for name in ("memory_read", "memory_copy") if name in found]
    return {"memory": max(known, default=None), "upload": found.get("upload")}


def _kernels(scale: Scale) -> Iterator[Measurement]:
    for name in FORMATS:
        yield Measurement("matrix", {"format": name}, partial(kernels.matrices, name=name, scale=scale), 25)
    yield Measurement("matrix", {"format": "nf4"}, partial(kernels.bitsandbytes, scale=scale), 20)
    for name in ("int4", "mxfp4", "int8"):
        yield Measurement("experts", {"format": name}, partial(kernels.layers, name=name, scale=scale), 25)
    for name in ("int4", "mxfp4"):
        yield Measurement("crossing", {"format": name}, partial(kernels.crossing, name=name, scale=scale), 30)


def _measure_model(bench: Bench, scale: Scale, model: Model, folder: Path, speeds: dict[str, float | None]) -> None:
    store, about = folder / model.name, {"model": model.name}
    bench.measure(Measurement("store", about, partial(stores.make, model=model, scale=scale, folder=folder), 120))
    engine, peer = list(_engines(scale, model, store, speeds)), list(_peers(scale, model))
    for measurement in (*engine[:_FIRST], *peer, *engine[_FIRST:]):
        bench.measure(measurement)
    for made in (store, folder / f"{model.name}.partial", folder / f"{model.name}-hollow"):
        shutil.rmtree(made, ignore_errors=True)


def _engines(scale: Scale, model: Model, store: Path, speeds: dict[str, float | None]) -> Iterator[Measurement]:
    for setting in scale.settings:
        device, host, misses = setting
        about = {"model": model.name, "device_share": device, "host_share": host, "misses": misses}
        measure = partial(engines.setting, store=store, model=model, scale=scale, setting=setting, speeds=speeds)
        yield Measurement("engine", about, measure, 60)


def _peers(scale: Scale, model: Model) -> Iterator[Measurement]:
    about = {"model": model.name, "peer": "transformers, bf16, resident"}
    yield Measurement("peer", about, partial(peers.resident, model=model, scale=scale), 40)
    about = {"model": model.name, "peer": "accelerate, bf16, half in RAM"}
    yield Measurement("peer", about, partial(peers.offloaded, model=model, scale=scale), 45)
