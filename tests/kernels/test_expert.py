"""Experts in the slots of a slab: groups of rows, biases, outputs in another order, slots that change."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import Array, Layout, Matrix, Projection
from moe_local.kernels.expert import ExpertKernel
from moe_local.memory.slab import Slab

HIDDEN, WIDTH = 8, 4
SIZE = (HIDDEN * WIDTH * 2 + WIDTH) * 4
ORDER = (2, 0, 3, 1)


def _layout() -> Layout:
    """Up with a bias and its outputs in another order, then down; all float32."""
    up, down, bias = 0, HIDDEN * WIDTH * 4, HIDDEN * WIDTH * 8
    return Layout(
        {
            "up_proj": Projection(
                (_matrix(WIDTH, HIDDEN, up),), ORDER, Array(torch.float32, (WIDTH,), (1,), bias), None
            ),
            "down_proj": Projection((_matrix(HIDDEN, WIDTH, down),)),
        },
        SIZE,
    )


def _matrix(out: int, width: int, position: int) -> Matrix:
    return Matrix(
        Encoding("fp32"), (out, width), {"weight": Array(torch.float32, (out, width), (width, 1), position)}
    )


def _fill(slab: Slab, slot: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random up, down and bias in a slot."""
    numbers = torch.randn(SIZE // 4, generator=torch.Generator().manual_seed(seed))
    slab[slot].view(torch.float32).copy_(numbers)
    split = HIDDEN * WIDTH
    return numbers[:split].view(WIDTH, HIDDEN), numbers[split : 2 * split].view(HIDDEN, WIDTH), numbers[2 * split :]


def _wanted(weights: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    up, down, bias = weights
    return torch.relu((x @ up.T)[:, list(ORDER)] + bias) @ down.T


def test_each_expert_sees_its_rows() -> None:
    slab = Slab(3, SIZE, torch.device("cpu"))
    kernel, layout = ExpertKernel(slab), _layout()
    first, last = _fill(slab, 0, 0), _fill(slab, 2, 2)
    x = torch.randn(5, HIDDEN)
    groups = [torch.tensor([4, 0]), torch.tensor([1])]
    found = kernel.run(layout, [0, 2], x, groups, torch.relu)
    torch.testing.assert_close(found[0], _wanted(first, x[groups[0]]))
    torch.testing.assert_close(found[1], _wanted(last, x[groups[1]]))
    together = kernel.run(layout, [2, 0], x[:1], None, torch.relu)
    torch.testing.assert_close(torch.cat(list(together)), torch.cat([_wanted(last, x[:1]), _wanted(first, x[:1])]))


def test_a_slot_is_read_when_it_is_multiplied_by() -> None:
    """What is kept of a slot is where things lie, and it serves every equal layout."""
    slab = Slab(1, SIZE, torch.device("cpu"))
    kernel = ExpertKernel(slab)
    x = torch.randn(1, HIDDEN)
    for seed, layout in enumerate((_layout(), _layout(), _layout())):
        weights = _fill(slab, 0, seed)
        torch.testing.assert_close(kernel.run(layout, [0], x, None, torch.relu)[0], _wanted(weights, x))
    assert len(kernel._bound) == 1
    kernel.close()
    assert not kernel._bound
