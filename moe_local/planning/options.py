"""What a user may choose about loading. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from moe_local.errors import MoeLocalError
from moe_local.experts.misses import MISSES
from moe_local.policies import DEFAULT_POLICY, POLICIES
from moe_local.prediction import PREDICTORS
from moe_local.registry import choice

IO_MODES = ("auto", "direct", "buffered")
ACTIVATIONS = ("int8", "bf16")
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Options:
    """What a user may choose about loading. Sizes in bytes; None lets moe-local choose.

    On a CPU, `vram` bounds a device tier that is itself in RAM, and so a part of `ram`.
    """

    device: str = "auto"
    ram: int | None = None
    vram: int | None = None
    context: int | None = None
    dtype: str = "auto"
    experts: float = 1.0  # cap on the share of experts in the device tier
    host_experts: float = 1.0  # and in the host tier
    policy: str = DEFAULT_POLICY  # which experts are kept: a name of `POLICIES`
    prefetch: str = "router"  # what is read ahead: a name of `PREDICTORS`, or "off"
    io: str = "auto"  # how experts are read: direct (past the page cache), buffered, or what suits
    activations: str = "int8"  # rounded to 8 bits where a CPU's kernels gain by it; "bf16": as they are
    misses: str = "auto"  # what becomes of experts that a GPU lacks: one of `MISSES`
    warm: bool = False  # begin with the experts that the last run of this kind ended with
    other_machine: bool = False  # plan for another machine: what this one has does not bound the budgets
    max_sequences: int = 1  # that `Engine.batch` generates at once, at most
    tokens_per_sequence: int = 512  # tokens of such a sequence, on average, that memory is kept for
    beside: int = 0  # bytes of RAM that the process takes beside the model and all that computing with it takes
    threads: int | None = None  # that compute: torch's for the whole process; None: one for each core
    logits_per_pass: int = 1  # tokens of a forward pass whose logits are wanted: generating takes the last one's

    def __post_init__(self) -> None:
        POLICIES.assert_named(self.policy)
        if self.io not in IO_MODES:
            raise MoeLocalError(f"--io {self.io} is unknown", remedy=choice(self.io, IO_MODES))
        if self.activations not in ACTIVATIONS:
            raise MoeLocalError(
                f"--activations {self.activations} is unknown", remedy=choice(self.activations, ACTIVATIONS)
            )
        if self.misses not in MISSES:
            raise MoeLocalError(f"--misses {self.misses} is unknown", remedy=f"use {', '.join(MISSES)}")
        if self.prefetch != "off":
            PREDICTORS.assert_named(self.prefetch)
        if self.max_sequences < 1 or self.tokens_per_sequence < 1:
            raise MoeLocalError(
                f"{self.max_sequences} sequences of {self.tokens_per_sequence} tokens cannot be generated"
            )
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise MoeLocalError(f"--threads {self.threads} is not a number from 1 to {_MOST_THREADS}")
        for name, share in (("experts", self.experts), ("host experts", self.host_experts)):
            if not 0 < share <= 1:
                raise MoeLocalError(f"a share of {share} of the {name} is not above 0 and at most 1")
        for name, size in (("--ram", self.ram), ("--vram", self.vram)):
            if size is not None and size < 0:
                raise MoeLocalError(f"{name} {size} is not a number of bytes")
