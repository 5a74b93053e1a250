"""Driving a model's routing from a trace: I/O and compute are real, under the locality of another model's tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moe_local.bench.trace import Trace
from moe_local.errors import MoeLocalError
from moe_local.planning.needs import Needs


class Route:
    """A tap that puts a trace's experts in place of the routers'; from the trace's beginning again after its end.

    The weights are the trace's where it has them, else the routers' own, in their order.
    Raises MoeLocalError when the trace is of a model of another build.
    """

    def __init__(self, trace: Trace, needs: Needs) -> None:
        ours = (len(needs.experts), max(needs.experts), max(needs.top_k))
        theirs = (trace.layers, trace.experts, trace.top_k)
        if ours != theirs:
            layers, experts, top_k = theirs
            raise MoeLocalError(
                f"the trace is of {layers} layers of {experts} experts, {top_k} a token, and the model has"
                f" {ours[0]} of {ours[1]}, {ours[2]} a token",
                remedy="record a trace of this model, or replay this one",
            )
        self._ids = torch.from_numpy(trace.ids.astype(np.int64))
        self._weights = None if trace.weights is None else torch.from_numpy(trace.weights)
        self._at = [0] * trace.layers  # the token that each layer sees next

    def __call__(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        places = (torch.arange(len(index)) + self._at[layer]) % len(self._ids)
        self._at[layer] = int(places[-1]) + 1
        ids = self._ids[places, layer].to(index)
        given = weights if self._weights is None else self._weights[places, layer].to(weights)
        return ids, given
