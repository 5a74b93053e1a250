"""Kernels that are launched again get the very arguments of the first time; other types or alignments, other kernels.

On a driver that pretends to have a GPU: Triton compiles for it, and launches are only written down.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moe_local.kernels import triton_matrix
from tests.processes import python

pytestmark = [
    pytest.mark.skipif(triton_matrix.missing() is not None, reason="triton is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="triton for Linux compiles without a GPU's driver"),
]

_PRETEND = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

launched = []


class Utils:
    def load_binary(self, name, *others):
        return name, name, 40, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 101376}


class Launching:
    def __init__(self, *given):
        pass

    def __call__(self, *given):
        launched.append(given)


class Driver:
    utils, launcher_cls = Utils(), Launching

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 7

    def get_current_target(self):
        return GPUTarget("cuda", 86, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")


driver.set_active(Driver())

from tests.kernels.triton_layers import ENCODINGS, Layer, experts_of

layer = Layer(ENCODINGS["int8"], hidden=64, inner=64)
kernels, table = experts_of(layer), layer.table()


def run(hidden, index, weights):
    launched.clear()
    kernels.run(hidden, index, weights, table)
    return list(launched)
"""


def _said(code: str, tmp_path: Path) -> str:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    found: str = python(_PRETEND + code, env=environment, cwd=Path(__file__).parent.parent.parent).stdout
    return found


def test_the_same_arguments_by_both_ways(tmp_path: Path) -> None:
    code = """
import triton.runtime.jit as jit
METADATA = 6  # for profilers: made anew for each launch
inputs = layer.inputs(2, 2, torch.float16)
first = run(*inputs)
looked_up = []
jit.JITFunction.run = lambda *given, **options: looked_up.append(given)
again = run(*inputs)
assert not looked_up and len(first) == len(again) == 3
for one, other in zip(first, again):
    assert len(one) == len(other)
    for place, (a, b) in enumerate(zip(one, other)):
        if place == METADATA:
            continue
        same = a is b or (torch.is_tensor(a) and a.shape == b.shape and a.dtype == b.dtype) or a == b
        assert same is True, (a, b)
print("done")
"""
    assert "done" in _said(code, tmp_path)


def test_other_types_and_alignments_are_other_kernels(tmp_path: Path) -> None:
    code = """
hidden, index, weights = layer.inputs(2, 2, torch.float16)
variants = lambda: sum(len(each._known) for each in kernels._launchers.values())
run(hidden, index, weights)
assert variants() == 3
run(hidden.clone(), index.clone(), weights.clone())
assert variants() == 3
run(hidden.float(), index, weights)
assert variants() == 5  # down reads float32 either way
room = torch.empty(hidden.numel() + 1, dtype=hidden.dtype)
apart = room[1:].view(hidden.shape)
assert apart.data_ptr() % 16
run(apart, index, weights)
assert variants() == 6
print("done")
"""
    assert "done" in _said(code, tmp_path)
