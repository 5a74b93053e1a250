"""Native operations that are written down and done again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_local.kernels import native

if native.missing() is not None:
    pytest.skip("the native kernels are not built", allow_module_level=True)

from moe_local.kernels.native._native import Program, add, append, attend_one, record
from moe_local.model.attention_native import attend_native

HEADS, WIDTH = 2, 32


def written(program: Program, one: Tensor, other: Tensor, out: Tensor) -> None:
    record(program)
    add(one.numel(), native.TYPES[one.dtype], *where(one), *where(other), *where(out))
    record(None)


def where(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 15, 2048])
def test_a_sum_with_other_numbers(dtype: torch.dtype, count: int) -> None:
    one, other, out = (torch.randn(count).to(dtype) for _ in range(3))
    program = Program()
    written(program, one, other, out)
    assert torch.equal(out, one + other) and len(program) == 1
    one.copy_(torch.randn(count))
    program.run(0, 0, 0, 0)
    assert torch.equal(out, one + other)
    add(count, native.TYPES[dtype], *where(one), *where(one), *where(out))
    assert len(program) == 1


def token(buffer: Tensor, length: int, new: Tensor) -> None:
    append(HEADS, buffer.shape[2], length, 2 * WIDTH, *where(new), *where(buffer))


def buffers(room: int) -> tuple[Tensor, Tensor]:
    keys, values = (torch.randn(1, HEADS, room, WIDTH).bfloat16() for _ in range(2))
    return keys, values


def test_a_token_in_a_larger_cache() -> None:
    query, key, value = (torch.randn(1, HEADS, 1, WIDTH).bfloat16() for _ in range(3))
    keys, values = buffers(8)
    program = Program()
    record(program)
    token(keys, 3, key)
    token(values, 3, value)
    out = attend_native(query, keys[:, :, :4], values[:, :, :4], None, 0.25)
    record(None)
    assert program.bind(keys.data_ptr(), values.data_ptr(), 8) and not program.unfit
    more_keys, more_values = buffers(16)
    for states in (query, key, value):
        states.copy_(torch.randn(1, HEADS, 1, WIDTH))
    program.run(7, more_keys.data_ptr(), more_values.data_ptr(), 16)
    assert torch.equal(more_keys[:, :, 10:11], key) and torch.equal(more_values[:, :, 10:11], value)
    assert torch.equal(out, attend_native(query, more_keys[:, :, :11], more_values[:, :, :11], None, 0.25))


def test_tokens_without_room() -> None:
    keys, values = buffers(8)
    program = Program()
    record(program)
    token(keys, 3, keys[:, :, :1].contiguous())
    record(None)
    assert program.bind(keys.data_ptr(), values.data_ptr(), 8)
    assert not program.bind(values.data_ptr(), values.data_ptr(), 8)
    assert not program.bind(keys.data_ptr(), values.data_ptr(), 16)
    assert program.bind(keys.data_ptr(), values.data_ptr(), 8)
    for later, room in ((5, 8), (0, 3), (-4, 8), (0, -8)):
        with pytest.raises(ValueError, match=r"room"):
            program.run(later, keys.data_ptr(), values.data_ptr(), room)
    program.run(4, keys.data_ptr(), values.data_ptr(), 8)
    program.run(-3, keys.data_ptr(), values.data_ptr(), 8)


def test_fewer_tokens_than_when_it_was_written_down() -> None:
    keys, values = buffers(16)
    query, key, value = (torch.randn(1, HEADS, 1, WIDTH).bfloat16() for _ in range(3))
    program = Program()
    record(program)
    token(keys, 9, key)
    token(values, 9, value)
    out = attend_native(query, keys[:, :, :10], values[:, :, :10], None, 0.25)
    record(None)
    assert program.bind(keys.data_ptr(), values.data_ptr(), 16)
    less_keys, less_values = buffers(8)
    program.run(-7, less_keys.data_ptr(), less_values.data_ptr(), 8)
    assert torch.equal(less_keys[:, :, 2:3], key) and torch.equal(less_values[:, :, 2:3], value)
    assert torch.equal(out, attend_native(query, less_keys[:, :, :3], less_values[:, :, :3], None, 0.25))


def test_attention_that_cannot_be_done_again() -> None:
    keys, values = buffers(8)
    mask = torch.zeros(1, 1, 1, 8).bfloat16()
    for states, hidden in ((keys, mask), (keys.transpose(1, 2).contiguous().transpose(1, 2), None)):
        program = Program()
        record(program)
        attend_native(keys[:, :, :1], states, values, hidden, 1.0)
        record(None)
        assert "a mask" in program.unfit
        with pytest.raises(ValueError, match="cannot be done again"):
            program.run(0, 0, 0, 0)


def test_bad_addresses_are_not_written_down() -> None:
    program = Program()
    record(program)
    x = torch.zeros(8)
    with pytest.raises(ValueError, match="too few"):
        add(16, native.TYPES[x.dtype], *where(x), *where(x), *where(x))
    with pytest.raises(ValueError, match="null"):
        append(1, 1, 0, 4, 0, 4, *where(x))
    with pytest.raises(ValueError, match="heads"):
        attend_one(native.machine(), 1, 3, 2, 1, 1, 1, 1.0, *([0] * 21))
    record(None)
    assert len(program) == 0


def test_a_program_that_goes_while_it_is_written() -> None:
    record(Program())
    x = torch.ones(4)
    out = torch.empty(4)
    add(4, native.TYPES[x.dtype], *where(x), *where(x), *where(out))
    assert torch.equal(out, x + x)
