"""Kernels that quantize and slice activations into the transport form, row by row in parallel.

The definition they match bit for bit is ``sparqle_tvm.numerics`` (``quantize_with_choice`` and
``encode``). Each row is worked on by one thread: integers, LSB plane, bitmap, MSB digits packed at
the start of a row of worst-case length. A serial prefix sum makes the row pointers, then the rows
of MSB bytes are moved together, in parallel again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.host.planes import SplitForm, for_bytes
from sparqle_tvm.host.register_tile import SERIAL_ROWS
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX
from sparqle_tvm.tirscript import (
    Array,
    Scalar,
    build,
    cast,
    for_rows,
    lead_dims,
    loop,
    scratch,
)

# A float32 below 2^22 in magnitude plus 1.5 * 2^23 has its integer, rounded half to even, in the
# low mantissa bits: exact, vectorised everywhere, and it needs no SSE4.1 or call of libm.
_ROUND = 12582912.0
_ROUND_BITS = 0x4B400000
_MAGNITUDE_BITS = 0x7FFFFFFF
_INFINITY_BITS = 0x7F800000
NAN_BITS = 0x7FC00000


@dataclass(frozen=True)
class EncodeSpec:
    """What distinguishes one encoding kernel from another.

    Attributes
    ----------
    lead : int
        Number of leading dimensions; their product is M, and they are symbolic in the kernel.
    columns : int
        K.
    form : SplitForm
        How integers are split; that of a quantizer has no zero points.
    group_size : int
        Columns per group sum, a divisor of K; 0: no sums.
    qmax : int
        Largest quantized magnitude; 0: the input is quantized already.
    factors : bool
        Whether each column has a factor on the step; only with `qmax`.
    bands : bool
        Whether each column has bands that are clipped to the window; only with `factors`.
    """

    lead: int
    columns: int
    form: SplitForm
    group_size: int
    qmax: int = 0
    factors: bool = False
    bands: bool = False

    @property
    def k(self) -> int:
        """Bits of a digit."""
        return self.form.k

    @property
    def stored(self) -> str:
        """Dtype of stored integers, unsigned."""
        return "uint16" if self.k == 8 else "uint8"

    @property
    def largest_shares(self) -> bool:
        """Whether there may be a digit that shares its nibble with the smallest one."""
        digits = self.form.digits
        if self.form.zeros:
            return digits.window.centred
        # What the quantizer makes may be too small for the largest digit.
        greatest = self.qmax or digits.bounds[1]
        largest = digits.digit_range[1]
        reached = (greatest - digits.centre + digits.bias) >> self.k == largest
        return digits.threshold > 0 and reached

    @property
    def groups(self) -> int:
        """Number of group sums of a row."""
        return self.columns // self.group_size if self.group_size else 0

    @property
    def lsb_bytes(self) -> int:
        """Bytes of a row of the LSB plane, and the most that a row of MSB digits can take."""
        return -(-self.columns * self.k // 8)


@cache
def encode_kernel(spec: EncodeSpec) -> tirx.PrimFunc:
    """Build the kernel of ``quantize_encode`` or ``encode``.

    Parameters of the PrimFunc, in order: x (.., K) float32, or integers q (.., K); zero_points
    (.., 1) or (1,) of the dtype of q, factors (K,) float32 and bands (2, K) of the dtype of q, as
    far as the spec has them; lsb, pbm, msb, row_ptr; scale (.., 1) float32 if ``spec.qmax``;
    group_sums (.., G) int32 if ``spec.group_size``. The output buffers are those of
    ``sparqle_tvm.dialect``.
    """
    dims, rows = lead_dims(spec.lead)
    columns, lsb_bytes, pbm_bytes = spec.columns, spec.lsb_bytes, -(-spec.columns // 8)

    def body(
        source: Array,
        zero_points: Array | None,
        factors: Array | None,
        bands: Array | None,
        lsb: Array,
        pbm: Array,
        msb: Array,
        row_ptr: Array,
        scale: Array | None,
        group_sums: Array | None,
    ) -> None:
        source, lsb = source.reshape(rows, columns), lsb.reshape(rows, lsb_bytes)
        pbm = pbm.reshape(rows, pbm_bytes)
        scale = scale.reshape(rows) if scale else None
        sums = group_sums.reshape(rows, spec.groups) if group_sums else None
        zeros = spec.form.flat(zero_points, rows)
        stream = scratch("uint8", rows, lsb_bytes)

        def encode_row(row: Any) -> None:
            stored = scratch(spec.stored, columns)
            # Kept for the sums alone: what is stored would have to be read back.
            quantized = scratch(spec.form.integer, columns) if scale and sums else None
            smallest = spec.form.smallest(zeros, row)
            if scale:
                quantize_row(spec, row, source, stored, scale, factors, bands, quantized)
            else:
                _store_row(spec, row, source, stored, smallest)
            _pack_lsb(spec, row, stored, lsb)
            _pack_msb(spec, row, stored, pbm, stream, row_ptr, smallest)
            if sums:
                zero_point = spec.form.zero_point(zeros, row)
                known = (lambda i: quantized[i]) if quantized else (lambda i: source[row, i])
                _sum_groups(spec, row, known, sums, zero_point)

        def move_row(row: Any) -> None:
            with loop(row_ptr[row + 1] - row_ptr[row]) as i:
                msb[row_ptr[row] + i] = stream[row, i]

        row_ptr[0] = T.int32(0)
        for_rows(rows, SERIAL_ROWS, encode_row)
        with loop(rows) as row:
            row_ptr[row + 1] = row_ptr[row + 1] + row_ptr[row]
        for_rows(rows, SERIAL_ROWS, move_row)

    parameters = {
        "source": ("float32" if spec.qmax else spec.form.integer, *dims, columns),
        "zero_points": spec.form.parameter(dims),
        "factors": ("float32", columns) if spec.factors else None,
        "bands": (spec.form.integer, 2, columns) if spec.bands else None,
        "lsb": ("uint8", *dims, lsb_bytes),
        "pbm": ("uint8", *dims, pbm_bytes),
        "msb": ("uint8", rows * lsb_bytes),
        "row_ptr": ("int32", rows + 1),
        "scale": ("float32", *dims, 1) if spec.qmax else None,
        "group_sums": ("int32", *dims, spec.groups) if spec.groups else None,
    }
    return build("quantize_encode" if spec.qmax else "encode", parameters, body)


def quantize_row(
    spec: EncodeSpec,
    row: Any,
    x: Array,
    stored: Array,
    scale: Array,
    factors: Array | None = None,
    bands: Array | None = None,
    quantized: Array | None = None,
) -> None:
    """Write what is stored of one row (and q itself), and its scale; NaN or Inf: NaN and q 0."""
    # As integers, the magnitudes of floats keep their order, and NaN and Inf come out on top;
    # float comparisons are compiled under the assumption that there are no NaNs.
    largest = Scalar("int32", 0)
    with loop(spec.columns) as i:
        bits = T.bitwise_and(T.reinterpret("int32", x[row, i]), _MAGNITUDE_BITS)
        largest.set(T.max(largest.value, bits))
    finite = Scalar("int32", T.Select(largest.value < _INFINITY_BITS, T.int32(-1), T.int32(0)))
    amax = T.reinterpret("float32", T.bitwise_and(largest.value, finite.value))
    step = Scalar("float32", T.max(amax, T.float32(SMALLEST_AMAX)) / T.float32(spec.qmax))
    not_a_number = T.reinterpret("float32", T.int32(NAN_BITS))
    scale[row] = T.Select(finite.value != 0, step.value, not_a_number)
    low, high = -spec.qmax, spec.qmax
    with loop(spec.columns) as i:
        bits = T.bitwise_and(T.reinterpret("int32", x[row, i]), finite.value)
        if factors:
            ratio = T.reinterpret("float32", bits) / (step.value * factors[i])
            # Limited before it is rounded, which for integer limits is the same: a small factor
            # gives quotients beyond what the rounding takes.
            ratio = T.max(T.min(ratio, T.float32(high)), T.float32(low))
            q = T.reinterpret("int32", ratio + T.float32(_ROUND)) - _ROUND_BITS
        else:
            rounded = T.reinterpret("float32", bits) / step.value + T.float32(_ROUND)
            q = T.reinterpret("int32", rounded) - _ROUND_BITS
            q = T.max(T.min(q, T.int32(high)), T.int32(low))
        if bands:
            q = _clip_to_bands(spec, q, *(cast("int32", bands[side, i]) for side in (0, 1)))
        stored[i] = _stored(spec, q + spec.form.digits.bias)
        if quantized:
            quantized[i] = cast(spec.form.integer, q)


def _stored(spec: EncodeSpec, biased: Any) -> Any:
    """``q - centre + bias`` modulo 2^2k; the dtype has 2k bits, unless k is 2."""
    return cast(spec.stored, T.bitwise_and(biased, 15) if spec.k == 2 else biased)


def _clip_to_bands(spec: EncodeSpec, q: Any, lo: Any, hi: Any) -> Any:
    """Move a q that lies in a band to the edge of the window."""
    first, last = spec.form.digits.zero_range
    value = T.Select(tirx.all(q > last, q <= hi), T.int32(last), q)
    return T.Select(tirx.all(value < first, value >= lo), T.int32(first), value)


def _store_row(spec: EncodeSpec, row: Any, q: Array, stored: Array, smallest: Any) -> None:
    """Write what is stored of one row."""
    move = Scalar("int32", smallest - T.int32(spec.form.digits.bounds[0]))
    with loop(spec.columns) as i:
        stored[i] = _stored(spec, cast("int32", q[row, i]) + move.value)


def _pack_lsb(spec: EncodeSpec, row: Any, stored: Array, lsb: Array) -> None:
    per_byte = 8 // spec.k

    def pack(byte: Any, count: int) -> None:
        packed: Any = T.int32(0)
        for i in range(count):
            digit = T.bitwise_and(cast("int32", stored[byte * per_byte + i]), 2**spec.k - 1)
            packed = packed + T.shift_left(digit, i * spec.k)
        lsb[row, byte] = cast("uint8", packed)

    for_bytes(spec.columns, per_byte, pack)


def _pack_msb(
    spec: EncodeSpec,
    row: Any,
    stored: Array,
    pbm: Array,
    stream: Array,
    row_ptr: Array,
    smallest: Any,
) -> None:
    """Write the bitmap, the codes of the MSB digits at the start of the stream's row, their bytes.

    The code of the largest digit is 0 if it shares its nibble, see ``numerics.window``.
    """
    k, per_byte = spec.k, 8 // spec.k
    shares = spec.largest_shares
    # What the largest digit is stored from, and for how many low digits.
    begin, threshold = (
        Scalar("int32", T.bitwise_and(smallest, mask)) for mask in (4**k - 2**k, 2**k - 1)
    )
    digits = scratch("uint8", spec.columns + per_byte)
    found = Scalar("int32", 0)

    def collect(byte: Any, count: int) -> None:
        bits = Scalar("int32", 0)
        for i in range(count):
            digit = Scalar("int32", T.shift_right(cast("int32", stored[byte * 8 + i]), k))
            # Written always, kept only if it is not zero: a branch would be mispredicted.
            code: Any = digit.value
            if shares:
                above = cast("int32", stored[byte * 8 + i]) - begin.value
                code = T.Select(tirx.all(above >= 0, above < threshold.value), 0, code)
            digits[found.value] = cast("uint8", code)
            digit.set(cast("int32", digit.value != 0))
            found.add(digit.value)
            bits.add(T.shift_left(digit.value, i))
        pbm[row, byte] = cast("uint8", bits.value)

    for_bytes(spec.columns, 8, collect)
    for i in range(per_byte):
        digits[found.value + i] = T.uint8(0)
    stored_bytes = Scalar("int32", T.shift_right(found.value * k + 7, 3))
    with loop(stored_bytes.value) as byte:
        packed: Any = T.int32(0)
        for i in range(per_byte):
            digit = cast("int32", digits[byte * per_byte + i])
            packed = packed + T.shift_left(digit, i * k)
        stream[row, byte] = cast("uint8", packed)
    row_ptr[row + 1] = stored_bytes.value


def _sum_groups(
    spec: EncodeSpec, row: Any, q: Callable[[Any], Any], sums: Array, zero_point: Any
) -> None:
    """Sums of q - zero point."""
    with loop(spec.groups) as group:
        total = Scalar("int32", -zero_point * spec.group_size)
        with loop(spec.group_size) as i:
            total.add(cast("int32", q(group * spec.group_size + i)))
        sums[row, group] = total.value
