"""Group-wise integers: `affine` and `decode` say the same, whatever the bits, the groups and the packing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_local.formats.awq import Awq
from moe_local.formats.base import Affine
from moe_local.formats.compressed_tensors import Packed
from moe_local.formats.gptq import Gptq
from moe_local.formats.grouped import unpack
from moe_local.formats.signed import AbsmaxInt8, SignedInt8


def expand(affine: Affine) -> Tensor:
    """(codes - zeros) * scales, group by group."""
    size = affine.codes.shape[1] // affine.scales.shape[1]
    zeros, scales = (part.repeat_interleave(size, dim=1) for part in (affine.zeros, affine.scales))
    return (affine.codes.float() - zeros) * scales


def words(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, generator=generator).int()


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([4, 8]), count=st.integers(1, 5), seed=st.integers(0, 1000))
def test_unpacking_goes_from_the_lowest_bits(bits: int, count: int, seed: int) -> None:
    packed = words(torch.Generator().manual_seed(seed), 2, count)
    wanted = [[(w >> shift) & (2**bits - 1) for w in row for shift in range(0, 32, bits)] for row in packed.tolist()]
    assert unpack(packed, bits).tolist() == wanted


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    groups=st.integers(1, 3),
    group=st.sampled_from([8, 16, 0]),
    zeros=st.sampled_from([None, "packed", "int8"]),
    seed=st.integers(0, 1000),
)
def test_packed_decodes_to_its_integers(bits: int, groups: int, group: int, zeros: str | None, seed: int) -> None:
    out, width = 8, groups * (group or 16)
    groups = groups if group else 1
    generator = torch.Generator().manual_seed(seed)
    arrays = {
        "weight": words(generator, out, width * bits // 32),
        "scale": torch.rand(out, groups, generator=generator).to(torch.bfloat16),
    }
    if zeros == "packed":
        arrays["zero_point"] = words(generator, out * bits // 32, groups)
    if zeros == "int8":
        arrays["zero_point"] = torch.randint(-8, 8, (out, groups), generator=generator).to(torch.int8)
    packed = Packed(bits, group)
    affine = packed.affine(arrays, (out, width))
    assert affine is not None
    assert (affine.codes.shape, affine.scales.shape, affine.zeros.shape) == ((out, width), *2 * [(out, groups)])
    assert torch.equal(packed.decode(arrays, (out, width), torch.float32), expand(affine))


def test_columns_in_another_order_are_no_plain_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.arange(32) // 16
    arrays = {"weight": words(generator, 8, 4), "scale": torch.rand(8, 2), "g_idx": columns.int()}
    packed = Packed(4, 16)
    affine = packed.affine(arrays, (8, 32))
    assert affine is not None
    assert torch.equal(packed.decode(arrays, (8, 32), torch.float32), expand(affine))
    arrays["g_idx"] = columns.flip(0).int()
    assert packed.affine(arrays, (8, 32)) is None


def test_groups_that_are_not_there_are_not_read() -> None:
    """Bytes of a file that nobody checked."""
    arrays = {"weight": torch.zeros(8, 4).int(), "scale": torch.ones(8, 2), "g_idx": torch.tensor([-9, 10**9] * 16)}
    assert Packed(4, 16).decode(arrays, (8, 32), torch.float32).tolist() == [[-8.0] * 32] * 8


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    groups=st.integers(1, 3),
    group=st.sampled_from([8, 16, 0]),
    less=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_gptq_decodes_to_its_integers(bits: int, groups: int, group: int, less: int, seed: int) -> None:
    width = groups * (group or 16)
    groups = groups if group else 1
    generator = torch.Generator().manual_seed(seed)
    arrays = {
        "qweight": words(generator, width * bits // 32, 8),
        "qzeros": words(generator, groups, 8 * bits // 32),
        "scales": torch.rand(groups, 8, generator=generator).half(),
    }
    packed = Gptq(bits, group, less)
    affine = packed.affine(arrays, (8, width))
    assert affine is not None
    most = 2**bits - 1
    assert affine.codes[3, 5] == arrays["qweight"][5 * bits // 32, 3] >> (5 * bits % 32) & most
    assert affine.zeros[1, 0] == ((arrays["qzeros"][0, 0] >> bits & most) + less) % (most + 1)
    assert torch.equal(packed.decode(arrays, (8, width), torch.float32), expand(affine))


def test_a_last_group_cut_short_is_no_plain_group() -> None:
    generator = torch.Generator().manual_seed(0)
    arrays = {"qweight": words(generator, 3, 8), "qzeros": words(generator, 2, 1), "scales": torch.ones(2, 8)}
    assert Gptq(4, 16).affine(arrays, (8, 24)) is None
    assert Gptq(4, 16).decode(arrays, (8, 24), torch.float32).shape == (8, 24)


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 3), group=st.sampled_from([8, 16]), seed=st.integers(0, 1000))
def test_awq_decodes_to_its_integers(groups: int, group: int, seed: int) -> None:
    width = groups * group
    generator = torch.Generator().manual_seed(seed)
    arrays = {
        "qweight": words(generator, width, 2),
        "qzeros": words(generator, groups, 2),
        "scales": torch.rand(groups, 16, generator=generator).half(),
    }
    affine = Awq(group).affine(arrays, (16, width))
    assert affine is not None
    for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        assert affine.codes[8 + output, 3] == arrays["qweight"][3, 1] >> (4 * place) & 0xF
        assert affine.zeros[output, 0] == arrays["qzeros"][0, 0] >> (4 * place) & 0xF
    assert torch.equal(Awq(group).decode(arrays, (16, width), torch.float32), expand(affine))


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 3), zeros=st.booleans(), seed=st.integers(0, 1000))
def test_int8_decodes_to_its_integers(groups: int, zeros: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (8, 16 * groups), generator=generator).to(torch.int8)
    arrays = {"weight": weight, "scale": torch.rand(8, groups, generator=generator)}
    if zeros:
        arrays["zero_point"] = torch.randint(-128, 128, (8, groups), generator=generator).to(torch.int8)
    affine = SignedInt8(16).affine(arrays, (8, 16 * groups))
    assert affine is not None
    assert torch.equal(SignedInt8(16).decode(arrays, (8, 16 * groups), torch.float32), expand(affine))


def test_absmax_is_what_127_means() -> None:
    weight = torch.tensor([[127, -127, 0], [1, 2, -128]], dtype=torch.int8)
    arrays = {"weight": weight, "absmax": torch.tensor([2.0, 127.0])}
    decoded = AbsmaxInt8().decode(arrays, (2, 3), torch.float32)
    torch.testing.assert_close(decoded, torch.tensor([[2.0, -2, 0], [1, 2, -128]]))
    affine = AbsmaxInt8().affine(arrays, (2, 3))
    assert affine is not None
    torch.testing.assert_close(expand(affine), decoded)
