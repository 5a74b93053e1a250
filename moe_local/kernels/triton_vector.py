"""Triton kernels for few rows: a program multiplies one by some rows of a matrix, in float32, without tensor cores.

Importing this needs triton. Sizes are run-time numbers, formats are compiled in: a model needs a handful of variants.
"""

from __future__ import annotations

import triton.language as tl

from moe_local.kernels.triton_readers import jit, number, offset, scale, step_words


@jit
def dot(
    x: tl.tensor, data: tl.tensor, scales: tl.tensor, whole: tl.tensor, values: tl.tensor, rows: tl.tensor,
    units: tl.tensor, pitch: tl.tensor, across: tl.tensor, spec: tl.constexpr, tile: tl.constexpr,
    even: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A row x [in] by rows [r] of a matrix -> float32 [r]; `tile` is (r, steps), `even` that they fill its row."""
    kind: tl.constexpr = spec[0]
    pack: tl.constexpr = spec[5]
    total = units * spec[2]
    sums = tl.zeros([tile[0], tile[1]], tl.float32)
    for start in range(0, total, tile[1]):
        steps = start + tl.arange(0, tile[1])
        there = (steps < total)[None, :] | even
        words = step_words(data, rows, steps, there, pitch, across, spec)
        part = tl.zeros([tile[0], tile[1]], tl.float32)
        inputs = tl.zeros([1, tile[1]], tl.float32)
        if pack == 1:  # x is read in words' layout, or all of them would be brought into x's
            sums += words * tl.load(x + (steps[None, :] + 0 * rows[:, None]), mask=there, other=0).to(tl.float32)
        else:
            for place in tl.static_range(pack):
                column = tl.load(x + (pack * steps[None, :] + place), mask=there, other=0).to(tl.float32)
                part += number(words, place, values, kind) * column
                inputs += column
        if kind == "int4":
            by = scale(data, scales, whole, rows, steps, there, pitch, across, spec)
            sums += part * by + offset(data, rows, steps, there, pitch, spec[1]) * inputs
        elif pack > 1:
            sums += part * scale(data, scales, whole, rows, steps, there, pitch, across, spec)
    return tl.sum(sums, axis=1)


@jit
def activate(
    gate: tl.tensor, up: tl.tensor, alpha: tl.tensor, limit: tl.tensor, activation: tl.constexpr, gated: tl.constexpr
) -> tl.tensor:
    """`kernels.gating`'s activations, of a gate and what it lets through, or of one number."""
    if activation == "silu":
        found = gate * tl.sigmoid(gate)
    elif activation == "gelu":
        found = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif activation == "gelu_tanh":
        found = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    elif activation == "relu":
        found = tl.where(gate < 0, 0.0, gate)
    elif activation == "relu_squared":
        found = tl.where(gate < 0, 0.0, gate * gate)
    elif activation == "clamped_swiglu":
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up)) + 1.0
        found = gate * tl.sigmoid(alpha * gate)
    else:
        found = gate
    if gated:
        found = found * up
    return found


