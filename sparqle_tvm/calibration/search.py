"""Choose factors for all encodings with one Lagrange multiplier.

For every group of channels that can have a factor of its own, and for every factor, calibration
gives the expected loss C and the stored MSB digits N (each counts the multiply-accumulates of its
channel). The choice minimises ``sum C + multiplier * sum N``, which splits into one small minimum
per group; the multiplier is bisected until the wanted sparsity or loss is met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.statistics import FACTORS, UNCHANGED, WINDOW_INDEX, EncodingStatistics
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError, require_known
from sparqle_tvm.numerics import EncodingChoice

Importance = Literal["weights", "fisher"]
"""``weights``: the weights' column energy. ``fisher``: squared gradients, if collected."""

_BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class Selection:
    """Factors for all encodings, and what calibration expects of them.

    Attributes
    ----------
    choices : dict of str to EncodingChoice
        By label, for ``passes.RaiseMsbSparsity``; encodings that stay as they are have none.
    windows : dict of str to str
        Window of each encoding, for ``passes.ChooseWindow``.
    options : dict of str to int64 (U,)
        Place in `FACTORS` of each group's factor.
    multiplier : float
        Price of all digits stored, in units of loss; 0: nothing was chosen.
    loss : float
        Expected loss above that of no factors, in the importance's unit (see `Search`).
    msb_sparsity : float
        Expected MAC-weighted share of zero MSBs, 0 to 1.
    densities : dict of str to float
        Expected share of stored MSBs of each encoding, 0 to 1.
    """

    choices: dict[str, EncodingChoice]
    windows: dict[str, str]
    options: dict[str, npt.NDArray[np.int64]]
    multiplier: float
    loss: float
    msb_sparsity: float
    densities: dict[str, float]


