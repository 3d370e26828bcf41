"""How many MSB digits the rows of an encoding store."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_order import sorted_rows

_POPCOUNT = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class RowNnz:
    """How many MSB digits each row stores, along K.

    What is derived from the counts is kept: they must not change.

    Attributes
    ----------
    counts : ndarray of integers, shape (m, ceil(in_features / unit))
        Stored MSB digits of each row in consecutive spans of `unit` columns.
    unit : int
        Columns of a span (the last span may be shorter).
    in_features : int
        Columns in all (K).
    """

    counts: NDArray[np.integer]
    unit: int
    in_features: int
    _derived: dict[tuple[int, ...], Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that spans and columns agree."""
        if self.counts.ndim != 2 or self.counts.shape[1] != math.ceil(self.in_features / self.unit):
            raise InvalidArgumentError(
                f"counts of shape {self.counts.shape} do not cover {self.in_features} columns "
                f"in spans of {self.unit}"
            )

    @classmethod
    def from_pbm(cls, pbm: NDArray[np.uint8], in_features: int, unit: int = 8) -> RowNnz:
        """Count the bits of a precision bitmap.

        Parameters
        ----------
        pbm : ndarray of uint8, shape (m, ceil(in_features / 8))
            Bit i of byte j is column 8j + i; 1 = an MSB digit is stored.
        in_features : int
            Columns in all (K).
        unit : {8, 1}
            Columns counted together.
        """
        if unit == 1:
            return cls(np.unpackbits(pbm, 1, in_features, "little"), 1, in_features)
        return cls(_POPCOUNT[np.asarray(pbm, dtype=np.uint8)], 8, in_features)

    @classmethod
    def drawn(
        cls, rng: np.random.Generator, shares: NDArray[np.floating], in_features: int, unit: int
    ) -> RowNnz:
        """Draw how many digits each row stores (binomial), without drawing a bitmap.

        `shares` (m,) are those of the stored digits of each row, 0 to 1.
        """
        counts = rng.binomial(span_widths(in_features, unit), shares[:, None])
        return cls(counts.astype(np.int32), unit, in_features)

    @property
    def rows(self) -> int:
        """Number of rows (tokens)."""
        return int(self.counts.shape[0])

    @property
    def total(self) -> int:
        """All stored MSB digits."""
        return int(self.counts.sum(dtype=np.int64))

    @property
    def msb_sparsity(self) -> float:
        """Share of MSB digits that are zero (not stored), 0 to 1."""
        return 1.0 - self.total / (self.rows * self.in_features)

    def last_row(self) -> RowNnz:
        """Only the last row: the token that is decoded."""
        return RowNnz(self.counts[-1:], self.unit, self.in_features)

    def sorted(self, block_rows: int, lanes: int) -> RowNnz:
        """The rows in the order of a balanced encoding, a step of a PE row having `lanes` digits.

        `block_rows` are sorted together, see `numerics.sorted_rows`.
        """
        key = (block_rows, lanes)
        if key not in self._derived:
            counts = self.counts[self.order(block_rows, lanes)]
            self._derived[key] = RowNnz(counts, self.unit, self.in_features)
        found: RowNnz = self._derived[key]
        return found

    def order(self, block_rows: int, lanes: int) -> NDArray[np.int32]:
        """The rows in that order: int32 (m,), arguments as in `sorted`."""
        digits = self.counts.sum(axis=1, dtype=np.int64)
        return sorted_rows(-(-digits // lanes), block_rows)

    def per_chunk(self, chunk: int) -> NDArray[np.int64]:
        """Sum the counts over chunks of columns: int64 (m, ceil(in_features / chunk)), read-only.

        A chunk is a multiple of `unit`, or at least `in_features`.
        """
        key = (min(chunk, self.in_features),)
        if key not in self._derived:
            self._derived[key] = self._sum_chunks(chunk)
            self._derived[key].setflags(write=False)
        found: NDArray[np.int64] = self._derived[key]
        return found

    def _sum_chunks(self, chunk: int) -> NDArray[np.int64]:
        if chunk >= self.in_features:
            return np.asarray(self.counts.sum(axis=1, keepdims=True, dtype=np.int64))
        if chunk % self.unit:
            raise InvalidArgumentError(
                f"a chunk of {chunk} columns is not a multiple of the {self.unit} counted together"
            )
        starts = np.arange(0, self.counts.shape[1], chunk // self.unit)
        return np.asarray(np.add.reduceat(self.counts, starts, axis=1, dtype=np.int64))


def span_widths(in_features: int, unit: int) -> NDArray[np.int64]:
    """Columns of each span of `unit` columns: int64 (ceil(in_features / unit),)."""
    return np.minimum(unit, in_features - np.arange(0, in_features, unit))
