"""How kernels get zero points, and how they expand encoded rows to dense planes of float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.numerics.integers import container
from sparqle_tvm.numerics.window import Digits, window_of
from sparqle_tvm.tirscript import Array, Scalar, cast, loop, scratch


@dataclass(frozen=True)
class SplitForm:
    """How integers are split, as far as a kernel is specialised on it.

    Attributes
    ----------
    window : str
    k : int
        Bits of a digit: 2, 4 or 8.
    signed : bool
        Whether the integers are signed.
    zeros : {"", "one", "row"}
        No zero points (they are 0), one for all rows, or one for each: a parameter of the dtype of
        the integers. Constants come that way too, so that layers share kernels.
    """

    window: str
    k: int
    signed: bool = True
    zeros: Literal["", "one", "row"] = ""

    @property
    def digits(self) -> Digits:
        """The arithmetic for zero point 0; it has what all zero points have in common."""
        return window_of(self.window).digits(self.k, signed=self.signed)

    @property
    def integer(self) -> str:
        """Dtype of the integers."""
        return container(self.k, self.signed)

    @property
    def largest_digit(self) -> int:
        """Largest magnitude of a high digit."""
        if self.zeros and self.digits.window.centred:
            return (1 << self.k) - 1
        return max(map(abs, self.digits.digit_range))

    def parameter(self, dims: list[Any]) -> tuple[Any, ...] | None:
        """Dtype and shape of the zero points, None if there are none."""
        if not self.zeros:
            return None
        return (self.integer, *dims, 1) if self.zeros == "row" else (self.integer, 1)

    def flat(self, zeros: Array | None, rows: Any) -> Array | None:
        """The parameter with its dimensions flattened: (M,) or (1,)."""
        return zeros.reshape(rows if self.zeros == "row" else 1) if zeros else None

    def zero_point(self, zeros: Array | None, row: Any) -> Any:
        """The zero point of a row as int32; `zeros` is flat."""
        if zeros is None:
            return T.int32(0)
        return cast("int32", zeros[row if self.zeros == "row" else 0])

    def smallest(self, zeros: Array | None, row: Any) -> Any:
        """`Digits.smallest` of a row as int32; a constant where there are no zero points."""
        digits = self.digits
        if zeros is None or not digits.window.centred:
            return T.int32(digits.smallest)
        low, high = digits.centre_range
        centre = T.max(T.min(self.zero_point(zeros, row), T.int32(high)), T.int32(low))
        return Scalar("int32", T.int32(digits.bounds[0] + digits.bias) - centre).value


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
    form : SplitForm
        How the integers were split.
    zeros : (M,) or (1,) of the dtype of the integers, or None
        Zero points, if the form has some.
    """

    lsb: Array
    pbm: Array
    msb: Array
    row_ptr: Array
    columns: int
    form: SplitForm
    zeros: Array | None

    @property
    def k(self) -> int:
        """Bits of a digit."""
        return self.form.k


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
    """Write the digits times 2^k, see `Digits.decode`."""
    k, per_byte, columns = encoding.k, 8 // encoding.k, encoding.columns
    smallest = encoding.form.smallest(encoding.zeros, row)
    first = Scalar("int32", T.shift_right(smallest, k))
    last = Scalar("int32", T.shift_right(smallest + (4**k - 1), k))
    unshared = isinstance(smallest, tirx.IntImm) and int(smallest) % 2**k == 0
    # One digit more than a row can hold, for the reads behind the last one.
    digits = scratch("float32", -(-columns // per_byte) * per_byte + 1)
    row_ptr = encoding.row_ptr
    with loop(row_ptr[row + 1] - row_ptr[row]) as byte:
        for i in range(per_byte):
            stored = cast("int32", encoding.msb[row_ptr[row] + byte])
            digit = T.bitwise_and(T.shift_right(stored, i * k), 2**k - 1)
            value = first.value + T.bitwise_and(digit - first.value, 2**k - 1)
            if not unshared:
                value = T.Select(digit == 0, last.value, value)
            digits[byte * per_byte + i] = cast("float32", value * 2**k)
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
