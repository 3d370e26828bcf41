"""How keys and values are stored: as plain integers, or in two planes; and what that takes.

In planes (digits of 4 bits) an element takes ``5 + 4 * (1 - s)`` bits, s the share of zero high
digits in the window around 0: exact for every int8, and smaller than 8 bits from s > 0.25 on. A
factor on the scale leaves fewer levels, 127 / factor, so more high digits are zero; that is lossy,
and the same values would fit fewer plain bits: 6 for the factor 4, 5 for 8. Beside the integers
lies a float32 scale per token and head in every case.

A head is stored token behind token (`store_rows`): plain, a row of integers padded to a byte; in
planes LSB digits, bitmap and stored MSB digits of the token, each padded to a byte. So a token is
appended and nothing before it is written again, and tokens side by side are one piece of memory.
Rows in planes differ in length: pointers of `POINTER_BYTES` say where those begin, of keys, which
are read in chunks, one for `KEY_GROUP` tokens, of values, which may be read one by one, one each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.attention import HEAD_LEVELS
from sparqle_tvm.numerics.integers import plane_bytes
from sparqle_tvm.numerics.slicing import SlicedTensor, encode

DIGIT_BITS = 4

CacheName = Literal["key", "value"]

POINTER_BYTES = 4
KEY_GROUP = 8
"""Tokens of keys in planes that one pointer is stored for."""


@dataclass(frozen=True)
class HeadStorage:
    """How the keys, or the values, of a layer are stored.

    Attributes
    ----------
    levels : int
        Largest magnitude of an integer, 1 to 127.
    planes : str
        A letter per key head, ``p`` for planes, ``-`` for plain integers; a single letter holds
        for all of them.
    """

    levels: int = HEAD_LEVELS
    planes: str = "-"

    def __post_init__(self) -> None:
        """Refuse levels out of range and other letters: InvalidArgumentError."""
        if not 1 <= self.levels <= HEAD_LEVELS:
            raise InvalidArgumentError(f"levels={self.levels} is not in 1..{HEAD_LEVELS}")
        if not self.planes or {*self.planes} - {"p", "-"}:
            raise InvalidArgumentError(
                f"planes={self.planes!r}: a letter per key head is needed, p for planes, - for none"
            )

    @property
    def plain_bits(self) -> int:
        """Bits of a plain integer."""
        return math.ceil(math.log2(2 * self.levels + 1))

    def in_planes(self, head: int) -> bool:
        """Whether a key head is stored in planes."""
        return self.planes[head % len(self.planes)] == "p"

    def mean_bits(self, msb_sparsity: float, head: int = 0) -> float:
        """Bits per element of a head with that share of zero high digits, without the scale."""
        if not self.in_planes(head):
            return self.plain_bits
        return DIGIT_BITS + 1 + DIGIT_BITS * (1 - msb_sparsity)


@dataclass(frozen=True)
class KvStorage:
    """How the keys and the values of a layer are stored."""

    keys: HeadStorage = HeadStorage()
    values: HeadStorage = HeadStorage()


PLAIN_INT8 = KvStorage()


def parse_kv(text: str) -> KvStorage:
    """How keys and values are stored, as a user says it.

    Parameters
    ----------
    text : str
        ``int8``, ``int6``, ``int5``, ``int4``: plain integers. ``planes``: keys in planes, values
        plain, as is best for most models (exact). ``planes:F`` and ``planes:F,G``: keys in planes
        with the factor F, values in planes with the factor G (lossy if a factor is above 1).

    Raises
    ------
    InvalidArgumentError
        If it is something else, as ``planes:1%``, which a calibration makes one of these.
    """
    kind, _, factors = text.partition(":")
    if kind in ("int8", "int6", "int5", "int4") and not factors:
        storage = plain(int(kind[3:]))
        return KvStorage(storage, storage)
    if kind == "planes" and factors.endswith("%"):
        raise InvalidArgumentError(
            f"{text!r} is a budget, for which a calibration chooses factors: sparqle run and "
            "sparqle generate take it with --calibration"
        )
    try:
        numbers = [float(each) for each in (factors or "1").split(",")]
    except ValueError:
        numbers = []
    if kind != "planes" or not 1 <= len(numbers) <= 2 or text.endswith(":"):
        raise InvalidArgumentError(
            f"{text!r} is no storage of keys and values; known: int8, int6, int5, int4, planes, "
            "planes:F with a factor of keys, planes:F,G with one of values, too"
        )
    keys, *values = map(with_factor, numbers)
    return KvStorage(keys, values[0] if values else plain(8))


def with_factor(factor: float) -> HeadStorage:
    """Planes of integers whose scale has a factor.

    Raises InvalidArgumentError unless it is from 1 to 127.
    """
    if not 1 <= factor <= HEAD_LEVELS:
        raise InvalidArgumentError(f"a factor of {factor:g} is not from 1 to {HEAD_LEVELS}")
    return HeadStorage(math.floor(HEAD_LEVELS / factor), "p")


def plain(bits: int) -> HeadStorage:
    """Plain integers of 2 to 8 bits."""
    if not 2 <= bits <= 8:
        raise InvalidArgumentError(f"{bits} bits: plain keys and values have 2 to 8")
    return HeadStorage(2 ** (bits - 1) - 1, "-")


def prefers_planes(what: CacheName, head_dim: int, msb_sparsity: float) -> bool:
    """Whether rows of a head take fewer bytes in planes than as int8, pointers and all."""
    digits = (1 - msb_sparsity) * head_dim * DIGIT_BITS / 8
    # Digits of a row are padded to a byte, by half a digit on average.
    padding = DIGIT_BITS / 8 / 2 if digits else 0
    pointers = POINTER_BYTES / (KEY_GROUP if what == "key" else 1)
    return dense_bytes(head_dim) + digits + padding + pointers < row_bytes(head_dim)


def row_bytes(head_dim: int, bits: int = 8) -> int:
    """Bytes of a plain row."""
    return plane_bytes(head_dim, bits)


def dense_bytes(head_dim: int) -> int:
    """Bytes of a row in planes, its stored MSB digits aside."""
    return plane_bytes(head_dim, DIGIT_BITS) + plane_bytes(head_dim, 1)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Keys, or values, of a head as they lie in memory.

    Attributes
    ----------
    stream : uint8 (bytes,)
        Row behind row.
    begins : int64 (T + 1,)
        Where rows begin, and the end.
    """

    stream: npt.NDArray[np.uint8]
    begins: npt.NDArray[np.int64]


