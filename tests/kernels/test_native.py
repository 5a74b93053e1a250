"""The native kernels for CPUs: what they compute, and that every processor gives the same bits."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.registry import packable
from moe_local.kernels import native
from moe_local.kernels.cpu import native_kind
from moe_local.kernels.matrix import bind
from tests.processes import python

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="the native kernels are not there")

PROCESSORS = ("avx512", "avx-vnni", "avx2", "neon", "portable")
ENCODINGS = [*(Encoding("int4", (("group", group),)) for group in (32, 64, 128)), Encoding("int8")]
Case = tuple[Encoding, tuple[int, int], Tensor, Tensor]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    """An encoding, a shape, a weight with groups of zeros and of extreme scales, and rows of activations."""
    encoding = draw(st.sampled_from(ENCODINGS))
    group = _group(encoding)
    if encoding.format == "int4":
        shape = 16 * draw(st.integers(1, 5)), group * draw(st.integers(1, 4))
    else:
        shape = draw(st.integers(1, 70)), draw(st.integers(1, 200))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    weight = torch.randn(shape, generator=generator) * draw(st.sampled_from([1e-20, 1e-3, 1.0, 1e15]))
    weight[draw(st.integers(0, shape[0] - 1))] *= draw(st.sampled_from([0.0, 1e-10, 1e5]))
    x = torch.randn(draw(st.integers(1, 30)), shape[1], generator=generator)
    x *= draw(st.sampled_from([1e-15, 1.0, 1e10]))
    x[draw(st.integers(0, len(x) - 1)), : draw(st.integers(0, group))] = 0
    return encoding, shape, weight, x.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


def _group(encoding: Encoding) -> int:
    found = native_kind(packable(encoding), (16, 128))
    assert found is not None
    return found.group


def _rounded(x: Tensor, group: int) -> Tensor:
    """x [rows, columns] in 8 bits, each group of columns of a row with a scale of its own, as float32."""
    wide = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % group)).view(len(x), -1, group)
    scale = wide.abs().amax(2, keepdim=True) / 127
    codes = (wide * torch.where(scale > 0, 1 / scale, 0)).round().clamp(-127, 127)
    return (codes * scale).flatten(1)[:, : x.shape[1]]


def _assert_product(found: Tensor, x: Tensor, weight: Tensor, tolerance: float) -> None:
    """found = x @ weight.T, each within `tolerance` of the sum of its products' magnitudes.

    (Groups of zeros have int4's least scale, 1e-30, and an offset that takes it away again.)
    """
    x, weight = x.double(), weight.double()
    bound = x.abs() @ (weight.abs() + 1e-28).T * (tolerance + (2**-8 if found.dtype == torch.bfloat16 else 0))
    apart = ((found.double() - x @ weight.T).abs() - 1e-37) / bound.clamp(min=1e-300)
    assert apart.max() <= 1


@settings(max_examples=80, deadline=None)
@given(_cases())
def test_exact_activations(case: Case) -> None:
    encoding, shape, weight, x = case
    form = packable(encoding)
    arrays = form.encode(weight)
    found = bind(encoding, arrays, shape, exact=True)(x)
    _assert_product(found, x, form.decode(arrays, shape, torch.float32), tolerance=1e-5)


@settings(max_examples=80, deadline=None)
@given(_cases())
def test_activations_in_8_bits(case: Case) -> None:
    encoding, shape, weight, x = case
    form = packable(encoding)
    arrays = form.encode(weight)
    found = bind(encoding, arrays, shape)(x)
    _assert_product(found, _rounded(x, _group(encoding)), form.decode(arrays, shape, torch.float32), tolerance=1e-5)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_not_a_number_stays_in_its_row(encoding: Encoding, exact: bool) -> None:
    weight, x = torch.randn(32, 256), torch.randn(7, 256)
    x[2, 40], x[4, 200], x[5, 3] = torch.nan, torch.inf, -torch.inf
    found = bind(encoding, packable(encoding).encode(weight), (32, 256), exact=exact)(x)
    assert not found[[2, 4, 5]].isfinite().any()
    assert found[[0, 1, 3, 6]].isfinite().all()


@settings(max_examples=40, deadline=None)
@given(_cases(), st.booleans())
def test_a_row_alone_and_among_others(case: Case, exact: bool) -> None:
    encoding, shape, weight, x = case
    multiply = bind(encoding, packable(encoding).encode(weight), shape, exact=exact)
    together = multiply(x)
    assert torch.equal(together, torch.cat([multiply(row[None]) for row in x]))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(together, multiply(x))
    finally:
        torch.set_num_threads(before)


def test_many_rows_are_multiplied_in_waves() -> None:
    encoding, shape = ENCODINGS[1], (16, 128)
    multiply = bind(encoding, packable(encoding).encode(torch.randn(shape)), shape)
    x = torch.randn(60_000, 128)
    assert torch.equal(multiply(x)[-5:], multiply(x[-5:]))


_BITS = """
import hashlib
import torch
from moe_local.kernels import native
from tests.kernels.experts import Experts, activations
from tests.kernels.test_native import ENCODINGS, bind, packable

torch.manual_seed(0)
digest = hashlib.sha256()

def add(y):
    digest.update(y.float().nan_to_num(nan=12345.0).view(torch.uint8).numpy().tobytes())

for encoding in ENCODINGS:
    for shape in ((48, 256), (112, 384)):
        weight = torch.randn(shape) / 30
        weight[5], weight[7], weight[9] = 0, weight[7] * 1e20, weight[9] * 1e-25
        arrays = packable(encoding).encode(weight)
        x = torch.randn(30, shape[1]) * torch.logspace(-20, 10, 30)[:, None]
        x[3], x[4, 7], x[6, 9] = 0, torch.nan, torch.inf
        for typed in (x, x.bfloat16()):
            for exact in (False, True):
                add(bind(encoding, arrays, shape, exact=exact)(typed))
for activation in activations():
    experts = Experts(activation, "int4", gated=activation != "relu_squared", bias=torch.float32)
    x, index, weights = experts.inputs(tokens=9, choices=3)
    add(experts.run(x * 5, index, weights))
print(native.machine().processor, digest.hexdigest())
"""


def test_every_processor_gives_the_same_bits() -> None:
    from moe_local.kernels.native._native import Machine

    digests = {}
    for processor in PROCESSORS:
        try:
            Machine(1, processor)
        except ValueError:
            continue  # not of this machine's
        environment = {**os.environ, native.VARIABLE: processor, "OMP_NUM_THREADS": "2"}
        ran, digests[processor] = python(_BITS, env=environment).stdout.split()
        assert ran == processor
    assert "portable" in digests and len(set(digests.values())) == 1, digests
