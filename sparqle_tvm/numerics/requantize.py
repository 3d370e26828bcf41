"""What the drain of a dense op makes of scaled sums: integers, with a bias and a second grid.

Every step rounds to float32 once: nothing is contracted to a fused multiply-add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

GRID_LIMIT = 2**16
"""Largest magnitude of integers between scales and bias: those of 16 bits, signed or not."""


@dataclass(frozen=True)
class Grid:
    """Integers that stand for floats, by one scale and zero point that are known.

    Attributes
    ----------
    scale : float
        Step of the grid, a float32; positive and finite.
    zero : int
        The integer that stands for 0.0.
    low, high : int
        Limits of the integers: behind a ReLU `low` is at least `zero`.
    """

    scale: float
    zero: int
    low: int
    high: int

    def quantize(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``min(max(round_half_even(x / scale) + zero, low), high)``, whole numbers in float32."""
        # A quotient that overflows float32 becomes infinite and is clipped like any large value.
        with np.errstate(over="ignore"):
            rounded = np.rint(x / np.float32(self.scale)) + np.float32(self.zero)
        return np.asarray(np.clip(rounded, np.float32(self.low), np.float32(self.high)))

    def dequantize(self, q: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``(q - zero) * scale`` in float32."""
        return (q - np.float32(self.zero)) * np.float32(self.scale)


def requantize(
    sums: npt.NDArray[np.float32],
    out: Grid,
    *,
    bias: npt.NDArray[np.float32] | None = None,
    mid: Grid | None = None,
) -> npt.NDArray[np.int32]:
    """What a drain that encodes makes of scaled sums; kernels and simulator match it bit for bit.

    In this order: on the grid `mid`, if there is one (quantized, and floats again); plus the bias;
    on the grid `out`. That is what QDQ graphs do where the result of a matmul is quantized before
    its bias is added, and without `mid` what they do where it is not.

    Parameters
    ----------
    sums : float32 (M, N)
        What `dense_reference` gives.
    out : Grid
        Of the result.
    bias : float32 (N,), optional
        Added to every row.
    mid : Grid, optional
        What sums lie on before the bias is added.

    Returns
    -------
    int32 (M, N)
    """
    x: Any = sums if mid is None else mid.dequantize(mid.quantize(sums))
    return out.quantize(x if bias is None else x + bias).astype(np.int32)