def store_rows(values: npt.NDArray[np.int8], bits: int, in_planes: bool) -> StoredRows:
    """Lay out the rows (T, D) int8 of a head: in planes, or as plain integers of `bits` bits."""
    tokens, width = values.shape
    if not in_planes:
        size = row_bytes(width, bits)
        packed: npt.NDArray[np.uint8] = values.view(np.uint8)
        if bits < 8:
            codes = np.unpackbits(packed.reshape(tokens, width, 1), axis=2, bitorder="little")
            plain = codes[..., :bits].reshape(tokens, width * bits)
            packed = np.packbits(plain, axis=1, bitorder="little")
        return StoredRows(packed.reshape(-1), size * np.arange(tokens + 1, dtype=np.int64))
    planes = encode(np.ascontiguousarray(values), window="signed", name="heads")
    dense = np.concatenate([planes.lsb, planes.pbm], axis=1)
    begins = planes.row_ptr + dense.shape[1] * np.arange(tokens + 1, dtype=np.int64)
    stream = np.empty(int(begins[-1]), np.uint8)
    fixed = _fixed(begins, dense.shape[1])
    stream[fixed] = dense
    stream[_rest(stream.size, fixed)] = planes.msb
    return StoredRows(stream, begins)


def stored_digits(
    stream: npt.NDArray[np.uint8], begins: npt.NDArray[np.int64], head_dim: int
) -> npt.NDArray[np.int64]:
    """Stored MSB digits of every row in planes, by its bitmap: int64 (T,)."""
    first = begins[:-1, None] + plane_bytes(head_dim, DIGIT_BITS)
    bitmaps = stream[first + np.arange(plane_bytes(head_dim, 1))]
    return np.asarray(np.unpackbits(bitmaps, axis=1).sum(axis=1, dtype=np.int64))


def load_rows(
    stream: npt.NDArray[np.uint8],
    begins: npt.NDArray[np.int64],
    head_dim: int,
    bits: int,
    in_planes: bool,
) -> npt.NDArray[np.int8]:
    """Expand rows that `store_rows` laid out: (T, D) int8.

    Parameters
    ----------
    stream : uint8 (bytes,)
        The rows; `begins`, int64 (T + 1,), says where they begin in it, and where they end.
    head_dim, bits, in_planes
        As they were stored.

    Raises
    ------
    InvalidArgumentError, QuantizationError
        If these are no planes.
    """
    rows = stream[int(begins[0]) : int(begins[-1])]
    tokens = len(begins) - 1
    if not in_planes:
        table = rows.reshape(tokens, row_bytes(head_dim, bits))
        if bits == 8:
            return table.view(np.int8)
        codes = np.unpackbits(table, axis=1, count=head_dim * bits, bitorder="little")
        codes = codes.reshape(tokens, head_dim, bits)
        # The top bit is the sign of all above it.
        sign = np.repeat(codes[..., -1:], 8 - bits, axis=2)
        whole = np.packbits(np.concatenate([codes, sign], axis=2), axis=2, bitorder="little")
        return np.asarray(whole[..., 0].view(np.int8))
    low = plane_bytes(head_dim, DIGIT_BITS)
    fixed = _fixed(begins - begins[0], dense_bytes(head_dim))
    dense, msb = rows[fixed], rows[_rest(rows.size, fixed)]
    row_ptr = begins - begins[0] - dense_bytes(head_dim) * np.arange(tokens + 1)
    sliced = SlicedTensor.from_planes(
        np.ascontiguousarray(dense[:, :low]),
        np.ascontiguousarray(dense[:, low:]),
        msb,
        row_ptr.astype(np.int32),
        shape=(tokens, head_dim),
    )
    return np.asarray(sliced.decode(), np.int8)


def _fixed(begins: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Places (T, size) of what every row has."""
    return np.asarray(begins[:-1, None] + np.arange(size))


def _rest(size: int, fixed: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which bytes are not among those."""
    rest = np.ones(size, np.bool_)
    rest[fixed] = False
    return rest
