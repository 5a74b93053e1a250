"""What a binding is made of: classes of ours in place of transformers', and experts in the interface's shape."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.core_model_loading import WeightTransform

_patching = threading.Lock()  # the classes belong to the whole process


@dataclass(frozen=True)
class Binding:
    """How an architecture runs that transformers keeps outside its experts interface.

    `classes` are those of its modeling file that are built as another of ours: the block behaves as the original
    does, and holds its experts in a module of `Experts`. `conversions` make the published tensors into its
    parameters, as transformers' own do for other architectures. Experts of the classes in `dense` are not paged.
    `mend` puts right what transformers makes of a published configuration.
    """

    classes: Mapping[type[nn.Module], type[nn.Module]]
    conversions: Callable[[], Sequence[WeightTransform]]
    dense: tuple[type[nn.Module], ...] = ()
    mend: Callable[[PreTrainedConfig], None] = lambda config: None


class Experts(nn.Module):
    """Experts in the shape of transformers' experts interface.

    Called with hidden [T, H], index [T, k] and weights [T, k]; an index of as many as there are experts, or more,
    stands for none. It is paged wherever it runs: there is no forward pass over these parameters.
    """

    def __init__(
        self, experts: int, hidden: int, inner: int, activation: str, *, gate: bool = True, bias: bool = False
    ) -> None:
        super().__init__()
        self.num_experts = experts
        self.has_gate = gate
        self.act_fn = ACT2FN[activation]
        up, width = ("gate_up_proj", 2 * inner) if gate else ("up_proj", inner)
        for name, out, inputs in ((up, width, hidden), ("down_proj", hidden, inner)):
            self.register_parameter(name, nn.Parameter(torch.empty(experts, out, inputs)))
            if bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(experts, out)))

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        gated: Tensor = self.act_fn(gate) * up
        return gated


@contextmanager
def classes_replaced(replacements: Mapping[type[nn.Module], type[nn.Module]]) -> Iterator[None]:
    """While inside, models are built with other classes in place of these.

    Each modeling file builds the experts it defines, so the name in that file is the only one to replace.
    transformers' own patch mapping does the same by walking all its modules, which imports some that need packages
    nobody has, and does not undo it when a load fails.
    """
    with _patching:
        _put(replacements.items())
        try:
            yield
        finally:
            _put((original, original) for original in replacements)


def _put(classes: Iterable[tuple[type[nn.Module], type[nn.Module]]]) -> None:
    for original, replacement in classes:
        setattr(sys.modules[original.__module__], original.__name__, replacement)
