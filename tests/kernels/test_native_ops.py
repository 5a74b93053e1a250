"""Native norms, rotary embedding, attention of one query and routing, on every processor that can run here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_local.kernels import native

if native.missing() is not None:
    pytest.skip("the native kernels are not built", allow_module_level=True)

from moe_local.kernels.native import _native
from moe_local.model.attention_native import attend_native

BF16 = torch.bfloat16


def _machines() -> list[_native.Machine]:
    made = []
    for name in ("portable", "avx2", "avx-vnni", "avx512", "neon"):
        for threads in (1, 3):
            try:
                made.append(_native.Machine(threads, name))
            except ValueError:
                continue
    return made


MACHINES = _machines()


def _norm(machine: _native.Machine, x: Tensor, weight: Tensor | None, rounding: int) -> Tensor:
    out = torch.empty_like(x)
    where = (0, 0) if weight is None else (weight.data_ptr(), weight.nbytes)
    _native.rms_norm(
        machine,
        rounding,
        1e-6,
        len(x),
        x.shape[1],
        native.TYPES[x.dtype],
        x.data_ptr(),
        x.nbytes,
        *where,
        out.data_ptr(),
        out.nbytes,
    )
    return out


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 150), st.sampled_from([torch.float32, BF16]), st.booleans(), st.integers(0, 2)
)
def test_norms_are_those_of_torch_on_every_processor(
    rows: int, columns: int, dtype: torch.dtype, weighted: bool, rounding: int
) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, columns).to(dtype), torch.randn(columns) if weighted else None
    wide = x.float()
    wanted = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    wanted = wanted if weight is None else wanted * weight
    results = [_norm(machine, x, weight, rounding) for machine in MACHINES]
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(results[0].float(), wanted, rtol=tolerance, atol=1e-6)
    assert all(torch.equal(results[0], other) for other in results)
    assert torch.equal(
        _norm(MACHINES[0], x[-1:].clone(), weight, rounding), results[0][-1:]
    )  # whatever lies beside it


def test_what_is_no_number_stays_none() -> None:
    x = torch.randn(3, 40).to(BF16)
    x[1, 7] = torch.nan
    for machine in MACHINES:
        assert _norm(machine, x, None, 0).isnan().any(dim=-1).tolist() == [False, True, False]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([(4, 4), (8, 2), (6, 1), (10, 2)]),
    st.integers(1, 200),
    st.sampled_from([(16, 8), (128, 128), (24, 40), (72, 64)]),
    st.sampled_from(["none", "seen", "added", "added bf16"]),
)
def test_one_query_attends_as_in_torch(
    batch: int, heads: tuple[int, int], length: int, sizes: tuple[int, int], masked: str
) -> None:
    torch.manual_seed(length)
    query = torch.randn(batch, heads[0], 1, sizes[0]).to(BF16)
    key = torch.randn(batch, heads[1], length + 5, sizes[0]).to(BF16)[:, :, :length]
    value = torch.randn(batch, length, heads[1], sizes[1]).to(BF16).transpose(1, 2)
    seen = torch.rand(batch, 1, 1, length + 3) < 0.7
    seen[..., 0] = True
    added = torch.zeros(batch, heads[0], 1, length).masked_fill(~seen[..., :length], -torch.inf)
    mask = {"none": None, "seen": seen, "added": added, "added bf16": added.to(BF16)}[masked]
    bias = torch.zeros(()) if mask is None else added
    repeat = heads[0] // heads[1]
    wide = key.float().repeat_interleave(repeat, 1), value.float().repeat_interleave(repeat, 1)
    weights = (query.float() @ wide[0].transpose(2, 3) * 0.3 + bias).softmax(-1)
    got = attend_native(query, key, value, mask, 0.3)
    torch.testing.assert_close(got.float(), (weights @ wide[1]).transpose(1, 2), rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("padding", [1, 7, 64])
def test_padding_changes_no_bit(padding: int) -> None:
    query, states = torch.randn(1, 8, 1, 64).to(BF16), torch.randn(2, 1, 2, 90, 64).to(BF16)
    padded = torch.cat([torch.randn(2, 1, 2, padding, 64).to(BF16), states], dim=3)
    seen = torch.ones(1, 1, 1, 90 + padding, dtype=torch.bool)
    seen[..., :padding] = False
    alone = attend_native(query, states[0], states[1], None, 0.125)
    assert torch.equal(attend_native(query, padded[0], padded[1], seen, 0.125), alone)


def test_a_sequence_attends_as_it_does_alone() -> None:
    query, states = torch.randn(3, 8, 1, 64).to(BF16), torch.randn(2, 3, 2, 90, 64).to(BF16)
    together = attend_native(query, states[0], states[1], None, 0.125)
    for at in range(3):
        alone = attend_native(query[at : at + 1], states[0, at : at + 1], states[1, at : at + 1], None, 0.125)
        assert torch.equal(alone, together[at : at + 1])


def test_sinks_take_a_share() -> None:
    query, key = torch.randn(1, 4, 1, 16).to(BF16), torch.randn(1, 4, 9, 16).to(BF16)
    sinks = torch.randn(4)
    scores = query.float() @ key.float().transpose(2, 3)
    weights = torch.cat([scores, sinks[None, :, None, None]], -1).softmax(-1)[..., :-1]
    got = attend_native(query, key, key, None, 1.0, sinks)
    torch.testing.assert_close(got.float(), (weights @ key.float()).transpose(1, 2), rtol=0.01, atol=1e-4)


def test_a_damaged_key_shows() -> None:
    key = torch.randn(1, 2, 40, 16).to(BF16)
    key[0, 1, 3] = torch.nan
    got = attend_native(torch.randn(1, 2, 1, 16).to(BF16), key, key, None, 1.0)
    assert got.isnan().flatten(3).any(-1).tolist() == [[[False, True]]]


def test_rows_are_appended_to_each_part() -> None:
    buffer, row = torch.zeros(2, 3, 5, 4, dtype=BF16), torch.randn(2, 3, 1, 4).to(BF16)
    _native.append(6, 5, 2, 8, row.data_ptr(), row.nbytes, buffer.data_ptr(), buffer.nbytes)
    assert torch.equal(buffer[:, :, 2:3], row) and buffer.count_nonzero() == row.count_nonzero()


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(4, 32)
    machine, place = MACHINES[0], x.data_ptr()
    wrong: list[tuple[Any, ...]] = [
        (3, 1e-6, 4, 32, 0, place, 512, 0, 0, place, 512),  # a rounding there is not
        (0, 1e-6, 4, 32, 2, place, 512, 0, 0, place, 512),  # a type
        (0, 1e-6, 4, 32, 0, 0, 512, 0, 0, place, 512),  # nowhere
        (0, 1e-6, 4, 32, 0, place + 2, 512, 0, 0, place, 512),  # misaligned
        (0, 1e-6, 4, 32, 0, place, 508, 0, 0, place, 512),  # too short
        (0, 1e-6, 4, 32, 0, place, 512, place, 124, place, 512),
        (0, 1e-6, 4, 32, 0, place, 512, 0, 0, place, 511),
        (0, 1e-6, 0, 32, 0, place, 512, 0, 0, place, 512),
        (0, 1e-6, 1 << 40, 1 << 40, 0, place, 512, 0, 0, place, 512),
    ]
    for arguments in wrong:
        with pytest.raises(ValueError):
            _native.rms_norm(machine, *arguments)
    with pytest.raises(ValueError):
        _native.append(2, 4, 4, 8, place, 512, place, 512)
    with pytest.raises(ValueError):
        _native.append(2, 4, 3, 8, place, 15, place, 512)
    with pytest.raises(ValueError):
        _native.Rotary(0, 0, 3, True, False, 16)
    with pytest.raises(ValueError):
        _native.Router(8, 0, 1, 2, 3, True, True, 0.0, 1.0, False)
    query = torch.randn(1, 4, 1, 16).to(BF16)
    with pytest.raises(ValueError):
        attend_native(query, query[:, :3], query[:, :3], None, 1.0)
