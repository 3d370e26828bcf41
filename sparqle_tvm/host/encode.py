"""Kernels that quantize and slice activations into the transport form, row by row in parallel.

The definition they match bit for bit is ``sparqle_tvm.numerics`` (``quantize_with_choice`` and
``encode``). Each row is worked on by one thread: integers, LSB plane, bitmap, MSB digits packed at
the start of a row of worst-case length. A serial prefix sum makes the row pointers, then the rows
of MSB bytes are moved together, in parallel again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.host.planes import for_bytes
from sparqle_tvm.host.register_tile import SERIAL_ROWS
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX
from sparqle_tvm.numerics.window import window_of
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
    k : int
        Bits of a digit: 2, 4 or 8.
    window : str
        How integers are split.
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
    k: int
    window: str
    group_size: int
    qmax: int = 0
    factors: bool = False
    bands: bool = False

    @property
    def bias(self) -> int:
        """What is added before the split."""
        return window_of(self.window).bias(self.k)

    @property
    def largest(self) -> int:
        """Largest q that the window holds; larger ones saturate."""
        return window_of(self.window).limits(self.k)[1]

    @property
    def integer(self) -> str:
        """Container of q, and of q + bias."""
        return "int16" if self.k == 8 else "int8"

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

    Parameters of the PrimFunc, in order: x (.., K) float32, or q (.., K) int8 (int16 for k = 8);
    factors (K,) float32 and bands (2, K) of the dtype of q, as far as the spec has them; lsb, pbm,
    msb, row_ptr; scale (.., 1) float32 if ``spec.qmax``; group_sums (.., G) int32 if
    ``spec.group_size``. The output buffers are those of ``sparqle_tvm.dialect``.
    """
    dims, rows = lead_dims(spec.lead)
    columns, lsb_bytes, pbm_bytes = spec.columns, spec.lsb_bytes, -(-spec.columns // 8)

    def body(
        source: Array,
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
        stream = scratch("uint8", rows, lsb_bytes)

        def encode_row(row: Any) -> None:
            biased = scratch(spec.integer, columns)
            if scale:
                quantize_row(spec, row, source, biased, scale, factors)
                if bands:
                    _clip_row(spec, biased, bands)
            else:
                _saturate_row(spec, row, source, biased)
            _pack_lsb(spec, row, biased, lsb)
            _pack_msb(spec, row, biased, pbm, stream, row_ptr)
            if sums:
                _sum_groups(spec, row, biased, sums)

        def move_row(row: Any) -> None:
            with loop(row_ptr[row + 1] - row_ptr[row]) as i:
                msb[row_ptr[row] + i] = stream[row, i]

        row_ptr[0] = T.int32(0)
        for_rows(rows, SERIAL_ROWS, encode_row)
        with loop(rows) as row:
            row_ptr[row + 1] = row_ptr[row + 1] + row_ptr[row]
        for_rows(rows, SERIAL_ROWS, move_row)

    parameters = {
        "source": ("float32" if spec.qmax else spec.integer, *dims, columns),
        "factors": ("float32", columns) if spec.factors else None,
        "bands": (spec.integer, 2, columns) if spec.bands else None,
        "lsb": ("uint8", *dims, lsb_bytes),
        "pbm": ("uint8", *dims, pbm_bytes),
        "msb": ("uint8", rows * lsb_bytes),
        "row_ptr": ("int32", rows + 1),
        "scale": ("float32", *dims, 1) if spec.qmax else None,
        "group_sums": ("int32", *dims, spec.groups) if spec.groups else None,
    }
    return build("quantize_encode" if spec.qmax else "encode", parameters, body)


def quantize_row(
    spec: EncodeSpec, row: Any, x: Array, biased: Array, scale: Array, factors: Array | None
) -> None:
    """Write ``q + bias`` and the scale of one row; saturated; NaN or Inf: scale NaN, q 0."""
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
    low, high = -spec.qmax, min(spec.qmax, spec.largest)
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
        biased[i] = cast(spec.integer, q + spec.bias)


def _clip_row(spec: EncodeSpec, biased: Array, bands: Array) -> None:
    """Move what lies in the bands to the edge of the window; ``biased`` holds ``q + bias``."""
    # With the bias added, the window is [0, 2^k - 1] in both of its forms.
    last = 2**spec.k - 1
    with loop(spec.columns) as i:
        value = cast("int32", biased[i])
        lo, hi = (cast("int32", bands[side, i]) + spec.bias for side in (0, 1))
        value = T.Select(tirx.all(value > last, value <= hi), T.int32(last), value)
        value = T.Select(tirx.all(value < 0, value >= lo), T.int32(0), value)
        biased[i] = cast(spec.integer, value)


def _saturate_row(spec: EncodeSpec, row: Any, q: Array, biased: Array) -> None:
    """Write ``q + bias``, q clipped to what 2k bits and the window hold."""
    smallest = T.int32(-(2 ** (2 * spec.k - 1)))
    with loop(spec.columns) as i:
        value = T.min(cast("int32", q[row, i]), T.int32(spec.largest))
        biased[i] = cast(spec.integer, T.max(value, smallest) + spec.bias)


def _pack_lsb(spec: EncodeSpec, row: Any, biased: Array, lsb: Array) -> None:
    per_byte = 8 // spec.k

    def pack(byte: Any, count: int) -> None:
        packed: Any = T.int32(0)
        for i in range(count):
            digit = T.bitwise_and(cast("int32", biased[byte * per_byte + i]), 2**spec.k - 1)
            packed = packed + T.shift_left(digit, i * spec.k)
        lsb[row, byte] = cast("uint8", packed)

    for_bytes(spec.columns, per_byte, pack)


def _pack_msb(
    spec: EncodeSpec, row: Any, biased: Array, pbm: Array, stream: Array, row_ptr: Array
) -> None:
    """Write the bitmap, the MSB digits at the start of the stream's row, and their bytes."""
    k, per_byte = spec.k, 8 // spec.k
    digits = scratch("uint8", spec.columns + per_byte)
    found = Scalar("int32", 0)

    def collect(byte: Any, count: int) -> None:
        bits = Scalar("int32", 0)
        for i in range(count):
            digit = Scalar("int32", T.shift_right(cast("int32", biased[byte * 8 + i]), k))
            # Written always, kept only if it is not zero: a branch would be mispredicted.
            digits[found.value] = cast("uint8", T.bitwise_and(digit.value, 2**k - 1))
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


def _sum_groups(spec: EncodeSpec, row: Any, biased: Array, sums: Array) -> None:
    with loop(spec.groups) as group:
        total = Scalar("int32", -spec.bias * spec.group_size)
        with loop(spec.group_size) as i:
            total.add(cast("int32", biased[group * spec.group_size + i]))
        sums[row, group] = total.value
