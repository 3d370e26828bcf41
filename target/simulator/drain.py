"""DRAIN and ST.OUT: accumulators become outputs in their cells, then go to DRAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.simulator.script import (
    Array,
    Scalar,
    cast,
    ceil_div,
    copy_bytes,
    either,
    loop,
    scratch,
    spread,
    when,
)
from sparqle_tvm.target.simulator.spec import ValueSpec

_PARALLEL_ELEMENTS = 1 << 16
_STORE_COLUMNS = 128
# A float32 below 2^22 in magnitude plus 1.5 * 2^23 has its integer, rounded half to even, in the
# low bits.
_ROUND = 12582912.0
_ROUND_BITS = 0x4B400000


def drain(
    spec: ValueSpec,
    *,
    acc: Array,
    cell: Any,
    m: Any,
    n: Any,
    scales: Any,
    channels: Callable[[Any], Any],
    has_offset: Any,
    as_float: Any,
    quantize: Callable[[Any], Any] | None,
    scratch: Array,
) -> None:
    """Emit the conversion of (m, n) accumulators from `cell` on, see `isa.Drain`.

    Parameters
    ----------
    spec : ValueSpec
        Formats.
    acc : Array
        Accumulators; the output of a cell is its first 4 bytes.
    cell, m, n : expression
        Which.
    scales : expression
        Address of the m float32 activation scales.
    channels : callable
        Address of the channel parameters from a byte on.
    has_offset, as_float : expression
        Whether channels have an offset, and whether outputs are float32.
    quantize : callable or None
        The int32 that becomes of a float32; None: it stays.
    scratch : Array
        float64, at least 2n + m: for what does not lie aligned in the buffers.
    """
    room = scratch.buffer.shape[0]
    offsets = scratch if spec.grouped else scratch.view("int32", room * 2)
    floats = scratch.view("float32", room * 2)
    # In float32 elements: offsets, then weight scales, then activation scales.
    weight_scales, row_scales = 2 * n, 3 * n
    scale_bytes = T.int64(0) if spec.grouped else 4 * n * as_float
    with when(has_offset != 0):
        copy_bytes(scratch.at(0), channels(scale_bytes), n * (8 if spec.grouped else 4))
    with when(has_offset == 0), loop(n) as j:
        offsets[j] = 0
    with when(as_float != 0):
        copy_bytes(floats.at(row_scales), scales, 4 * m)
        if not spec.grouped:
            copy_bytes(floats.at(weight_scales), channels(T.int64(0)), 4 * n)
    outputs = acc.view("int32", acc.buffer.shape[0] * (2 if spec.grouped else 1))

    def drain_row(row: Any) -> None:
        first = cell + row * n
        scale = Scalar("float32", floats[row_scales + row])

        def to_float() -> None:
            with loop(n) as j:
                value = cast("float32", acc[first + j] + offsets[j]) * scale.value
                if not spec.grouped:
                    value = value * floats[weight_scales + j]
                bits = quantize(value) if quantize else T.reinterpret("int32", value)
                outputs[(2 if spec.grouped else 1) * (first + j)] = bits

        def to_int() -> None:
            with loop(n) as j:
                outputs[first + j] = outputs[first + j] + offsets[j]

        if spec.grouped:
            to_float()
        else:
            either(as_float != 0, to_float, to_int)

    spread(m, m * n >= _PARALLEL_ELEMENTS, drain_row)


def quantizer(scale: Any, zero: Any, low: Any, high: Any) -> Callable[[Any], Any]:
    """The quantization of a float32 with a static scale, see `isa.Drain`.

    Parameters
    ----------
    scale : expression
        float32.
    zero, low, high : expression
        Zero point and limits, int32.
    """
    divisor = Scalar("float32", scale)
    bounds = [Scalar("int32", limit - zero) for limit in (low, high)]
    floor, ceiling = (Scalar("float32", cast("float32", bound.value)) for bound in bounds)
    shift = Scalar("int32", zero)

    def quantize(value: Any) -> Any:
        # Limits are integers: it is the same to clip before rounding, and there are fewer bits.
        clipped = T.max(T.min(value / divisor.value, ceiling.value), floor.value)
        rounded = T.reinterpret("int32", clipped + T.float32(_ROUND)) - _ROUND_BITS
        inside = T.max(T.min(rounded, bounds[1].value), bounds[0].value)
        return inside + shift.value

    return quantize


def store_outputs(
    spec: ValueSpec,
    *,
    acc: Array,
    cell: Any,
    rows: Any,
    cols: Any,
    target: Any,
    pitch: Any,
    order: Callable[[Any], Any],
) -> None:
    """Emit the copy of (rows, cols) outputs to `target`, rows `pitch` bytes apart.

    Parameters
    ----------
    spec : ValueSpec
        Formats: with groups, a cell has 8 bytes and its output the first 4.
    acc : Array
        Cells.
    cell, rows, cols : expression
        Which.
    target, pitch : expression
        Address in memory, bytes.
    order : callable
        Which of the rows from `target` on a row of outputs goes to.
    """
    outputs = acc.view("int32", acc.buffer.shape[0] * (2 if spec.grouped else 1))
    with loop(rows) as row:
        begin, first = target + order(row) * pitch, cell + row * cols
        if spec.grouped:
            _gather_row(outputs, first, cols, begin)
        else:
            copy_bytes(T.reinterpret("handle", begin), outputs.at(first), 4 * cols)


def _gather_row(outputs: Array, first: Any, cols: Any, target: Any) -> None:
    """Copy every second of 4-byte values, a block at a time."""
    gathered = scratch("int32", _STORE_COLUMNS)
    with loop(ceil_div(cols, _STORE_COLUMNS)) as block:
        begin = block * _STORE_COLUMNS
        count = T.min(T.int64(_STORE_COLUMNS), cols - begin)
        with loop(count) as j:
            gathered[j] = outputs[2 * (first + begin + j)]
        copy_bytes(T.reinterpret("handle", target + 4 * begin), gathered.at(0), 4 * count)
