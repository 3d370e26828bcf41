"""How keys and values are stored: as plain integers, or in two planes; and what that takes.

In planes (digits of 4 bits) an element takes ``5 + 4 * (1 - s)`` bits, s the share of zero high
digits in the window around 0: exact for every int8, and smaller than 8 bits from s > 0.25 on. A
factor on the scale leaves fewer levels, 127 / factor, so more high digits are zero; that is lossy,
and the same values would fit fewer plain bits: 6 for the factor 4, 5 for 8. Beside the integers
lies a float32 scale per token and head in every case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.attention import HEAD_LEVELS

DIGIT_BITS = 4


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
        If it is something else.
    """
    kind, _, factors = text.partition(":")
    if kind in ("int8", "int6", "int5", "int4") and not factors:
        storage = plain(int(kind[3:]))
        return KvStorage(storage, storage)
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


def prefers_planes(msb_sparsity: float) -> bool:
    """Whether planes take less than 8 bits: from a quarter of zero high digits on."""
    return with_factor(1).mean_bits(msb_sparsity) < plain(8).mean_bits(msb_sparsity)
