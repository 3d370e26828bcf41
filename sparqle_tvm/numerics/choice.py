"""Choices that raise MSB sparsity: factors on the step of a quantizer, bands beside its window.

Factors ``f`` (K,) coarsen (or refine) the grid of single input channels:
``step[t, k] = scale[t] * f[k]``. They are constant within each group of weights along K, so that
the group scales of the weights take them in (`scale_weights`): nothing is added to the dense op,
and no integer of the weights changes. One factor for all of K ("alpha") fits any weights.

Bands ``lo``, ``hi`` (K,) clip what lies just outside of the window to its edge: with the window's
limits ``[low, high]``, a q in ``[lo, low - 1]`` becomes ``low``, one in ``[high + 1, hi]`` becomes
``high``. ``lo = low`` and ``hi = high`` change nothing.

Both are lossy; this module defines exactly what they give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.integers import CONTAINER, first_position
from sparqle_tvm.numerics.quantization import QuantizedWeights, quantize_per_token, to_float16
from sparqle_tvm.numerics.window import WINDOWS, window_of

SMALLEST_FACTOR, LARGEST_FACTOR = 2.0**-10, 2.0**10
"""Within these limits no step underflows: the smallest scale is 1e-30 / 32767."""


@dataclass(frozen=True, eq=False)
class EncodingChoice:
    """What is chosen for one encoding of K columns; checked when it is made.

    Attributes
    ----------
    factors : float32 (K,) or None
        Factors on the quantizer's step, each between 2^-10 and 2^10; None: all 1.
    band_lo, band_hi : int8 (K,) (int16 for digits of 8 bits) or None
        Smallest and largest q that is clipped to the edge of the window; both or none.

    Raises
    ------
    InvalidArgumentError
        For a factor that is zero, negative, not finite or beyond the limits, a lower band above
        its upper one, only one of the bands, or arrays of different length or of another dtype.
    """

    factors: npt.NDArray[np.float32] | None = None
    band_lo: npt.NDArray[Any] | None = None
    band_hi: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Check everything that can be known without the encoding."""
        if self.factors is not None:
            _check_factors(self.factors)
        if (self.band_lo is None) != (self.band_hi is None):
            raise InvalidArgumentError("bands: band_lo and band_hi go together; give both or none")
        for name, band in (("band_lo", self.band_lo), ("band_hi", self.band_hi)):
            if band is not None:
                _require_vector(band, ("int8", "int16"), name)
        if len(lengths := self._lengths()) > 1:
            raise InvalidArgumentError(f"a choice for one encoding has {lengths} columns")
        if self.bands is not None:
            low, high = self.bands
            if (crossed := low > high).any():
                at = first_position(crossed)[0]
                raise InvalidArgumentError(
                    f"bands: column {at} has lo = {low[at]} above hi = {high[at]}"
                )

    def _lengths(self) -> list[int]:
        """Numbers of columns that the arrays have: one, or none without arrays."""
        parts = (self.factors, self.band_lo, self.band_hi)
        return sorted({len(part) for part in parts if part is not None})

    @classmethod
    def per_group(cls, factors: npt.ArrayLike, columns: int) -> EncodingChoice:
        """Factors (G,), one for each of G equal groups of the K = `columns` channels.

        One factor alone is alpha of the whole layer.
        """
        by_group = np.atleast_1d(np.asarray(factors, dtype=np.float32))
        if by_group.ndim != 1 or not by_group.size or columns % by_group.size:
            raise InvalidArgumentError(
                f"factors of shape {by_group.shape} do not divide K = {columns} into equal groups"
            )
        return cls(np.repeat(by_group, columns // by_group.size))

    @property
    def bands(self) -> npt.NDArray[Any] | None:
        """Both bands as (2, K), or None: the operand of ``R.sparqle.quantize_encode``."""
        if self.band_lo is None or self.band_hi is None:
            return None
        return np.stack([self.band_lo, self.band_hi])

    def check(self, columns: int, k: int, window: str, label: str = "encoding") -> None:
        """Hold the choice to an encoding of `columns` columns with this digit width and window.

        Raises
        ------
        InvalidArgumentError
            If the number of columns differs, a band has not the dtype of q, or one ends inside
            the window.
        """
        for found in self._lengths():
            if found != columns:
                raise InvalidArgumentError(
                    f"{label}: the choice is for K = {found} columns, the encoding has {columns}"
                )
        if self.band_lo is None or self.band_hi is None:
            return
        low, high = window_limits(k, window)
        for band in (self.band_lo, self.band_hi):
            if band.dtype != CONTAINER[k]:
                raise InvalidArgumentError(
                    f"{label}: bands have the dtype of q, {CONTAINER[k]} for k = {k}, got "
                    f"{band.dtype}"
                )
        inside = (self.band_lo > low) | (self.band_hi < high)
        if inside.any():
            at = first_position(inside)[0]
            raise InvalidArgumentError(
                f"{label}: the band [{self.band_lo[at]}, {self.band_hi[at]}] of column {at} ends "
                f"inside the {window} window [{low}, {high}], whose values have no MSB already"
            )

    def factors_or_ones(self, columns: int) -> npt.NDArray[np.float32]:
        """The factors (K,) float32; ones where there are none."""
        return np.ones(columns, np.float32) if self.factors is None else self.factors


def window_limits(k: int, window: str) -> tuple[int, int]:
    """Smallest and largest q whose MSB digit is zero; for k = 4: (-8, 7) signed, (0, 15) unsigned.

    This is for our own quantizer, whose zero point is 0; `Digits.zero_range` has that of any other.
    Raises InvalidArgumentError if `k` or `window` is not known.
    """
    low, high = window_of(window).digits(k).zero_range
    return low, high


def quantize_with_choice(
    x: npt.NDArray[np.float32],
    choice: EncodingChoice,
    *,
    qmax: int = 127,
    k: int = 4,
    window: str = "signed",
    name: str = "activation",
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], int]:
    """Quantize each row with a scale of its own, factors on the step, and bands; k = 2 or 4.

    ``scale = max(max|x|, 1e-30) / qmax`` as without factors, ``step[t, k] = scale[t] * f[k]`` and
    ``q = clip(round(x / step), -qmax, qmax)``, product and quotient in float32; then the bands are
    clipped.

    Parameters
    ----------
    x : float32 (M, K)
        Activations, one token per row.
    choice : EncodingChoice
        For K columns.
    qmax : int
        Largest magnitude, 1 to 127.
    k, window
        Of the encoding: they say where the bands clip to.

    Returns
    -------
    q : int8 (M, K)
    scale : float32 (M, 1)
        ``x`` is about ``q * scale * f``.
    clipped : int
        Elements that the bands changed.

    Raises
    ------
    InvalidArgumentError, QuantizationError
        As `quantize_per_token` and `EncodingChoice.check`.
    """
    q, scale = quantize_per_token(x, qmax=qmax, name=name)
    choice.check(x.shape[1], k, window, name)
    if choice.factors is not None:
        # A step beyond float32 is infinite: all quotients are 0.
        with np.errstate(over="ignore"):
            step = scale * choice.factors
        q = np.clip(np.rint(x / step), -qmax, qmax).astype(np.int8)
    if choice.band_lo is None or choice.band_hi is None:
        return q, scale, 0
    clipped, count = clip_to_bands(q, choice.band_lo, choice.band_hi, k=k, window=window, name=name)
    return clipped, scale, count


def clip_to_bands(
    q: npt.NDArray[Any],
    band_lo: npt.NDArray[Any],
    band_hi: npt.NDArray[Any],
    *,
    k: int = 4,
    window: str = "signed",
    name: str = "activation",
) -> tuple[npt.NDArray[Any], int]:
    """Clip what lies in the bands (K,) to the edge of the window.

    `q` (M, K), `k` and `window` are those of `slicing.encode`, the bands of the dtype of q.

    Returns
    -------
    q : (M, K) of the same dtype
    clipped : int
        Elements that changed.

    Raises
    ------
    InvalidArgumentError
        As `EncodingChoice.check`.
    """
    EncodingChoice(None, band_lo, band_hi).check(q.shape[1], k, window, name)
    low, high = window_limits(k, window)
    below, above = (q < low) & (q >= band_lo), (q > high) & (q <= band_hi)
    found = np.where(below, low, np.where(above, high, q)).astype(q.dtype)
    return found, int(np.count_nonzero(below) + np.count_nonzero(above))


def scale_weights(
    weights: QuantizedWeights, factors: npt.NDArray[np.float32], name: str = "weight"
) -> QuantizedWeights:
    """Weights whose scales (and minima) take in the factors of their activation.

    Per group ``d'[n, g] = float16(d[n, g] * f[g])``, minima alike, the product in float32 (float32
    scales are rounded to the next multiple of 2^-24 instead); per
    output channel ``scale'[n] = scale[n] * f`` in float32. The integers stay as they are. A
    window's constant (`bias_term`, `grouped_bias_term`) has to be taken from the result.

    Parameters
    ----------
    weights : QuantizedWeights (N, K)
        Weights.
    factors : float32 (K,)
        Constant within each group of the weights; one value for weights without groups.

    Raises
    ------
    InvalidArgumentError
        As `group_factors`.
    QuantizationError
        If a group scale or minimum exceeds float16.
    """
    by_group = group_factors(factors, weights.shape[1], weights.group_size, name)
    if not weights.group_size:
        return QuantizedWeights(weights.values, weights.scale * by_group[0], None, weights.bits)

    def scaled(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        product = part.astype(np.float32) * by_group
        if part.dtype == np.float32:
            return np.asarray(np.ldexp(np.rint(np.ldexp(product, 24)), -24))
        return to_float16(
            product,
            lambda row, group, value: (
                f"{name}: the factor {by_group[group]:g} makes the scale of group {group}, output "
                f"channel {row}, {value:g}, beyond float16; choose a smaller factor"
            ),
        )

    minimum = None if weights.minimum is None else scaled(weights.minimum)
    return QuantizedWeights(weights.values, scaled(weights.scale), minimum, weights.bits)


def group_factors(
    factors: npt.NDArray[np.float32], columns: int, group_size: int, name: str = "weight"
) -> npt.NDArray[np.float32]:
    """One factor for each group of `group_size` columns (0: one for all of K), from factors (K,).

    Raises
    ------
    InvalidArgumentError
        If a factor is not allowed (`EncodingChoice`), their number is not `columns`, or they change
        within a group.
    """
    _check_factors(factors, name)
    if len(factors) != columns:
        raise InvalidArgumentError(f"{name}: {len(factors)} factors for K = {columns} columns")
    grouped = factors.reshape(-1, group_size or columns)
    changes = grouped != grouped[:, :1]
    if changes.any():
        at = first_position(changes)[0]
        where = "K" if group_size in (0, columns) else f"group {at} of {group_size} columns"
        raise InvalidArgumentError(
            f"{name}: the factors change within {where}; one scale can take in only one factor"
        )
    return np.ascontiguousarray(grouped[:, 0])


def windows_from(
    msb_sparsity: Mapping[str, Mapping[str, float]],
    *,
    margin: float = 0.01,
) -> dict[str, str]:
    """Choose the window of each encoding by the MSB sparsity that calibration measured.

    Both windows are exact, so only sparsity counts. A tie stays ``signed``: ``unsigned`` has to
    be better by more than the margin.

    Parameters
    ----------
    msb_sparsity : mapping of label to {"signed": share, "unsigned": share}
        Share of zero MSB digits, 0 to 1, of the same values in both windows.
    margin : float
        What the unsigned window has to gain, at least, as a share of all elements.

    Returns
    -------
    dict of label to window
        For `passes.ChooseWindow`.

    Raises
    ------
    InvalidArgumentError
        If a share is missing or not in [0, 1], or the margin negative or not finite.
    """
    if not (np.isfinite(margin) and margin >= 0):
        raise InvalidArgumentError(f"margin must be 0 or more, got {margin}")
    windows = {}
    for label, measured in msb_sparsity.items():
        signed, unsigned = (measured.get(window, float("nan")) for window in WINDOWS)
        if not (0 <= signed <= 1 and 0 <= unsigned <= 1):
            raise InvalidArgumentError(
                f"{label}: needs an MSB sparsity from 0 to 1 for both windows, got {dict(measured)}"
            )
        windows[label] = "unsigned" if unsigned > signed + margin else "signed"
    return windows


def _require_vector(array: Any, dtypes: tuple[str, ...], name: str) -> None:
    """Refuse anything but a NumPy vector of at least one element and of one of the dtypes."""
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not array.size:
        found = f"shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidArgumentError(f"{name}: expected a NumPy array (K,), got {found}")
    if array.dtype.name not in dtypes:
        raise InvalidArgumentError(f"{name}: expected {' or '.join(dtypes)}, got {array.dtype}")


def _check_factors(factors: Any, name: str = "factors") -> None:
    _require_vector(factors, ("float32",), name)
    # Written so that NaN fails it.
    bad = ~((factors >= SMALLEST_FACTOR) & (factors <= LARGEST_FACTOR))
    if bad.any():
        at = first_position(bad)[0]
        raise InvalidArgumentError(
            f"{name}: the factor {factors[at]} of column {at} is not between 2^-10 and 2^10"
        )
