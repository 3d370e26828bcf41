"""What factors and bands (`numerics.choice`) cost the encode step.

The vector unit multiplies the scale of a row by each column's factor before it divides, and
compares each element with both bands. Factors (4 bytes a column, one would do for a group) and
bands (2 bytes a column) are read from DRAM once per tensor and kept in the activation buffer,
where each row reads them. The array does nothing more: the weights' scales hold the factors.
"""

from __future__ import annotations

from dataclasses import dataclass

FACTOR_OPS = 1
"""Vector operations per element: the product of scale and factor."""

BAND_OPS = 2
"""Vector operations per element: one for each band, compare and select."""

FACTOR_BYTES, BAND_BYTES = 4, 2
"""Bytes per column."""


@dataclass(frozen=True)
class EncodeFactors:
    """Whether an encoding has factors, and bands."""

    factors: bool = False
    bands: bool = False

    @property
    def element_operations(self) -> int:
        """Operations of the vector unit per element, besides those of a plain encoding."""
        return FACTOR_OPS * self.factors + BAND_OPS * self.bands

    def read_bytes(self, k: int) -> int:
        """Bytes of the factors and bands of `k` columns."""
        return k * (FACTOR_BYTES * self.factors + BAND_BYTES * self.bands)


NO_FACTORS = EncodeFactors()
