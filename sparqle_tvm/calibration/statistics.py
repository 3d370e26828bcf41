"""What calibration keeps of each encoding: sums over tokens, and a sample of rows.

Nothing grows with the length of the text, and two collections over different texts can be merged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import CalibrationError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.numerics.window import WINDOWS

FACTORS = np.array([2.0 ** (i / 2) for i in range(-4, 9)], dtype=np.float32)
"""The factors that are tried on each group of channels: 1/4 to 16 in steps of sqrt(2)."""

UNCHANGED = 4
"""Place of the factor 1 in `FACTORS`."""

SAMPLED_ROWS = 128
"""Rows (tokens) whose counts are kept as they are."""

WINDOW_INDEX = {name: place for place, name in enumerate(WINDOWS)}


@dataclass(frozen=True, eq=False)
class DenseStatistics:
    """One dense op that reads an encoding of K columns.

    Attributes
    ----------
    label : str
        Name of the op.
    out_features, weight_bits, group_size : int
        N, bits of a weight, and channels that share a scale (0: all).
    column_energy : float32 (K,)
        Sum over the N output channels of the squared weight.
    gain : float
        Sum over tokens of what turns an error, weighed as `EncodingStatistics.error` is, into one
        relative to the energy of what this op's output disturbs.
    share : float
        Sum over tokens of the output's energy relative to that of the stream it is added to.
    stream : bool
        Whether the output is added to another tensor (a residual stream).
    """

    label: str
    out_features: int
    weight_bits: int
    group_size: int
    column_energy: npt.NDArray[np.float32]
    gain: float
    share: float
    stream: bool


@dataclass(frozen=True, eq=False)
class EncodingStatistics:
    """One encoding of K columns, in U units of neighbouring columns; F factors were tried.

    Attributes
    ----------
    label : str
        Name of the encoding.
    digest : str
        SHA-256 over its facts and the weights of all dense ops that read it.
    columns : int
        K.
    qmax : int
        Largest quantized magnitude; 0 if it arrives quantized, so that its scale is not ours.
    window : str
        Window of the module that was run.
    unit : int
        Columns of a unit: those that share a scale in all dense ops that read it.
    tied : bool
        Whether all units must have one factor (a dense op has one scale per output channel).
    rows : int
        Tokens seen.
    largest : float
        Largest magnitude of the input.
    error : float64 (F, K)
        Sum over tokens of the squared quantization error, each token's divided by the energy
        (sum of squares) of what the outputs of all dense ops disturb: the stream they are added
        to, or themselves.
    stored : int64 (2, F, U)
        Sum over tokens of the MSB digits that are not zero; signed and unsigned window.
    sample : uint8 or uint16 (S, F, U)
        The same in the signed window, of single tokens.
    fisher : float64 (K,) or None
        Sum over tokens of the squared gradient of the loss with respect to the input.
    dense : tuple of DenseStatistics
        The ops that read it.
    """

    label: str
    digest: str
    columns: int
    qmax: int
    window: str
    unit: int
    tied: bool
    rows: int
    largest: float
    error: npt.NDArray[np.float64]
    stored: npt.NDArray[np.int64]
    sample: npt.NDArray[np.unsignedinteger]
    fisher: npt.NDArray[np.float64] | None
    dense: tuple[DenseStatistics, ...]

    @property
    def units(self) -> int:
        """Number U of units."""
        return -(-self.columns // self.unit)

    @property
    def macs_per_column(self) -> int:
        """Multiply-accumulates of one element with the weights of all dense ops."""
        return sum(dense.out_features for dense in self.dense)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a token with all dense ops."""
        return self.macs_per_column * self.columns

    def by_unit(self, values: npt.NDArray[Any], dtype: Any = None) -> npt.NDArray[Any]:
        """Sum values (.., K) over the columns of each unit: (.., U)."""
        starts = np.arange(0, self.columns, self.unit)
        return np.asarray(np.add.reduceat(values, starts, axis=-1, dtype=dtype))

    def msb_sparsity(self, window: str) -> float:
        """Share of zero MSBs without any factor, 0 to 1."""
        stored = int(self.stored[WINDOW_INDEX[window], UNCHANGED].sum())
        return 1.0 - stored / (self.rows * self.columns)

    def row_nnz(self, picks: npt.NDArray[np.int64]) -> RowNnz:
        """MSB digits that rows of the sample (M,), with repetition as wanted, store unchanged."""
        return RowNnz(self.sample[picks, UNCHANGED], self.unit, self.columns)

    def merged(self, other: EncodingStatistics, keep: npt.NDArray[np.int64]) -> EncodingStatistics:
        """Sums of both; of both samples, one after the other, the rows `keep`.

        Raises CalibrationError if only one of them has gradients.
        """
        if (self.fisher is None) != (other.fisher is None):
            raise CalibrationError(
                f"{self.label}: only one of the two calibrations has gradients (Fisher); collect "
                "both in the same way"
            )
        dense = tuple(
            replace(a, gain=a.gain + b.gain, share=a.share + b.share)
            for a, b in zip(self.dense, other.dense, strict=True)
        )
        fisher = None
        if self.fisher is not None and other.fisher is not None:
            fisher = self.fisher + other.fisher
        return replace(
            self,
            rows=self.rows + other.rows,
            largest=max(self.largest, other.largest),
            error=self.error + other.error,
            stored=self.stored + other.stored,
            sample=np.concatenate([self.sample, other.sample])[keep],
            fisher=fisher,
            dense=dense,
        )