class Search:
    """The options of all encodings with their expected loss and stored digits.

    Parameters
    ----------
    calibration : Calibration
        Statistics of the model.
    importance : {"weights", "fisher"}
        What an error counts. ``weights``: the error that a layer's outputs get, relative to the
        residual stream that they end up in, summed over layers; on the models measured that is
        about the loss in nats per token. ``fisher``: half of the squared error times the squared
        gradient, an estimate of the same from gradients.
    windows : mapping of label to window, optional
        Windows of the encodings; by default those that calibration found better.

    Raises
    ------
    CalibrationError
        If gradients are asked for and were not collected.
    """

    def __init__(
        self,
        calibration: Calibration,
        *,
        importance: Importance = "weights",
        windows: Mapping[str, str] | None = None,
    ) -> None:
        require_known("importance", importance, get_args(Importance))
        if importance == "fisher" and not calibration.has_fisher:
            raise CalibrationError(
                "the calibration has no gradients; calibrate with --importance fisher (needs "
                "torch), or use the importance of the weights"
            )
        self.calibration = calibration
        self.importance = importance
        self.windows = {**calibration.windows(), **(windows or {})}
        macs, shares = sum(e.macs for e in calibration), stream_shares(calibration)
        weights = [_channel_weights(e, importance, shares[e.label]) for e in calibration]
        tables = [self._table(e, w, macs) for e, w in zip(calibration, weights, strict=True)]
        # One column for each group of the model that has a factor of its own.
        self._loss = np.concatenate([loss for loss, _ in tables], axis=1)
        self._stored = np.concatenate([stored for _, stored in tables], axis=1)
        self._ends = np.cumsum([loss.shape[1] for loss, _ in tables])

    def _table(
        self, e: EncodingStatistics, weights: npt.NDArray[np.float64], macs: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Loss and share of all MACs whose MSB is stored, (F, U) or (F, 1) if tied."""
        loss = e.by_unit(e.error * weights) / e.rows
        stored = e.stored[WINDOW_INDEX[self.windows[e.label]]] / e.rows * e.macs_per_column / macs
        if e.tied or not e.qmax:
            loss, stored = loss.sum(axis=1, keepdims=True), stored.sum(axis=1, keepdims=True)
        if not e.qmax:  # The scale of what arrives quantized is not ours to change.
            loss[np.arange(len(FACTORS)) != UNCHANGED] = np.inf
        return loss, stored

    def at(self, multiplier: float) -> Selection:
        """The choice at one price of stored digits."""
        best = self._best(multiplier)
        choices: dict[str, EncodingChoice] = {}
        options: dict[str, npt.NDArray[np.int64]] = {}
        densities: dict[str, float] = {}
        for e, part in zip(self.calibration, np.split(best, self._ends[:-1]), strict=True):
            options[e.label] = np.broadcast_to(part, (e.units,)).astype(np.int64)
            stored = e.stored[WINDOW_INDEX[self.windows[e.label]]]
            digits = int(stored[options[e.label], np.arange(e.units)].sum())
            densities[e.label] = digits / (e.rows * e.columns)
            if (part != UNCHANGED).any():
                columns = np.arange(e.columns) // e.unit
                choices[e.label] = EncodingChoice(FACTORS[options[e.label][columns]])
        loss, sparsity = self._expect(best)
        return Selection(
            choices, dict(self.windows), options, multiplier, loss, sparsity, densities
        )

    def _best(self, multiplier: float) -> npt.NDArray[np.int64]:
        """The best option of every group; without a price, no factors at all."""
        if not multiplier:
            return np.full(self._loss.shape[1], UNCHANGED)
        return np.asarray((self._loss + multiplier * self._stored).argmin(axis=0))

    def _expect(self, best: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Expected loss above that of no factors, and MSB sparsity."""
        place = np.arange(len(best))
        loss = (self._loss[best, place] - self._loss[UNCHANGED]).sum()
        return float(loss), 1.0 - float(self._stored[best, place].sum())

    def lossless(self) -> Selection:
        """Windows only: no factor, so that the result is that of int8."""
        return self.at(0.0)

    @property
    def most_sparse(self) -> Selection:
        """The sparsest choice that there is."""
        return self.at(1e30)

    def for_sparsity(self, target: float) -> Selection:
        """The choice of least expected loss that is as sparse as wanted.

        Parameters
        ----------
        target : float
            MAC-weighted share of zero MSBs, 0 to 1.

        Raises
        ------
        InvalidArgumentError
            If it is not between 0 and 1.
        CalibrationError
            If no choice is that sparse; names the sparsest.
        """
        if not 0 < target < 1:
            raise InvalidArgumentError(f"MSB sparsity must be between 0 and 1, got {target}")
        lossless, most = self.lossless(), self.most_sparse
        if lossless.msb_sparsity >= target:
            return lossless
        if most.msb_sparsity < target:
            raise CalibrationError(
                f"no choice of scales gives an MSB sparsity of {target:.1%}; the sparsest gives "
                f"{most.msb_sparsity:.1%}"
            )
        return self._bisect(lambda _, sparsity: sparsity >= target)[1]

    def for_loss(self, loss: float) -> Selection:
        """The sparsest choice whose expected loss is at most `loss` above that of no factors."""
        if self.most_sparse.loss <= loss:
            return self.most_sparse
        return self._bisect(lambda expected, _: expected > loss)[0]

    def _bisect(self, enough: Callable[[float, float], bool]) -> tuple[Selection, Selection]:
        """The choices right below and right above the price from which `enough` holds.

        `enough` is asked with the expected loss and the MSB sparsity.
        """
        low, high = np.log(1e-12), np.log(1e12)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if enough(*self._expect(self._best(float(np.exp(middle))))):
                high = middle
            else:
                low = middle
        return self.at(float(np.exp(low))), self.at(float(np.exp(high)))


def stream_shares(calibration: Calibration) -> dict[str, float]:
    """How an error in an encoding's outputs relates to the residual stream, by label.

    1 where the outputs are added to the stream. Elsewhere the error is relative to a branch that
    a later dense op adds to the stream; then it is that branch's share of the stream's energy, or
    the median share if that is more: what a branch adds on average says little of single tokens.
    A model without streams has 1 everywhere.
    """
    own = {e.label: [d.share / e.rows for d in e.dense if d.stream] for e in calibration}
    typical = float(np.median([max(s) for s in own.values() if s])) if any(own.values()) else 1.0
    shares, coming = {}, typical
    for label in reversed(own):
        coming = max(own[label]) if own[label] else coming
        shares[label] = 1.0 if own[label] else max(coming, typical)
    return shares


def _channel_weights(
    e: EncodingStatistics, importance: Importance, share: float
) -> npt.NDArray[np.float64]:
    """What the error of each input channel counts: (K,)."""
    if importance == "fisher" and e.fisher is not None:
        return e.fisher / e.rows / 2
    weights = np.zeros(e.columns)
    for d in e.dense:
        weights += d.column_energy * (d.gain / e.rows) * (1.0 if d.stream else share)
    return weights
