"""Digits to expect where none are known yet: what the compiler decides by.

Bitmaps are not known at compile time. So tiles, and the rows that are sorted together, are chosen
with digits as uneven as those of a language model: every row's share of stored digits drawn from a
normal distribution of mean `TYPICAL_DENSITY` and standard deviation `TYPICAL_DEVIATION`, and its
digits anywhere among its columns. That is what SmolLM2-135M has on average over its layer types
(512 tokens of prose, signed window: means 0.09 to 0.53, deviations 0.05 to 0.10). A choice that is
wrong for a tensor costs cycles, never exactness; buffers hold every digit.
"""

from __future__ import annotations

import numpy as np

from sparqle_tvm.numerics.row_nnz import RowNnz

TYPICAL_DENSITY = 0.31
TYPICAL_DEVIATION = 0.1
_SEED = 0


def typical_digits(
    rows: int, in_features: int, unit: int, density: float = TYPICAL_DENSITY
) -> RowNnz:
    """Digits to expect before any are seen, see the module; the same at every call.

    Parameters
    ----------
    rows, in_features : int
        M and K.
    unit : int
        Columns counted together.
    density : float
        Mean share of stored digits, where it is known.
    """
    rng = np.random.default_rng(_SEED)
    deviation = min(TYPICAL_DEVIATION, density * TYPICAL_DEVIATION / TYPICAL_DENSITY)
    share = np.clip(rng.normal(density, deviation, size=(rows, 1)), 0, 1)
    return RowNnz.drawn(rng, share[:, 0], in_features, unit)


def rounded_density(density: float) -> float:
    """The share of stored digits that choices are made by: nearly equal ones make equal choices."""
    return round(density * 20) / 20
