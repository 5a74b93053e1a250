"""Caches that grow in place, against transformers' own."""

from __future__ import annotations

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from moe_local.model.buffers import columns
from moe_local.model.kv_cache import GrowingLayer, with_room

STEPS = st.lists(st.one_of(st.integers(1, 90), st.sampled_from(["crop", "select", "reset"])), min_size=1, max_size=12)


@given(STEPS, st.integers(0, 9))
def test_it_holds_what_a_dynamic_layer_holds(steps: list[int | str], seed: int) -> None:
    torch.manual_seed(seed)
    ours, theirs = GrowingLayer(), DynamicLayer()
    for step in steps:
        length = ours.get_seq_length()
        for layer in (ours, theirs):
            if step == "crop" and length > 1:
                layer.crop(-(length // 2))
            elif step == "select" and length:
                layer.batch_select_indices(torch.tensor([1, 0, 1]))
            elif step == "reset":
                layer.reset()
        if isinstance(step, int):
            rows = ours.keys.shape[0] if length else 2
            keys, values = torch.randn(rows, 3, step, 4), torch.randn(rows, 3, step, 2)
            for got, wanted in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
                assert got.equal(wanted)
                whole = with_room(got)
                assert whole.is_contiguous() and whole.shape[2] >= columns(got.shape[2])
                assert whole[:, :, : got.shape[2]].equal(wanted) and not whole[:, :, got.shape[2] :].any()
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_two_caches_that_begin_alike_do_not_write_into_each_other() -> None:
    first, second = GrowingLayer(), GrowingLayer()
    begun, _ = first.update(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))
    second.update(begun.expand(1, -1, -1, -1), begun.expand(1, -1, -1, -1))
    first.update(torch.full((1, 1, 1, 2), 2.0), torch.zeros(1, 1, 1, 2))
    second.update(torch.full((1, 1, 1, 2), 3.0), torch.zeros(1, 1, 1, 2))
    assert first.keys[0, 0, 5, 0] == 2 and second.keys[0, 0, 5, 0] == 3


def test_a_layer_and_its_copy_go_on_apart() -> None:
    first = GrowingLayer()
    first.update(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))
    second = copy.copy(first)
    for value, layer in enumerate((first, second, first, second)):
        layer.update(torch.full((1, 1, 1, 2), float(value)), torch.zeros(1, 1, 1, 2))
    assert first.keys[0, 0, 5:, 0].tolist() == [0, 2] and second.keys[0, 0, 5:, 0].tolist() == [1, 3]


def test_a_token_is_written_and_nothing_copied() -> None:
    layer = GrowingLayer()
    keys, _ = layer.update(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))
    more, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert more.data_ptr() == keys.data_ptr()


def test_a_cache_made_in_inference_mode_can_be_gone_on_with_outside() -> None:
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))
    keys, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert keys.equal(torch.ones(1, 1, 6, 2))


@given(st.integers(1, 100_000), st.integers(0, 100))
def test_room_grows_with_the_length_and_is_never_much(length: int, more: int) -> None:
    assert length <= columns(length) <= columns(length + more)
    assert columns(length) <= length + max(63, length / 4)
