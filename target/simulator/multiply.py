"""Multiplying decoded tiles into accumulators: the register-blocked kernel and the minima.

A task is a panel of channels and a block of rows. Within it, `Dot.rows` rows are worked on
together over all spans; the sums of a span are folded into totals (scaled, with groups), and those
into the accumulators at the end, where the edges of the tile are respected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.simulator.spec import HIGH_PLANE, Action, ValueSpec
from sparqle_tvm.tirscript import (
    Array,
    cast,
    ceil_div,
    either,
    fixed,
    loop,
    scratch,
    spread,
    vector,
)

_BLOCK_ROWS = 64
_PARALLEL_PRODUCTS = 1 << 18


@dataclass(frozen=True)
class _Pass:
    """One product of a decoded tile: where it begins, its span sums, and what it is shifted by.

    Attributes
    ----------
    act, sums, shift : PrimExpr
        int64; the product counts 2^shift times.
    first : PrimExpr
        Not 0: the accumulators begin with it.
    index : PrimExpr
        The weight slice.
    """

    act: Any
    sums: Any
    shift: Any
    first: Any
    index: Any


def multiply(spec: ValueSpec, a: Action) -> None:
    """Emit ``acc (+)= sum over weight slices of 2^shift * 2^(k * slice) * A @ W.T``.

    A plane of low digits that comes along and could not be joined has a pass of its own.
    """
    blocks = ceil_div(a["m"], _BLOCK_ROWS)
    panels = spec.panels(a["n"])
    high = cast("int64", a["plane"] >= HIGH_PLANE)
    passes, joined = T.int64(1), T.int64(0)
    if spec.joins_planes:
        joined = a.memory.joined[a["act_entry"]]
        passes = passes + cast("int64", T.And(a["low_key"] >= 0, joined == 0))
    with loop(passes) as number, loop(spec.slices) as index:
        low = number + 1 < passes
        one = _Pass(
            act=fixed(T.Select(low, a.entry("act", "low"), a.entry("act"))),
            sums=fixed(T.Select(low, a.entry("sums", "low"), a.entry("sums"))),
            shift=fixed(T.Select(T.Or(low, joined != 0), T.int64(0), high * spec.k)),
            first=fixed(T.bitwise_and(a["zero"], cast("int64", number + index == 0))),
            index=index,
        )

        def task(i: Any) -> None:
            panel, block = T.truncdiv(i, blocks), T.truncmod(i, blocks)
            rows = T.min(T.int64(_BLOCK_ROWS), a["m"] - block * _BLOCK_ROWS)
            with loop(ceil_div(rows, spec.dot.rows)) as tile:
                _tile(spec, a, one, panel, block * _BLOCK_ROWS + tile * spec.dot.rows)

        spread(panels * blocks, a["m"] * a["n"] * a["k"] >= _PARALLEL_PRODUCTS, task)


def add_minima(spec: ValueSpec, a: Action) -> None:
    """Emit ``acc (+)= group sums @ minima.T``; takes scratch of m * groups float64."""
    group_sums, act, address = a.memory.scratch, a.memory.act, a["act"]
    groups, panels = spec.groups(a["k"]), spec.panels(a["n"])
    with loop(a["m"] * groups) as i:
        group_sums[i] = cast("float64", _stored_sum(spec, act, address + i * spec.sum_bytes))

    def task(panel: Any) -> None:
        minima = a.entry("grp") + (panels + panel) * groups * spec.dot.channels
        with loop(ceil_div(a["m"], spec.dot.rows)) as tile:
            row = tile * spec.dot.rows
            totals = _totals(spec)
            with loop(groups) as group:
                for i in range(spec.dot.rows):
                    # Rows behind the last repeat it; they are not stored.
                    mine = T.min(row + i, a["m"] - 1)
                    value = T.broadcast(group_sums[mine * groups + group], spec.dot.lanes)
                    for j in range(spec.dot.VECTORS):
                        at = minima + group * spec.dot.channels + j * spec.dot.lanes
                        index = _total(spec, i, j)
                        column = a.memory.parameters[vector(at, spec.dot.lanes)]
                        totals[index] = totals[index] + value * column
            _store(spec, a, totals, row, panel, a["zero"], T.int64(0))

    spread(panels, a["m"] * a["n"] * groups >= _PARALLEL_PRODUCTS // 16, task)


def _stored_sum(spec: ValueSpec, act: Array, at: Any) -> Any:
    """Group sum of 2 or 4 bytes, as int32."""
    value: Any = T.int32(0)
    for i in range(spec.sum_bytes):
        value = T.bitwise_or(value, T.shift_left(cast("int32", act[at + i]), T.int32(8 * i)))
    missing = 32 - 8 * spec.sum_bytes
    return T.shift_right(T.shift_left(value, T.int32(missing)), T.int32(missing))


def _totals(spec: ValueSpec) -> Array:
    """Cleared accumulators of a register tile."""
    dot = spec.dot
    totals = scratch(spec.accumulator, dot.rows * dot.channels)
    for i in range(dot.rows * dot.VECTORS):
        totals[vector(i * dot.lanes, dot.lanes)] = _zeros(spec)
    return totals


def _zeros(spec: ValueSpec) -> Any:
    zero = T.float64(0) if spec.grouped else T.int32(0)
    return T.broadcast(zero, spec.dot.lanes)


def _total(spec: ValueSpec, row: int, j: int) -> Any:
    return vector(row * spec.dot.channels + j * spec.dot.lanes, spec.dot.lanes)


def _tile(spec: ValueSpec, a: Action, one: _Pass, panel: Any, row: Any) -> None:
    """One register tile: `Dot.rows` rows from `row` on, a panel, one weight slice."""
    totals = _totals(spec)
    with loop(spec.spans(a["k"])) as span:
        sums = _span_sums(spec, a, one, panel, row, span)
        for j in range(spec.dot.VECTORS):
            scale = _scale(spec, a, panel, span, j)
            for i in range(spec.dot.rows):
                at = _total(spec, i, j)
                value = sums[i][j]
                if spec.grouped:
                    value = cast(f"float64x{spec.dot.lanes}", value) * scale
                totals[at] = totals[at] + value
    _store(spec, a, totals, row, panel, one.first, one.shift + one.index * spec.k)


def _scale(spec: ValueSpec, a: Action, panel: Any, span: Any, j: int) -> Any:
    """Group scales of the channels of a vector."""
    if not spec.grouped:
        return None
    group = span if spec.parts == 1 else T.truncdiv(span, T.int64(spec.parts))
    where = (panel * spec.groups(a["k"]) + group) * spec.dot.channels + j * spec.dot.lanes
    return a.memory.parameters[vector(a.entry("grp") + where, spec.dot.lanes)]


def _span_sums(
    spec: ValueSpec, a: Action, one: _Pass, panel: Any, row: Any, span: Any
) -> list[list[Any]]:
    """int32 sums of products over a span: [row][vector]."""
    dot = spec.dot
    spans = spec.spans(a["k"])
    block = (one.index * spec.panels(a["n"]) + panel) * spans + span
    weights = a.entry("wgt") + block * (spec.pitch * dot.channels)
    activations = one.act + (row * spans + span) * spec.pitch
    sums = [dot.sums() for _ in range(dot.rows)]
    with loop(ceil_div(spec.span_columns(span, a["k"]), dot.depth)) as step:
        length = dot.lanes * dot.depth
        begin = weights + step * (dot.channels * dot.depth)
        columns = [scratch(dot.weight, length) for _ in range(dot.VECTORS)]
        for j, column in enumerate(columns):
            column[vector(0, length)] = a.memory.weights[vector(begin + j * length, length)]
        for i, vectors in enumerate(sums):
            at = activations + i * (spans * spec.pitch) + step * dot.depth
            value = a.memory.activations[vector(at, dot.depth) if dot.depth > 1 else at]
            digits = dot.broadcast(value)
            for column, total in zip(columns, vectors, strict=True):
                partial = total[dot.sum_index()]
                total[dot.sum_index()] = dot.step(partial, digits, column[vector(0, length)])
    return [
        [_unbiased(spec, a, one, row + i, span, total) for total in vectors]
        for i, vectors in enumerate(sums)
    ]


def _unbiased(spec: ValueSpec, a: Action, one: _Pass, row: Any, span: Any, total: Array) -> Any:
    """Widened sums, with the bias of signed weights taken off."""
    dot = spec.dot
    value = dot.widen(total[dot.sum_index()])
    if not (dot.biased and spec.weight_signed):
        return value
    bias = T.shift_left(cast("int32", one.index == spec.slices - 1), T.int32(spec.slice_bits - 1))
    # The last slice of s is signed: its stored digits are too large by 2^(bits - 1).
    sums = a.memory.sums[one.sums + row * spec.spans(a["k"]) + span]
    return value - T.broadcast(sums * bias, dot.lanes)


def _store(
    spec: ValueSpec, a: Action, totals: Array, row: Any, panel: Any, first: Any, shift: Any
) -> None:
    """Fold totals times 2^shift into the accumulators that exist."""
    dot, acc = spec.dot, a.memory.acc
    channel = panel * dot.channels
    with loop(T.min(T.int64(dot.rows), a["m"] - row)) as i:
        cell = a["cell"] + (row + i) * a["n"] + channel

        def whole() -> None:
            for j in range(dot.VECTORS):
                at = vector(cell + j * dot.lanes, dot.lanes)
                value = totals[vector(i * dot.channels + j * dot.lanes, dot.lanes)]
                old = T.if_then_else(first != 0, _zeros(spec), acc[at])
                acc[at] = old + _shifted(spec, value, shift, dot.lanes)

        def edge() -> None:
            with loop(a["n"] - channel) as j:
                zero = T.float64(0) if spec.grouped else T.int32(0)
                old = T.if_then_else(first != 0, zero, acc[cell + j])
                acc[cell + j] = old + _shifted(spec, totals[i * dot.channels + j], shift, 1)

        either(channel + dot.channels <= a["n"], whole, edge)


def _shifted(spec: ValueSpec, value: Any, shift: Any, lanes: int) -> Any:
    """`value` times 2^shift."""
    factor = T.shift_left(T.int64(1), shift)
    factor = cast(spec.accumulator, factor)
    return value * (factor if lanes == 1 else T.broadcast(factor, lanes))
