"""DRAIN, ST.OUT and ST.ENC: accumulators become outputs in their cells, then go to DRAM."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.simulator.spec import Action, ValueSpec
from sparqle_tvm.tirscript import (
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

_PARALLEL_ELEMENTS = 1 << 16
_STORE_COLUMNS = 128
# A float32 below 2^22 in magnitude plus 1.5 * 2^23 has its integer, rounded half to even, in the
# low bits.
_ROUND = 12582912.0
_ROUND_BITS = 0x4B400000


def drain(spec: ValueSpec, a: Action) -> None:
    """Emit the conversion of (m, n) accumulators, see `isa.compute.Drain`.

    Takes 4n + m float64 of scratch, for what does not lie aligned in the buffers.
    """
    acc, scratch, cell, m, n = a.memory.acc, a.memory.scratch, a["cell"], a["m"], a["n"]
    has_offset, as_float = a["has_offset"], a["as_float"]
    quantize = _Grid(a, "") if spec.encoded else None
    mid = _Grid(a, "mid_") if spec.has_mid else None

    def channels(offset: Any) -> Any:
        return a.memory.wgt.at(a["channel"] + offset)

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
        copy_bytes(floats.at(row_scales), a.memory.act.at(a["row"]), 4 * m)
        if not spec.grouped:
            copy_bytes(floats.at(weight_scales), channels(T.int64(0)), 4 * n)
    weight_sums = 2 * n + m if spec.grouped else 2 * (2 * n + m)
    # Behind the offsets.
    begin = scale_bytes + (8 if spec.grouped else 4) * n * has_offset
    if spec.adds_shift:
        copy_bytes(offsets.at(weight_sums), channels(begin), n * (8 if spec.grouped else 4))
        begin = begin + (8 if spec.grouped else 4) * n
    biases = 2 * (3 * n + m)
    if spec.has_bias:
        copy_bytes(floats.at(biases), channels(begin), 4 * n)
    outputs, stride = a.memory.cells, a.memory.cell_stride

    def drain_row(row: Any) -> None:
        first = cell + row * n
        scale = Scalar("float32", floats[row_scales + row])
        shift = None
        if spec.adds_shift and spec.zeros:
            zero = Scalar("int32", spec.zeros.read(a.memory.act, a["zeros"], row))
            shift = Scalar("int32", spec.zeros.centre(zero.value) - zero.value)

        def added(j: Any) -> Any:
            if shift is None:
                return offsets[j]
            factor = cast(spec.accumulator, shift.value)
            return offsets[j] + factor * offsets[weight_sums + j]

        def to_float() -> None:
            with loop(n) as j:
                value = cast("float32", acc[first + j] + added(j)) * scale.value
                if not spec.grouped:
                    value = value * floats[weight_scales + j]
                value = mid.snap(value) if mid else value
                bits = T.reinterpret("int32", value)
                if quantize and not spec.has_bias:
                    bits = quantize(value)
                outputs[stride * (first + j)] = bits
            if quantize and spec.has_bias:
                # In a loop of its own: LLVM would contract the product and the sum to one operation
                # that rounds once.
                with loop(n) as j:
                    at = stride * (first + j)
                    value = T.reinterpret("float32", outputs[at])
                    outputs[at] = quantize(value + floats[biases + j])

        def to_int() -> None:
            with loop(n) as j:
                outputs[first + j] = outputs[first + j] + added(j)

        if spec.grouped:
            to_float()
        else:
            either(as_float != 0, to_float, to_int)

    spread(m, m * n >= _PARALLEL_ELEMENTS, drain_row)


class _Grid:
    """A `numerics.requantize.Grid` of a float32, from operands of the action with a prefix."""

    def __init__(self, a: Action, prefix: str) -> None:
        names = (f"{prefix}{name}" for name in ("scale", "zero", "low", "high"))
        scale, zero, low, high = (cast("int32", a[name]) for name in names)
        self.step = Scalar("float32", T.reinterpret("float32", scale))
        self.bounds = [Scalar("int32", limit - zero) for limit in (low, high)]
        self.edges = [Scalar("float32", cast("float32", bound.value)) for bound in self.bounds]
        self.zero = Scalar("int32", zero)

    def steps(self, value: Any) -> Any:
        """How many steps from the zero point a value is, within the limits: int32."""
        # Limits are integers: it is the same to clip before rounding, and there are fewer bits.
        (floor, ceiling), (low, high) = self.edges, self.bounds
        clipped = T.max(T.min(value / self.step.value, ceiling.value), floor.value)
        rounded = T.reinterpret("int32", clipped + T.float32(_ROUND)) - _ROUND_BITS
        return T.max(T.min(rounded, high.value), low.value)

    def __call__(self, value: Any) -> Any:
        """Its integer."""
        return self.steps(value) + self.zero.value

    def snap(self, value: Any) -> Any:
        """The float that its integer stands for."""
        return cast("float32", self.steps(value)) * self.step.value


def store_outputs(spec: ValueSpec, a: Action) -> None:
    """Emit the copy of (rows, cols) outputs to their rows of OUT."""
    outputs = a.memory.cells
    with loop(a["rows"]) as row:
        begin = a["dram"] + _row_number(a, row) * a["pitch"]
        first = a["cell"] + row * a["cols"]
        if spec.grouped:
            _gather_row(outputs, first, a["cols"], begin)
        else:
            copy_bytes(T.reinterpret("handle", begin), outputs.at(first), 4 * a["cols"])


def _row_number(a: Action, row: Any) -> Any:
    """Row of OUT that row `row` of a store belongs to, counted from where the store begins."""
    act, order_bytes = a.memory.act, a["order_bytes"]
    number = Scalar("int64", cast("int64", row))
    with when(order_bytes > 0):
        at = a["order"] + row * order_bytes
        low = cast("int64", act[at]) + T.shift_left(cast("int64", act[at + 1]), 8)
        number.set(low)
        with when(order_bytes > 2):
            high = cast("int64", act[at + 2])
            high = high + T.shift_left(cast("int64", act[at + 3]), 8)
            number.add(T.shift_left(high, 16))
    return number.value


def _gather_row(outputs: Array, first: Any, cols: Any, target: Any) -> None:
    """Copy every second of 4-byte values, a block at a time."""
    gathered = scratch("int32", _STORE_COLUMNS)
    with loop(ceil_div(cols, _STORE_COLUMNS)) as block:
        begin = block * _STORE_COLUMNS
        count = T.min(T.int64(_STORE_COLUMNS), cols - begin)
        with loop(count) as j:
            gathered[j] = outputs[2 * (first + begin + j)]
        copy_bytes(T.reinterpret("handle", target + 4 * begin), gathered.at(0), 4 * count)


def store_encoded(spec: ValueSpec, a: Action) -> None:
    """Emit the encoding of (rows, cols) quantized outputs: digits, bitmap, stream and pointers.

    `pointers` is the address of the pointer to the tile's begin in the stream; those behind it are
    written, one per `group` rows. `shift` is added before the split: what is cut in two is
    ``(q + shift) mod 2^2k``. The code of a high digit is its nibble, but 0 where that is the nibble
    of `edge` and the low digit lies below that of `edge`.
    """
    cells, stride, staging = a.memory.cells, a.memory.cell_stride, a.memory.staging
    cell, rows, cols, pointers, group = (
        a[name] for name in ("cell", "rows", "cols", "pointers", "group")
    )
    shift, edge = (cast("int32", a[name]) for name in ("shift", "edge"))
    turn = Scalar("int32", T.shift_right(edge, spec.k))
    threshold = Scalar("int32", T.bitwise_and(edge, 2**spec.k - 1))
    lsb_bytes, pbm_bytes = ceil_div(cols * spec.k, 8), ceil_div(cols, 8)
    pointer = scratch("int32", 1)
    copy_bytes(pointer.at(0), T.reinterpret("handle", pointers), 4)
    end = Scalar("int64", cast("int64", pointer[0]))
    with loop(rows) as row:
        with loop(lsb_bytes + pbm_bytes + lsb_bytes) as byte:
            staging[byte] = 0
        digits = Scalar("int64", T.int64(0))
        with loop(cols) as column:
            value = Scalar("int32", cells[(cell + row * cols + column) * stride] + shift)
            low = T.bitwise_and(value.value, 2**spec.k - 1)
            _put_bits(staging, T.int64(0), column * spec.k, low)
            high = T.bitwise_and(T.shift_right(value.value, spec.k), 2**spec.k - 1)
            nibble = Scalar("int32", high)
            stored = Scalar("int32", cast("int32", nibble.value != 0))
            _put_bits(staging, lsb_bytes, column, stored.value)
            largest = T.And(nibble.value == turn.value, low < threshold.value)
            # Written always, kept only if it is not zero: a branch would be mispredicted.
            code = T.Select(largest, T.int32(0), nibble.value)
            _put_bits(staging, lsb_bytes + pbm_bytes, digits.value * spec.k, code)
            digits.add(cast("int64", stored.value))
        msb_bytes = ceil_div(digits.value * spec.k, 8)
        for target, begin, nbytes in (
            (a["dram"] + row * a["lsb_pitch"], T.int64(0), lsb_bytes),
            (a["pbm"] + row * a["pbm_pitch"], lsb_bytes, pbm_bytes),
            (a["msb"] + end.value, lsb_bytes + pbm_bytes, msb_bytes),
        ):
            copy_bytes(T.reinterpret("handle", target), staging.at(begin), nbytes)
        end.add(msb_bytes)
        done = row + 1
        with when(T.Or(T.truncmod(done, group) == 0, done == rows)):
            pointer[0] = cast("int32", end.value)
            target = pointers + 4 * ceil_div(done, group)
            copy_bytes(T.reinterpret("handle", target), pointer.at(0), 4)


def _put_bits(staging: Array, begin: Any, bit: Any, value: Any) -> None:
    """Add `value` at a bit of the staged bytes from `begin` on; it does not cross a byte."""
    at = begin + T.shift_right(bit, T.int64(3))
    shifted = T.shift_left(value, cast("int32", T.bitwise_and(bit, T.int64(7))))
    staging[at] = cast("uint8", T.bitwise_or(cast("int32", staging[at]), shifted))
