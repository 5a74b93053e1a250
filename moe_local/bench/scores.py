"""What a model's routers say of every expert, over some text: recorded while it runs, kept in a file.

A file of scores is an `.npz`: `scores` [tokens, layers, experts] float16, the routers' logits; `tokens` [tokens]
int32, of the vocabulary; `lens` [texts] their tokens; `meta` a JSON string (model, top_k).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_local.checkpoint.regular import read_regular
from moe_local.engine import Engine
from moe_local.errors import MoeLocalError, StorageError, UnsupportedError
from moe_local.evaluation.scoring import log_probabilities
from moe_local.evaluation.windows import Window
from moe_local.experts.next_router import LayerRouter, routers
from moe_local.files import atomic_write
from moe_local.units import format_size

_MOST = 1 << 30  # bytes of the arrays


@dataclass(frozen=True)
class Scores:
    """Router logits in memory. Raises MoeLocalError when its parts disagree."""

    scores: NDArray[np.float16]  # [tokens, layers, experts]
    tokens: NDArray[np.int32]  # [tokens]
    lens: NDArray[np.int32]  # [texts]
    top_k: int
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.scores.shape
        if len(shape) != 3 or not self.scores.size or self.scores.dtype.kind != "f":
            raise MoeLocalError(f"its scores are {self.scores.dtype} {list(shape)}, not [tokens, layers, experts]")
        if not np.isfinite(self.scores).all():
            raise MoeLocalError("its scores are not all numbers")
        if self.tokens.shape != shape[:1] or self.tokens.dtype.kind not in "iu" or self.tokens.min() < 0:
            raise MoeLocalError(f"its tokens are {self.tokens.dtype} {list(self.tokens.shape)}")
        lens = self.lens
        if lens.ndim != 1 or lens.dtype.kind not in "iu" or lens.min(initial=1) < 1 or int(lens.sum()) != shape[0]:
            raise MoeLocalError(f"its lens do not add up to its {shape[0]} tokens")
        if not 1 <= self.top_k <= shape[2]:
            raise MoeLocalError(f"it chooses {self.top_k} of {shape[2]} experts")

    @property
    def model(self) -> str:
        """The name of the model that was recorded."""
        return str(self.meta.get("model", "unknown"))


def record_scores(engine: Engine, texts: Sequence[list[int]], report: Callable[[str, float], None]) -> Scores:
    """Runs the model over texts, token ids each, and keeps what its routers say of all but each one's last token.

    Raises UnsupportedError where a layer has no router that can be read.
    """
    needs = engine.plan.needs
    if len(set(needs.experts)) != 1:
        raise UnsupportedError("its layers have different numbers of experts: their routing cannot be compared")
    seen: list[list[Tensor]] = [[] for _ in needs.experts]
    with _watching(engine, seen):
        for number, ids in enumerate(texts):
            report("running the routers", number / len(texts))
            last = Window(0, len(ids) - 1, len(ids))
            deque(log_probabilities(engine.model, ids, last, engine.load_plan.prefill_chunk), maxlen=0)
    layers = [torch.cat(parts) for parts in seen if parts]
    lens = np.array([len(ids) - 1 for ids in texts], dtype=np.int32)
    total = int(lens.sum())
    if len(layers) != len(seen) or any(len(layer) != total for layer in layers):
        raise UnsupportedError("its routers do not see each token once: their scores cannot be kept")
    scores = torch.stack(layers, dim=1).clamp(-6e4, 6e4).to(torch.float16).numpy()
    tokens = np.array([token for ids in texts for token in ids[:-1]], dtype=np.int32)
    meta = {"model": engine.load_plan.checkpoint.directory.name, "config_hash": engine.load_plan.config_hash}
    return Scores(scores, tokens, lens, max(needs.top_k), meta)


@contextmanager
def _watching(engine: Engine, seen: Sequence[list[Tensor]]) -> Iterator[None]:
    """While inside, what each layer's router says of what it is given is kept, float32 [T, experts] a pass."""
    found = routers(engine.model, engine.load_plan.catalog)
    if absent := [layer for layer in range(len(seen)) if layer not in found]:
        raise UnsupportedError(f"the router of layer {absent[0]} cannot be read: nothing to compare")
    handles = [found[layer].module.register_forward_pre_hook(_keeper(found[layer], seen[layer])) for layer in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeper(router: LayerRouter, kept: list[Tensor]) -> Callable[[nn.Module, Any], None]:
    def keep(module: nn.Module, given: Any) -> None:
        hidden: Tensor = given[0]
        kept.append((hidden.reshape(-1, hidden.shape[-1]).float() @ router.weight.T).cpu())

    return keep


def write_scores(scores: Scores, path: Path) -> None:
    """Raises StorageError when the disk does not take it."""
    meta = json.dumps({**scores.meta, "top_k": scores.top_k})
    try:
        with atomic_write(path) as file:
            np.savez_compressed(file, scores=scores.scores, tokens=scores.tokens, lens=scores.lens, meta=meta)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", remedy="choose another place") from error


def read_scores(path: Path) -> Scores:
    """Raises MoeLocalError naming the file and what is wrong with it."""
    try:
        content = read_regular(path, _MOST)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total = sum(part.file_size for part in archive.infolist())
        if total > _MOST:
            raise MoeLocalError(f"its arrays take {format_size(total)}, and {format_size(_MOST)} at most are read")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            return Scores(arrays["scores"], arrays["tokens"], arrays["lens"], int(meta["top_k"]), meta)
    except MoeLocalError as error:
        raise MoeLocalError(f"{path} holds no scores: {error.message}", remedy="record it again") from error
    except Exception as error:  # numpy, zipfile and json have errors of a dozen kinds for damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MoeLocalError(f"{path} holds no scores: {reason[:200]}", remedy="record it again") from error
