"""Measures what only a GPU can tell, in under nine minutes, without network: tables on stdout, all figures as JSON.

    python -m benchmarks.gpu [--json FILE] [--layers 48] [--minutes 8.5] [--models qwen3-30b-a3b ...] [--folder DIR]
    python -m benchmarks.gpu --pretend

Run from the repository's root, with torch for CUDA, and 18 GB of disk. Stores of random weights with the shapes of
Qwen3-30B-A3B (int4), gpt-oss-20b (mxfp4) and 8 layers of Mixtral-8x7B (int4) are made in a temporary folder. For
shares of experts on the device and in RAM: tokens/s of decoding and prefill, bytes over each link, hits, stalls, VRAM
against its budget, and what the links, measured first, would allow. Beside them: host time a layer, transformers'
own model, accelerate's offload, and the kernels alone. Decoding and host time are with and without recordings (CUDA
graphs).

Random weights route nearly uniformly: hit rates are about the shares, lower than those of a trained model. A layer's
experts repeat four (Mixtral's two) different ones. Prefill is of a prompt after another one of its length.
`host_layer_ms` is a profiled layer without what the host waited for. Each measurement has a process and a time limit
of its own; what fails is said with its reason, and the others go on. `--pretend` runs all of it, tiny, on a pretend
device: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.gpu.measuring import Bench
from benchmarks.gpu.plan import run
from benchmarks.gpu.report import markdown
from benchmarks.gpu.scale import PRETENDED, REAL, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--layers", type=int, default=48, help="of Qwen3-30B-A3B")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which nothing goes on")
    parser.add_argument("--models", nargs="*", help="those to measure; none: kernels and links alone")
    parser.add_argument("--folder", type=Path, help="where stores are made and removed again")
    parser.add_argument("--pretend", action="store_true", help="run through, tiny, on a pretend device")
    given = parser.parse_args()
    scale = PRETENDED if given.pretend else REAL
    chosen = [model for model in models(given.layers) if given.models is None or model.name in given.models]
    bench = Bench(60 * given.minutes, given.pretend)
    began = perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(dir=given.folder, prefix="moe-local-gpu-") as folder:
            run(bench, scale, chosen, Path(folder))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    print(markdown(bench.found, scale.prompts))
    if given.json is not None:
        whole = {"pretended": given.pretend, "seconds": round(perf_counter() - began, 1), "results": bench.found}
        given.json.write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
