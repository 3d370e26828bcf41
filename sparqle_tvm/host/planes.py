"""Expansion of encoded rows to dense planes of float32, for the dense kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.tirscript import Array, Scalar, cast, loop, scratch


@dataclass(frozen=True)
class Encoding:
    """The parameters of a kernel that hold an encoding, leading dimensions flattened to M.

    Attributes
    ----------
    lsb : uint8 (M, ceil(K * k / 8))
    pbm : uint8 (M, ceil(K / 8))
    msb : uint8 (capacity,)
    row_ptr : int32 (M + 1,)
    columns : int
        K.
    k : int
        Bits of a digit: 2, 4 or 8.
    """

    lsb: Array
    pbm: Array
    msb: Array
    row_ptr: Array
    columns: int
    k: int


def for_bytes(columns: int, per_byte: int, work: Callable[[Any, int], None]) -> None:
    """Call ``work(byte, digits in it)`` for the bytes that `columns` digits are packed into."""
    with loop(columns // per_byte) as byte:
        work(byte, per_byte)
    if columns % per_byte:
        work(columns // per_byte, columns % per_byte)


def decode_row(encoding: Encoding, row: Any, planes: Array, at: Any) -> None:
    """Write row `row` of an encoding to ``planes[at]`` and ``planes[at + 1]``.

    The first gets the LSB digits as stored (biased for the signed window), the second the MSB
    digits times 2^k, zero where the bitmap is zero; `planes` is float32 (.., K), exact.
    """
    _decode_lsb(encoding, row, planes, at)
    _decode_msb(encoding, row, planes, at + 1)


def _decode_lsb(encoding: Encoding, row: Any, planes: Array, at: Any) -> None:
    k, per_byte = encoding.k, 8 // encoding.k

    def unpack(byte: Any, count: int) -> None:
        for i in range(count):
            digit = T.bitwise_and(
                T.shift_right(cast("int32", encoding.lsb[row, byte]), i * k), 2**k - 1
            )
            planes[at, byte * per_byte + i] = cast("float32", digit)

    for_bytes(encoding.columns, per_byte, unpack)


def _decode_msb(encoding: Encoding, row: Any, planes: Array, at: Any) -> None:
    k, per_byte, columns = encoding.k, 8 // encoding.k, encoding.columns
    half = 2 ** (k - 1)
    # One digit more than a row can hold, for the reads behind the last one.
    digits = scratch("float32", -(-columns // per_byte) * per_byte + 1)
    row_ptr = encoding.row_ptr
    with loop(row_ptr[row + 1] - row_ptr[row]) as byte:
        for i in range(per_byte):
            stored = cast("int32", encoding.msb[row_ptr[row] + byte])
            digit = T.bitwise_and(T.shift_right(stored, i * k), 2**k - 1)
            signed = T.bitwise_xor(digit, half) - half
            digits[byte * per_byte + i] = cast("float32", signed * 2**k)
    found = Scalar("int32", 0)

    def expand(byte: Any, count: int) -> None:
        for i in range(count):
            bit = Scalar(
                "int32",
                T.bitwise_and(T.shift_right(cast("int32", encoding.pbm[row, byte]), i), 1),
            )
            # Read always, used only where the bit is set: a branch would be mispredicted.
            value = T.Select(bit.value != 0, digits[found.value], T.float32(0))
            planes[at, byte * 8 + i] = value
            found.add(bit.value)

    for_bytes(columns, 8, expand)
