"""Budgets: how much a choice of scales may lose, or how sparse it has to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparqle_tvm.calibration.loss import MeasuredLoss
from sparqle_tvm.calibration.search import Search, Selection
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError

STORED_SHARES = (0.45, 0.32, 0.2)
"""Choices that are measured in calibration: what they store of the MSB digits stored without."""

Kind = Literal["none", "perplexity", "sparsity"]


@dataclass(frozen=True)
class Budget:
    """What a choice is held to.

    Attributes
    ----------
    kind : {"none", "perplexity", "sparsity"}
        ``none``: nothing may be lost (windows only). ``perplexity``: `value` is the largest
        relative increase. ``sparsity``: `value` is the MSB sparsity wanted.
    value : float
        0.01 is 1 %.
    """

    kind: Kind = "none"
    value: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no choice can be held to; InvalidArgumentError."""
        if self.kind == "perplexity" and not (math.isfinite(self.value) and self.value >= 0):
            raise InvalidArgumentError(
                f"the perplexity may increase by 0 or more, got {self.value:g}"
            )
        if self.kind == "sparsity" and not 0 < self.value < 1:
            raise InvalidArgumentError(f"MSB sparsity must be between 0 and 1, got {self.value:g}")

    def __str__(self) -> str:
        """A few words for tables."""
        if self.kind == "perplexity":
            return f"perplexity +{100 * self.value:.3g} % at most"
        return f"MSB sparsity {self.value:.1%}" if self.kind == "sparsity" else "no loss"


def parse_share(text: str) -> float:
    """Read ``1%``, ``1 %`` or ``0.01`` as 0.01; InvalidArgumentError if it is no number."""
    words = text.strip()
    try:
        value = float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        raise InvalidArgumentError(f"{text!r} is neither a share as 0.01 nor as 1%") from None
    if not math.isfinite(value):
        raise InvalidArgumentError(f"{text!r} is no finite number")
    return value


def nats_per_expected(measured: Sequence[MeasuredLoss]) -> tuple[float, float]:
    """Loss in nats per token for one unit of expected loss: a line through the origin.

    Weighted least squares; the points come from the same tokens, so their errors do not average
    out: the error of the slope is that of the best point.

    Returns
    -------
    slope, error : float
    """
    expected, nats, errors = np.array(
        [(m.expected, m.increase.nats, max(m.increase.nats_error, 1e-9)) for m in measured]
    ).T
    weights = 1.0 / errors**2
    slope = (weights * expected * nats).sum() / (weights * expected * expected).sum()
    return float(slope), float((errors / expected).min())


def choose(search: Search, budget: Budget, measured: Sequence[MeasuredLoss] = ()) -> Selection:
    """The sparsest choice within a budget.

    For a limit on perplexity, the expected loss is brought to nats with what was measured on
    calibration text, plus one standard error, so that chance does not spend what there is not.

    Parameters
    ----------
    search : Search
        The options.
    budget : Budget
        The limit.
    measured : sequence of MeasuredLoss
        Measurements with choices of the same search; needed for a limit on perplexity.

    Raises
    ------
    CalibrationError
        If the sparsity cannot be reached (tells the best), or nothing was measured.
    """
    if budget.kind == "none" or (budget.kind == "perplexity" and budget.value == 0):
        return search.lossless()
    if budget.kind == "sparsity":
        return search.for_sparsity(budget.value)
    usable = [m for m in measured if m.importance == search.importance and m.expected > 0]
    if not usable:
        raise CalibrationError(
            "the calibration has no measured losses to hold a limit on perplexity to (merged "
            "calibrations have none); calibrate again, or give an MSB sparsity"
        )
    slope, error = nats_per_expected(usable)
    return search.for_loss(math.log1p(budget.value) / (max(slope, 0.0) + error))
