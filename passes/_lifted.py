"""Where a function takes its factors and bands from, once they are parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics import EncodingChoice, group_factors, window_limits
from sparqle_tvm.numerics.choice import LARGEST_FACTOR
from sparqle_tvm.numerics.dense import EXACT_SUM_LIMIT, exact_sum_bound
from sparqle_tvm.numerics.window import largest_integer
from sparqle_tvm.passes._choosable import Choosable

LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class LiftedEncoding:
    """Where a function takes the choice of one encoding from, and what suits it.

    Attributes
    ----------
    label : str
        Name of the encoding.
    start, columns : int
        First of its K columns in the parameters ``factors`` and ``bands``, and K.
    k : int
        Bits of a digit.
    window : {"signed", "unsigned"}
        Window of the encoding.
    group_size : int
        Columns that have to share a factor.
    largest_factor : float
        Above it, a scale of the weights would exceed float16, or float64 sums could round.
    """

    label: str
    start: int
    columns: int
    k: int
    window: str
    group_size: int
    largest_factor: float

    def check(self, choice: EncodingChoice) -> None:
        """Refuse a choice that does not suit the encoding: InvalidArgumentError."""
        choice.check(self.columns, self.k, self.window, self.label)
        if choice.factors is None:
            return
        group_factors(choice.factors, self.columns, self.group_size, self.label)
        largest = float(choice.factors.max())
        if largest > self.largest_factor:
            raise InvalidArgumentError(
                f"{self.label}: the factor {largest:g} is too large for the scales of its weights; "
                f"{self.largest_factor:g} is possible"
            )


def choice_arguments(
    lifted: list[LiftedEncoding], choices: Mapping[str, EncodingChoice]
) -> tuple[np.ndarray, np.ndarray]:
    """What a lifted function takes behind its own arguments.

    Parameters
    ----------
    lifted : list of LiftedEncoding
        The encodings of the function.
    choices : mapping of label to EncodingChoice
        Encodings without one get factors of 1 and empty bands, which change nothing.

    Returns
    -------
    factors : float32 (F,)
        F is the sum of all K.
    bands : int16 (2, F)
        Lower and upper bands.

    Raises
    ------
    InvalidArgumentError
        If a choice does not suit its encoding.
    """
    factors, bands = [], []
    for encoding in lifted:
        choice = choices.get(encoding.label, EncodingChoice())
        encoding.check(choice)
        factors.append(choice.factors_or_ones(encoding.columns))
        empty = np.array(window_limits(encoding.k, encoding.window), np.int16)
        found = choice.bands
        bands.append(
            np.repeat(empty[:, None], encoding.columns, axis=1)
            if found is None
            else found.astype(np.int16)
        )
    return np.concatenate(factors), np.concatenate(bands, axis=1)


def describe_lifted(encoding: Choosable, start: int) -> LiftedEncoding:
    """Describe an encoding whose columns begin at `start` of the parameters."""
    op, largest = encoding.op, LARGEST_FACTOR
    for weights in encoding.weights:
        if not weights.group_size:
            continue
        parts = [weights.scale, *([] if weights.minimum is None else [weights.minimum])]
        peak = max(float(np.abs(part.astype(np.float64)).max()) for part in parts)
        bound = exact_sum_bound(weights, 2 * largest_integer(op.k)).max()
        # A little less than the limits, so that no rounding of the quotients can exceed them.
        for limit, value in ((LARGEST_FLOAT16, peak), (EXACT_SUM_LIMIT, float(bound))):
            largest = min(largest, 0.999 * limit / value) if value else largest
    return LiftedEncoding(
        op.label,
        start,
        op.columns,
        op.k,
        op.window,
        math.lcm(*encoding.group_sizes),
        largest,
    )
