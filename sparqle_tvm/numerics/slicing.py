"""Split precision: 2k-bit integers as a dense LSB plane and a compressed MSB plane.

This module defines the format; passes, kernels and the simulator are tested against it. The idea
(low digit dense, high digit behind a precision bitmap) is that of SPARQLe, arXiv 2606.00365.
Integers are split by a window, which `numerics.window` defines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics.integers import (
    CONTAINER,
    DIGIT,
    INT32_MAX,
    bounds,
    container,
    first_position,
    int_matmul,
    pack_digits,
    plane_bytes,
    require_digit_bits,
    require_matrix,
    to_int32,
    unpack_digits,
)
from sparqle_tvm.numerics.window import Digits, window_of


@dataclass(frozen=True, eq=False)
class SlicedTensor:
    """A matrix (M, K) of 2k-bit integers in its transport form. Made by `encode` or `from_planes`.

    Attributes
    ----------
    lsb : uint8 (M, ceil(K * k / 8))
        Low digits, stored (biased) form, packed low bits first: for k = 4 element 2i is the low
        half of byte i.
    pbm : uint8 (M, ceil(K / 8))
        Precision bitmap: bit i of byte j is column 8j + i; 1 means that an MSB digit is stored.
    msb : uint8 (row_ptr[M],)
        Codes of the MSB digits that are not zero, per row in column order, packed low bits first;
        each row is padded to a byte. `Digits.decode` tells what they stand for.
    row_ptr : int32 (M + 1,)
        Byte offset of each row in `msb`.
    shape : tuple of int
        (M, K).
    k : {2, 4, 8}
        Bits per digit.
    window : {"signed", "unsigned"}
    signed : bool
        Whether the integers are signed.
    zero_point : int or int32 (M,)
        The integer that stands for 0, of all or of each row.
    """

    lsb: npt.NDArray[np.uint8]
    pbm: npt.NDArray[np.uint8]
    msb: npt.NDArray[np.uint8]
    row_ptr: npt.NDArray[np.int32]
    shape: tuple[int, int]
    k: int
    window: str
    signed: bool = True
    zero_point: int | npt.NDArray[np.int32] = 0

    @classmethod
    def from_planes(
        cls,
        lsb: npt.NDArray[np.uint8],
        pbm: npt.NDArray[np.uint8],
        msb: npt.NDArray[np.uint8],
        row_ptr: npt.NDArray[np.int32],
        *,
        shape: tuple[int, int],
        k: int = 4,
        window: str = "signed",
        signed: bool = True,
        zero_point: Any = 0,
    ) -> SlicedTensor:
        """Take planes that a kernel or a simulator wrote, after checking that they fit together.

        `msb` may be longer than needed (a buffer of worst-case size): it is cut at ``row_ptr[M]``.
        The canonical form is demanded: padding bits are zero and no stored digit is zero, so that
        equal matrices have equal planes.

        Raises
        ------
        InvalidArgumentError
            If `k`, `window`, `shape`, the zero point, a dtype or a plane's shape is wrong.
        QuantizationError
            If the planes contradict each other: pointers that fall or do not match the bitmap, set
            padding bits, stored zeros, a value outside of 2k bits.
        """
        require_digit_bits(k)
        rows, columns = shape
        if rows < 0 or columns < 1:
            raise InvalidArgumentError(f"shape must be (M >= 0, K >= 1), got {shape}")
        _, zero_point = _digits(k, window, signed, zero_point, rows)
        expected: tuple[tuple[str, Any, type, tuple[int, ...]], ...] = (
            ("lsb", lsb, np.uint8, (rows, plane_bytes(columns, k))),
            ("pbm", pbm, np.uint8, (rows, plane_bytes(columns, 1))),
            ("msb", msb, np.uint8, (np.size(msb),)),
            ("row_ptr", row_ptr, np.int32, (rows + 1,)),
        )
        for name, plane, dtype, plane_shape in expected:
            if not isinstance(plane, np.ndarray) or plane.dtype != dtype:
                raise InvalidArgumentError(f"{name}: expected a NumPy array of {np.dtype(dtype)}")
            if plane.shape != plane_shape:
                raise InvalidArgumentError(
                    f"{name}: expected shape {plane_shape} for {shape}, k = {k}, got {plane.shape}"
                )
        _check_row_ptr(row_ptr, msb.size)
        stream = msb[: row_ptr[-1]]
        sliced = cls(lsb, pbm, stream, row_ptr, (rows, columns), k, window, signed, zero_point)
        _check_planes(sliced)
        return sliced

    @property
    def digits(self) -> Digits:
        """How the integers were split; what depends on the rows is (M, 1)."""
        return _digits(self.k, self.window, self.signed, self.zero_point, self.shape[0])[0]

    def decode(self) -> npt.NDArray[Any]:
        """Return the integers (M, K), of the dtype that `encode` takes."""
        return self.digits.read(self.lsb_digits(), self.msb_digits())

    def lsb_digits(self) -> npt.NDArray[np.uint8]:
        """Return the dense plane of stored (biased) low digits: uint8 (M, K)."""
        return unpack_digits(self.lsb, self.k, self.shape[1])

    def msb_digits(self) -> npt.NDArray[Any]:
        """Return the dense plane of high digits, zeros included: int8 (M, K), int16 for k = 8."""
        mask, row_nnz = self.mask(), self.row_nnz()
        dense = np.zeros(self.shape, dtype=DIGIT[self.k])
        stream = unpack_digits(self.msb, self.k, self.msb.size * 8 // self.k)
        nibbles = stream[stream_positions(row_nnz, self.row_ptr[:-1], self.k)]
        digits = self.digits
        if not isinstance(digits.zero_point, int):
            digits = replace(digits, zero_point=np.repeat(self.zero_point, row_nnz))
        dense[mask] = digits.decode(nibbles)
        return dense

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return the precision bitmap unpacked: bool (M, K), true where an MSB digit is stored."""
        bits = np.unpackbits(self.pbm, axis=1, count=self.shape[1], bitorder="little")
        return bits.view(np.bool_)

    def row_nnz(self) -> npt.NDArray[np.int32]:
        """Return the number of stored MSB digits per row: int32 (M,)."""
        return np.asarray(np.count_nonzero(self.mask(), axis=1), dtype=np.int32)

    def group_sums(self, group_size: int) -> npt.NDArray[np.int32]:
        """Sum ``q - zero_point`` over groups of columns: int32 (M, K / group_size).

        Raises InvalidArgumentError if K is not a multiple of `group_size`.
        """
        rows, columns = self.shape
        if group_size < 1 or columns % group_size:
            raise InvalidArgumentError(
                f"K = {columns} is not a multiple of group_size {group_size}"
            )
        centred = self.decode().astype(np.int32) - self.digits.zero_point
        grouped = centred.reshape(rows, columns // group_size, group_size)
        return np.asarray(grouped.sum(axis=2, dtype=np.int32))

    @property
    def msb_sparsity(self) -> float:
        """Share of elements whose MSB digit is zero, 0 to 1; 1 for a matrix without rows."""
        mask = self.mask()
        return 1.0 - int(np.count_nonzero(mask)) / mask.size if mask.size else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of all that lies in memory: both planes, the bitmap and the row pointers."""
        return self.lsb.nbytes + self.pbm.nbytes + self.msb.nbytes + self.row_ptr.nbytes


def encode(
    q: npt.NDArray[Any],
    *,
    k: int = 4,
    window: str = "signed",
    zero_point: Any = 0,
    name: str = "activation",
) -> SlicedTensor:
    """Split 2k-bit integers into planes; exact for every value of their type.

    Parameters
    ----------
    q : int8 or uint8 (M, K), for k = 2 of 4 bits; int16 or uint16 for k = 8
        The integers, K innermost. M = 0 is legal.
    k : {2, 4, 8}
        Bits per digit.
    window : {"signed", "unsigned"}
    zero_point : int or integers (M,) or (M, 1)
        The integer that stands for 0, of all or of each row.
    name : str
        For error messages.

    Raises
    ------
    InvalidArgumentError
        If `k` or `window` is not known, or a zero point is out of range.
    QuantizationError
        If dtype, rank or value range do not fit, or if K = 0.
    """
    lsb_digit, msb_digit, zero = _split(q, k, window, zero_point, name)
    rows, columns = q.shape
    digits, _ = _digits(k, window, q.dtype.kind == "i", zero_point, rows)
    mask = msb_digit != 0
    row_nnz = np.count_nonzero(mask, axis=1)
    offsets = np.concatenate(([0], np.cumsum(_row_bytes(row_nnz, k))))
    if offsets[-1] > INT32_MAX:
        raise QuantizationError(
            f"{name}: the MSB stream of {offsets[-1]} bytes exceeds int32 offsets"
        )
    row_ptr = offsets.astype(np.int32)
    stream = np.zeros(int(offsets[-1]) * 8 // k, dtype=np.uint8)
    stream[stream_positions(row_nnz, row_ptr[:-1], k)] = digits.code(msb_digit)[mask]
    return SlicedTensor(
        lsb=pack_digits(lsb_digit, k),
        pbm=np.packbits(mask, axis=1, bitorder="little"),
        msb=pack_digits(stream, k),
        row_ptr=row_ptr,
        shape=(rows, columns),
        k=k,
        window=window,
        signed=q.dtype.kind == "i",
        zero_point=zero,
    )


def encode_digits(
    q: npt.NDArray[Any], k: int = 4, window: str = "signed", *, zero_point: Any = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """Split into dense digit planes, nothing packed or compressed.

    Parameters and errors are those of `encode`.

    Returns
    -------
    lsb_digit : uint8 (M, K)
        Stored (biased) low digits.
    msb_digit : int8 (M, K), int16 for k = 8
        High digits; ``q - centre = 2^k * msb_digit + lsb_digit - bias``, see `Digits`.
    """
    lsb_digit, msb_digit, _ = _split(q, k, window, zero_point, "activation")
    return lsb_digit, msb_digit


def bias_term(
    w: npt.NDArray[np.int8], k: int, window: str, *, signed: bool = True, zero_point: int = 0
) -> npt.NDArray[np.int32]:
    """What sums over stored digits lack: ``Digits.offset * sum_k w[n, k]``.

    Of weights int8 (N, K) it is int32 (N,). With it the sum is that of ``(q - zero_point) * w``;
    for the unsigned window and zero point 0 it is zero.

    Raises
    ------
    QuantizationError
        If `w` is no int8 matrix, or if the constant does not fit int32.
    """
    require_matrix(w, ("int8",), "weight")
    offset = window_of(window).digits(k, signed=signed, zero_point=zero_point).offset
    return to_int32(offset * w.sum(axis=1, dtype=np.int64))


def dot(sliced: SlicedTensor, w: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Multiply by weights, from the planes: ``2^k * (msb . w) + lsb . w + offset * sum w``.

    Parameters
    ----------
    sliced : SlicedTensor (M, K)
        Activations.
    w : int8 (N, K)
        Weights, one row per output channel.

    Returns
    -------
    int32 (M, N)
        Equal to the product of the decoded integers, less their zero point, and the weights.

    Raises
    ------
    QuantizationError
        If `w` does not fit, or if an element of the result exceeds int32.
    """
    lsb_pass = int_matmul(sliced.lsb_digits(), w).astype(np.int64)
    msb_pass = int_matmul(sliced.msb_digits(), w).astype(np.int64)
    channel_sums = w.sum(axis=1, dtype=np.int64)
    return to_int32(lsb_pass + (msb_pass << sliced.k) + sliced.digits.offset * channel_sums)


def _digits(
    k: int, window: str, signed: bool, zero_point: Any, rows: int
) -> tuple[Digits, int | npt.NDArray[np.int32]]:
    """The arithmetic for a matrix of so many rows, and its zero point: one, or int32 (M,)."""
    given = np.asarray(zero_point)
    if given.ndim and given.shape not in ((rows,), (rows, 1)):
        raise InvalidArgumentError(
            f"zero_point: one integer or one for each of {rows} rows is needed, got shape "
            f"{given.shape}"
        )
    column = given.reshape(rows, 1) if given.ndim else given
    digits = window_of(window).digits(k, signed=signed, zero_point=column)
    found = digits.zero_point
    return digits, found if isinstance(found, int) else found.reshape(rows)


def _split(
    q: npt.NDArray[Any], k: int, window: str, zero_point: Any, name: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any], int | npt.NDArray[np.int32]]:
    """Check and split: dense stored low digits, dense high digits, the zero point."""
    require_digit_bits(k)
    window_of(window)
    require_matrix(q, (CONTAINER[k], container(k, signed=False)), name)
    signed = q.dtype.kind == "i"
    low, high = bounds(k, signed)
    if k == 2 and (outside := (q < low) | (q > high)).any():
        at = first_position(outside)
        raise QuantizationError(
            f"{name}: value {int(q[at])} at {list(at)} is out of [{low}, {high}], the range of "
            f"k = {k}"
        )
    digits, zero = _digits(k, window, signed, zero_point, q.shape[0])
    stored = digits.store(q)
    lsb_digit = (stored & stored.dtype.type(2**k - 1)).astype(np.uint8)
    return lsb_digit, digits.digit(lsb_digit, stored >> stored.dtype.type(k)), zero


