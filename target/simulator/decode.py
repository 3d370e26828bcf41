"""Decoding what lies packed in the buffers into operands of the dot products.

Each function emits the code for one tile; `spec` describes the layouts. Nothing here is trusted
to be well-formed: whatever the bytes are, reads stay within the tile's range and the slack behind
the buffer, and writes within the tile's entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.simulator.spec import Action, ValueSpec
from sparqle_tvm.tirscript import (
    Array,
    Scalar,
    cast,
    ceil_div,
    loop,
    parallel,
    scratch,
    vector,
    when,
)

BUFFER_SLACK_BYTES = 512
"""Bytes behind ACT and WGT that a decoder may read (and ignore)."""

_JOINED_LANES = 32
"""Elements that are joined at a time; a span has a multiple of them."""


def decode_plane(spec: ValueSpec, a: Action, tile: str, complement: Any, signed: Any) -> None:
    """Decode a dense plane of digits: the tile ``act`` or ``low``.

    `complement` says whether they are two's complement; if they are `signed` without being that,
    their top bit is flipped.
    """
    act, pool, half = a.memory.act, a.memory.activations, 2 ** (spec.k - 1)
    flip = Scalar("int32", cast("int32", complement) * half).value
    bias = Scalar("int32", cast("int32", signed) * half).value
    row_bytes = ceil_div(a["k"] * spec.k, 8)

    with loop(a["m"]) as row:
        source = a[tile] + row * row_bytes
        target = a.entry("act", tile) + row * (spec.spans(a["k"]) * spec.pitch)
        if spec.contiguous:
            per_byte = 8 // spec.k
            with loop(row_bytes) as byte:
                for i in range(per_byte):
                    packed = cast("int32", act[source + byte])
                    digit = _bits(packed, i * spec.k, spec.k)
                    digit = T.bitwise_xor(digit, flip) - bias
                    pool[target + byte * per_byte + i] = cast(spec.dot.activation, digit)
        else:

            def put(column: Any, position: Any) -> None:
                bit = column * spec.k
                packed = cast("int32", act[source + T.shift_right(bit, T.int64(3))])
                shift = cast("int32", T.bitwise_and(bit, T.int64(7)))
                digit = T.bitwise_xor(_bits(packed, shift, spec.k), flip) - bias
                pool[target + position] = cast(spec.dot.activation, digit)

            _for_columns(spec, a["k"], put)
        _clear_padding(spec, a, target)
        _sum_spans(spec, a, tile, row, target)


def join_planes(spec: ValueSpec, a: Action) -> None:
    """Make integers of both planes, ``low + 2^k * high``, in the entry of the high digits.

    Only if all of them fit int8, which is noted; else the high digits stay as they are.
    """
    pool, columns = a.memory.activations, spec.spans(a["k"]) * spec.pitch
    low, high = a.entry("act", "low"), a.entry("act")
    lanes = _JOINED_LANES

    def joined(at: Any) -> Any:
        digits = (cast("int16", pool[vector(b + at, lanes)], lanes) for b in (low, high))
        return next(digits) + next(digits) * T.broadcast(T.int16(2**spec.k), lanes)

    outside = scratch("int16", lanes)
    outside[vector(0, lanes)] = T.broadcast(T.int16(0), lanes)
    # A row has a whole number of vectors.
    with loop(T.truncdiv(a["m"] * columns, T.int64(lanes))) as i:
        value = joined(i * lanes) + T.broadcast(T.int16(128), lanes)
        above = T.bitwise_and(value, T.broadcast(T.int16(-256), lanes))
        outside[vector(0, lanes)] = T.bitwise_or(outside[vector(0, lanes)], above)
    found = Scalar("int32", T.int32(0))
    with loop(lanes) as i:
        found.set(T.bitwise_or(found.value, cast("int32", outside[i])))
    with when(found.value == 0):
        a.memory.joined[a["act_entry"]] = 1
        with loop(T.truncdiv(a["m"] * columns, T.int64(lanes))) as i:
            pool[vector(high + i * lanes, lanes)] = cast("int8", joined(i * lanes), lanes)
        sums, of_low, of_high = a.memory.sums, a.entry("sums", "low"), a.entry("sums")
        with loop(a["m"] * spec.spans(a["k"])) as i:
            sums[of_high + i] = sums[of_low + i] + sums[of_high + i] * 2**spec.k


def decode_sparse(spec: ValueSpec, a: Action) -> None:
    """Decode a bitmap and its stream of codes; rows begin where the bits counted so far say.

    Code 0 is `turn`, codes from `turn` on are less by 2^k. Rows with centres of their own have
    turns of their own.
    """
    row_bytes = ceil_div(a["k"], 8)
    # Bits behind the last column do not count.
    last_mask = T.shift_left(T.int64(1), (a["k"] - 1) - (row_bytes - 1) * 8 + 1) - 1
    a.memory.offsets[0] = 0
    with loop(a["m"]) as row:
        found = Scalar("int64", T.int64(0))
        source = a["act"] + row * row_bytes
        with loop(row_bytes - 1) as byte:
            found.add(cast("int64", T.popcount(a.memory.act[source + byte])))
        last = T.bitwise_and(cast("int64", a.memory.act[source + row_bytes - 1]), last_mask)
        found.add(T.popcount(last))
        a.memory.offsets[row + 1] = a.memory.offsets[row] + ceil_div(found.value * spec.k, 8)

    with parallel(a["m"]) as row:
        bitmap = a["act"] + row * row_bytes
        stream = a["stream"] + a.memory.offsets[row]
        target = a.entry("act") + row * (spec.spans(a["k"]) * spec.pitch)
        digits = Scalar("int64", T.int64(0))
        turn = Scalar("int32", cast("int32", a["turn"]))
        if spec.row_centres and spec.zeros:
            zero = Scalar("int32", spec.zeros.read(a.memory.act, a["zeros"], row))
            edge = spec.zeros.edge - spec.zeros.centre(zero.value)
            turn.set(T.shift_right(edge, spec.k))

        def put(column: Any, position: Any) -> None:
            bits = cast("int32", a.memory.act[bitmap + T.shift_right(column, T.int64(3))])
            shift = cast("int32", T.bitwise_and(column, T.int64(7)))
            stored = T.bitwise_and(T.shift_right(bits, shift), 1)
            at = digits.value * spec.k
            packed = cast("int32", a.memory.act[stream + T.shift_right(at, T.int64(3))])
            code = _bits(packed, cast("int32", T.bitwise_and(at, T.int64(7))), spec.k)
            less = T.shift_left(cast("int32", code >= turn.value), spec.k)
            digit = T.Select(code == 0, turn.value, code - less)
            # A branch on a random bit would be mispredicted; the digit is read always.
            a.memory.activations[target + position] = cast(spec.dot.activation, digit * stored)
            digits.add(cast("int64", stored))

        _for_columns(spec, a["k"], put)
        _clear_padding(spec, a, target)
        _sum_spans(spec, a, "act", row, target)


def decode_weights(spec: ValueSpec, a: Action) -> None:
    """Decode all slices of a weight tile in WGT into panels."""
    wgt, pool, n, k = a.memory.wgt, a.memory.weights, a["n"], a["k"]
    address, entry = a["wgt"], a.entry("wgt")
    dot = spec.dot
    row_bytes = ceil_div(k * spec.weight_bits, 8)
    steps = spec.pitch // dot.depth
    spans, panels = spec.spans(k), spec.panels(n)
    put = _put_word if spec.contiguous and dot.depth == 4 else _put_elements

    with parallel(panels) as panel:
        first = panel * dot.channels
        with loop(T.min(T.int64(dot.channels), n - first)) as channel, loop(spans) as span:
            source = address + (first + channel) * row_bytes
            begin = spec.span_begin(span)
            with loop(ceil_div(spec.span_columns(span, k), dot.depth)) as step:
                cells = [
                    T.truncdiv(entry, T.int64(dot.depth))
                    + (((index * panels + panel) * spans + span) * steps + step) * dot.channels
                    + channel
                    for index in range(spec.slices)
                ]
                put(spec, wgt, source, begin + step * dot.depth, pool, cells)


def decode_parameters(spec: ValueSpec, a: Action) -> None:
    """Decode group scales (and minima behind them) to float64 panels."""
    wgt, pool, n, k = a.memory.wgt, a.memory.parameters, a["n"], a["k"]
    address, entry = a["grp"], a.entry("grp")
    channels = spec.dot.channels
    groups, panels = spec.groups(k), spec.panels(n)
    for kind in range(2 if spec.has_min else 1):
        with loop(panels) as panel:
            first = panel * channels
            with loop(T.min(T.int64(channels), n - first)) as channel, loop(groups) as group:
                number = (kind * n + first + channel) * groups + group
                where = ((kind * panels + panel) * groups + group) * channels + channel
                pool[entry + where] = _factor(spec, wgt, address + number * spec.scale_bytes)


def _digit(packed: Any, shift: Any, bits: int, sign: Any) -> Any:
    """Extract a digit from an int32; `sign` is the value of its sign bit, 0 if it has none."""
    return T.bitwise_xor(_bits(packed, shift, bits), sign) - sign


def _bits(packed: Any, shift: Any, bits: int) -> Any:
    return T.bitwise_and(T.shift_right(packed, shift), 2**bits - 1)


def _for_columns(spec: ValueSpec, k: Any, put: Callable[[Any, Any], None]) -> None:
    """Call ``put(column, position)`` for all columns in order."""
    if spec.contiguous:
        with loop(k) as column:
            put(column, column)
        return
    with loop(spec.spans(k)) as span, loop(spec.span_columns(span, k)) as i:
        put(spec.span_begin(span) + i, span * spec.pitch + i)


def _clear_padding(spec: ValueSpec, a: Action, target: Any) -> None:
    with loop(spec.spans(a["k"])) as span:
        columns = Scalar("int64", spec.span_columns(span, a["k"]))
        with loop(spec.pitch - columns.value) as i:
            a.memory.activations[target + span * spec.pitch + columns.value + i] = 0


def _sum_spans(spec: ValueSpec, a: Action, tile: str, row: Any, target: Any) -> None:
    if not (spec.dot.biased and spec.weight_signed):
        return
    with loop(spec.spans(a["k"])) as span:
        total = Scalar("int32", T.int32(0))
        with loop(spec.pitch) as i:
            total.add(cast("int32", a.memory.activations[target + span * spec.pitch + i]))
        a.memory.sums[a.entry("sums", tile) + row * spec.spans(a["k"]) + span] = total.value


def _put_word(
    spec: ValueSpec, wgt: Array, source: Any, column: Any, pool: Array, cells: list[Any]
) -> None:
    """Decode 4 weights that begin at a whole byte, as the bytes of one int32 per slice."""
    words = pool.view("int32", T.truncdiv(pool.buffer.shape[0], T.int64(4)))
    bits = spec.weight_bits
    byte = source + T.truncdiv(column * bits, T.int64(8))
    packed: Any = T.int32(0)
    for i in range(bits // 2):
        packed = T.bitwise_or(packed, T.shift_left(cast("int32", wgt[byte + i]), T.int32(8 * i)))
    # Move the upper half of the elements apart, then the upper half of each half.
    if bits == 2:
        packed = T.bitwise_and(T.bitwise_or(packed, T.shift_left(packed, 12)), 0x000F000F)
        packed = T.bitwise_and(T.bitwise_or(packed, T.shift_left(packed, 6)), 0x03030303)
    if bits == 4:
        packed = T.bitwise_and(T.bitwise_or(packed, T.shift_left(packed, 8)), 0x00FF00FF)
        packed = T.bitwise_and(T.bitwise_or(packed, T.shift_left(packed, 4)), 0x0F0F0F0F)
    bytes_ = Scalar("int32", packed)
    for index, cell in enumerate(cells):
        mask = (2**spec.slice_bits - 1) * 0x01010101
        digits = T.bitwise_and(T.shift_right(bytes_.value, T.int32(index * spec.k)), mask)
        if spec.slice_is_signed(index):
            digits = T.bitwise_xor(digits, 2 ** (spec.slice_bits - 1) * 0x01010101)
        words[cell] = digits


def _put_elements(
    spec: ValueSpec, wgt: Array, source: Any, column: Any, pool: Array, cells: list[Any]
) -> None:
    """Decode `Dot.depth` weights, one by one."""
    bits = spec.slice_bits
    for i in range(spec.dot.depth):
        bit = (column + i) * spec.weight_bits
        packed = cast("int32", wgt[source + T.shift_right(bit, T.int64(3))])
        value = T.shift_right(packed, cast("int32", T.bitwise_and(bit, T.int64(7))))
        for index, cell in enumerate(cells):
            sign = 2 ** (bits - 1) if spec.slice_is_signed(index) else 0
            shift = T.int32(index * spec.k)
            digit = _digit(value, shift, bits, 0 if spec.dot.biased else sign)
            if spec.dot.biased:
                digit = T.bitwise_xor(digit, sign)
            pool[cell * spec.dot.depth + i] = cast(spec.dot.weight, digit)


def _factor(spec: ValueSpec, wgt: Array, source: Any) -> Any:
    """A scale or minimum as float64: little-endian float16, or a float32 that is no subnormal."""
    bits: Any = T.int64(0)
    for i in range(spec.scale_bytes):
        bits = bits + T.shift_left(cast("int64", wgt[source + i]), T.int64(8 * i))
    if spec.scale_bytes == 2:
        return _half_to_double(bits)
    return cast("float64", T.reinterpret("float32", cast("int32", bits)))


def _half_to_double(half: Any) -> Any:
    """Value of a finite float16 given as int64 bits, by integer arithmetic: no rounding mode."""
    exponent = T.bitwise_and(T.shift_right(half, T.int64(10)), T.int64(31))
    mantissa = T.bitwise_and(half, T.int64(1023)) + 1024 * cast("int64", exponent > 0)
    power = T.shift_left(T.max(exponent, T.int64(1)) - 25 + 1023, T.int64(52))
    magnitude = cast("float64", mantissa) * T.reinterpret("float64", power)
    return T.if_then_else(half >= 32768, T.float64(0) - magnitude, magnitude)
