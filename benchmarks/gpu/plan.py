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


def run(bench: Bench, scale: Scale, models: Iterable[Model], folder: Path) -> None:
    """Measures all; results are in `bench.found`, also those of what it was interrupted in."""
    bench.measure(Measurement("machine", {}, links.machine, 60))
    speeds = _speeds(bench.measure(Measurement("links", {}, partial(links.links, scale=scale), 40)))
    for measurement in _kernels(scale):
        bench.measure(measurement)
    for model in models:
        _measure_model(bench, scale, model, folder, speeds)


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
    about: dict[str, Any] = {"model": model.name}
    store = folder / model.name
    bench.measure(Measurement("store", about, partial(stores.make, model=model, scale=scale, folder=folder), 90))
    for device, host in scale.shares:
        shares = {**about, "device_share": device, "host_share": host}
        measure = partial(engines.setting, store=store, model=model, scale=scale, share=(device, host), speeds=speeds)
        bench.measure(Measurement("engine", shares, measure, 60))
    for made in (store, folder / f"{model.name}.partial", folder / f"{model.name}-hollow"):
        shutil.rmtree(made, ignore_errors=True)
    named = {**about, "peer": "transformers, bf16, resident"}
    bench.measure(Measurement("peer", named, partial(peers.resident, model=model, scale=scale), 40))
    named = {**about, "peer": "accelerate, bf16, half in RAM"}
    bench.measure(Measurement("peer", named, partial(peers.offloaded, model=model, scale=scale), 45))