def _row_bytes(row_nnz: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    """Bytes of each row of the MSB stream, from its number of stored digits: int64 (M,)."""
    return -(-row_nnz.astype(np.int64) * k // 8)


def stream_positions(
    row_nnz: npt.NDArray[Any], row_begins: npt.NDArray[Any], k: int
) -> npt.NDArray[np.int64]:
    """Digit index in the padded MSB stream of each stored digit, row by row.

    `row_nnz` and `row_begins` (M,) are the digits of each row and the byte where they begin.
    """
    counts = row_nnz.astype(np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    row_shift = row_begins.astype(np.int64) * (8 // k) - (ends - counts)
    return np.asarray(np.arange(total, dtype=np.int64) + np.repeat(row_shift, counts))


def _check_row_ptr(row_ptr: npt.NDArray[np.int32], capacity_bytes: int) -> None:
    falling = np.diff(row_ptr) < 0
    if row_ptr[0] != 0 or falling.any():
        raise QuantizationError("row_ptr must start at 0 and never fall")
    if int(row_ptr[-1]) > capacity_bytes:
        raise QuantizationError(
            f"row_ptr ends at byte {int(row_ptr[-1])}, the MSB stream has only {capacity_bytes}"
        )


def _check_planes(sliced: SlicedTensor) -> None:
    """Hold planes of right shapes to the canonical form."""
    k, columns = sliced.k, sliced.shape[1]
    for name, plane, bits in (("lsb", sliced.lsb, k), ("pbm", sliced.pbm, 1)):
        used_bits = columns * bits % 8
        if used_bits and (plane[:, -1] >> used_bits).any():
            raise QuantizationError(f"{name}: bits are set behind column {columns - 1}")
    row_nnz = sliced.row_nnz()
    wrong = np.diff(sliced.row_ptr) != _row_bytes(row_nnz, k)
    if wrong.any():
        row = first_position(wrong)[0]
        raise QuantizationError(
            f"row {row}: row_ptr gives {int(np.diff(sliced.row_ptr)[row])} bytes of MSB digits, "
            f"the bitmap has {int(row_nnz[row])} digits of {k} bits"
        )
    stream = unpack_digits(sliced.msb, k, sliced.msb.size * 8 // k)
    stored = np.zeros(stream.size, dtype=np.bool_)
    stored[stream_positions(row_nnz, sliced.row_ptr[:-1], k)] = True
    if (stream[~stored] != 0).any():
        raise QuantizationError("msb: bits are set in the padding of a row")
    # Code 0 is a digit only in rows whose largest one shares its nibble.
    shares = np.broadcast_to(np.asarray(sliced.digits.threshold) > 0, (sliced.shape[0], 1))
    if ((stream[stored] == 0) & ~np.repeat(shares[:, 0], row_nnz)).any():
        raise QuantizationError("msb: a stored digit is zero, its bitmap bit should be clear")
    # The smallest and the largest digit do not go with every low digit.
    digits = sliced.digits
    low, high = digits.bounds
    wide = sliced.msb_digits().astype(np.int32) << k
    wide += sliced.lsb_digits() - np.asarray(digits.bias - digits.centre, np.int32)
    outside = (wide < low) | (wide > high)
    if outside.any():
        at = list(first_position(outside))
        raise QuantizationError(f"the value at {at} does not fit {2 * k} bits")