@jit
def biased(found: tl.tensor, record: tl.tensor, at: tl.tensor, rows: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """With the bias of rows added, that lies at a byte of the record; `kind` is its type, or none."""
    if kind == "bf16":
        half = tl.load((record + at).to(tl.pointer_type(tl.int16)) + rows).to(tl.int32)
        found += (half << 16).to(tl.float32, bitcast=True)
    elif kind == "fp16":
        found += tl.load((record + at).to(tl.pointer_type(tl.float16)) + rows).to(tl.float32)
    elif kind == "fp32":
        found += tl.load((record + at).to(tl.pointer_type(tl.float32)) + rows)
    return found


@jit
def record_of(
    choice: tl.tensor, index: tl.tensor, slots: tl.tensor, slab: tl.tensor, below: tl.tensor, slot_size: tl.tensor,
    experts: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Where the record of a choice's expert begins, and whether it is there: see `up_vector`."""
    expert = tl.load(index + choice)
    known = (expert >= 0) & (expert < experts)
    slot = tl.load(slots + expert, mask=known, other=-1)
    first, place, there = slab, slot, slot >= 0
    if below is not None:
        first = tl.where(slot < -1, below, slab)
        place, there = tl.where(slot < -1, -2 - slot, slot), slot != -1
    return first + place.to(tl.int64) * slot_size, there


@jit
def up_vector(
    x: tl.tensor, index: tl.tensor, slots: tl.tensor, slab: tl.tensor, below: tl.tensor, out: tl.tensor,
    values: tl.tensor, slot_size: tl.tensor, experts: tl.tensor, choices: tl.tensor, width: tl.tensor,
    inner: tl.tensor, data: tl.tensor, scales: tl.tensor, whole: tl.tensor, up_data: tl.tensor, up_scales: tl.tensor,
    up_whole: tl.tensor, up_row: tl.tensor, bias: tl.tensor, units: tl.tensor, pitch: tl.tensor, across: tl.tensor,
    alpha: tl.tensor, limit: tl.tensor, spec: tl.constexpr, tile: tl.constexpr, even: tl.constexpr,
    fits: tl.constexpr, gating: tl.constexpr, bias_kind: tl.constexpr,
) -> None:  # fmt: skip
    """x [T, width], index [T, choices] -> out [T * choices, inner]: gate, up and activation of each choice's expert.

    `slots` [experts] int32 says in which slot of the slab an expert is, -2 and less in slot 0 and up of the one
    `below`, in page-locked RAM, if that is given; -1, or an index of no expert: the choice is left out. `data` to
    `up_whole` are bytes of a record; `up_row` is where up's rows begin. A program does one choice and as many rows as
    the tile has, of gate and of up, or of both where they are interleaved.
    """
    choice = tl.program_id(0)
    record, there = record_of(choice, index, slots, slab, below, slot_size, experts)
    if there:
        x += (choice // choices).to(tl.int64) * width
        first = tl.program_id(1) * tile[0]
        rows = first + tl.arange(0, tile[0])
        if gating[2]:
            read = rows if fits else tl.minimum(rows, 2 * inner - 1)
            both = dot(
                x, record + data, record + scales, record + whole, values, read, units, pitch, across,
                spec, tile, even,
            )  # fmt: skip
            both = biased(both, record, bias, read, bias_kind)
            gate, up = tl.split(tl.reshape(both, [tile[0] // 2, 2]))
            places = first // 2 + tl.arange(0, tile[0] // 2)
        else:
            read = rows if fits else tl.minimum(rows, inner - 1)
            gate = dot(
                x, record + data, record + scales, record + whole, values, read, units, pitch, across,
                spec, tile, even,
            )  # fmt: skip
            gate = biased(gate, record, bias, read, bias_kind)
            up = gate
            if gating[1]:
                up = dot(
                    x, record + up_data, record + up_scales, record + up_whole, values, read + up_row, units, pitch,
                    across, spec, tile, even,
                )  # fmt: skip
                up = biased(up, record, bias, read + inner, bias_kind)
            places = rows
        found = activate(gate, up, alpha, limit, gating[0], gating[1])
        tl.store(out + choice.to(tl.int64) * inner + places, found, mask=places < inner)


@jit
def down_vector(
    x: tl.tensor, index: tl.tensor, slots: tl.tensor, slab: tl.tensor, below: tl.tensor, out: tl.tensor,
    values: tl.tensor, slot_size: tl.tensor, experts: tl.tensor, width: tl.tensor, outputs: tl.tensor,
    data: tl.tensor, scales: tl.tensor, whole: tl.tensor, bias: tl.tensor, units: tl.tensor, pitch: tl.tensor,
    across: tl.tensor, spec: tl.constexpr, tile: tl.constexpr, even: tl.constexpr, fits: tl.constexpr,
    bias_kind: tl.constexpr,
) -> None:  # fmt: skip
    """x [choices, width] -> out [choices, outputs], each by its expert's down; see `up_vector`."""
    choice = tl.program_id(0)
    record, there = record_of(choice, index, slots, slab, below, slot_size, experts)
    if there:
        x += choice.to(tl.int64) * width
        rows = tl.program_id(1) * tile[0] + tl.arange(0, tile[0])
        read = rows if fits else tl.minimum(rows, outputs - 1)
        found = dot(
            x, record + data, record + scales, record + whole, values, read, units, pitch, across, spec, tile, even
        )
        found = biased(found, record, bias, read, bias_kind)
        tl.store(out + choice.to(tl.int64) * outputs + rows, found, mask=rows < outputs)


@jit
def dense_vector(
    x: tl.tensor, data: tl.tensor, scales: tl.tensor, whole: tl.tensor, out: tl.tensor, values: tl.tensor,
    width: tl.tensor, outputs: tl.tensor, units: tl.tensor, pitch: tl.tensor, across: tl.tensor, spec: tl.constexpr,
    tile: tl.constexpr, even: tl.constexpr, fits: tl.constexpr,
) -> None:  # fmt: skip
    """x [rows, width] -> out [rows, outputs], by one matrix."""
    row = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * tile[0] + tl.arange(0, tile[0])
    read = rows if fits else tl.minimum(rows, outputs - 1)
    found = dot(x + row * width, data, scales, whole, values, read, units, pitch, across, spec, tile, even)
    tl.store(out + row * outputs + rows, found.to(out.dtype.element_ty), mask=rows < outputs)


@jit
def weighted_sum(
    parts: tl.tensor, index: tl.tensor, slots: tl.tensor, weights: tl.tensor, out: tl.tensor, experts: tl.tensor,
    choices: tl.tensor, width: tl.tensor, of_slots: tl.constexpr, tile: tl.constexpr,
) -> None:  # fmt: skip
    """parts [T * choices, width], weights [T, choices] -> out [T, width], in the order of the choices.

    Left out are choices of no expert and, with `of_slots`, of those that are not in `slots`.
    """
    token = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * tile + tl.arange(0, tile)
    total = tl.zeros([tile], tl.float32)
    for turn in range(choices):
        choice = token * choices + turn
        expert = tl.load(index + choice)
        there = (expert >= 0) & (expert < experts)
        if of_slots:
            there = there & (tl.load(slots + expert, mask=there, other=-1) != -1)
        end = tl.where(there, width, 0)
        part = tl.load(parts + choice * width + places, mask=places < end, other=0).to(tl.float32)
        total += tl.where(places < end, part * tl.load(weights + choice).to(tl.float32), 0.0)
    tl.store(out + token * width + places, total.to(out.dtype.element_ty), mask=places < width)
