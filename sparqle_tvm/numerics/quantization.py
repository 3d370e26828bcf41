"""Quantization of activations (per token, per tensor) and weights (per channel, per group).

Rounding is half to even everywhere (`np.rint`, as Relax's ``R.round``). `name` is that of the
tensor in error messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics.integers import (
    CONTAINER,
    first_position,
    pack_digits,
    plane_bytes,
    require_digit_bits,
    require_matrix,
    sign_extend,
    unpack_digits,
)
from sparqle_tvm.numerics.requantize import Grid
from sparqle_tvm.numerics.window import largest_integer

SMALLEST_AMAX = float(np.float32(1e-30))
"""Below this largest magnitude a row counts as all zero; it keeps its scale from being zero."""


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """Integer weights (N, K), one row per output channel, with their scales.

    The real weight is ``values * scale`` per output channel, or per group of K / G columns
    ``values * scale + minimum``. Shapes, dtypes and value range are checked when this is made.

    Attributes
    ----------
    values : int8 (N, K)
        Integers, signed in [-2^(bits-1), 2^(bits-1) - 1] or unsigned in [0, 2^bits - 1].
    scale : float32 (N,), or float16 or float32 (N, G)
        Per output channel, or per group along K. In float32 those of groups are multiples of 2^-24,
        as products of a float16 and an integer are (GGUF's K-quants): so sums over groups are as
        exact as with float16.
    minimum : (N, G) of the type of `scale`, or None
        Added to each weight of a group; only with group scales.
    bits : {2, 4, 8}
        Width of the values.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[Any]
    minimum: npt.NDArray[Any] | None = None
    bits: int = 4

    def __post_init__(self) -> None:
        """Check that the parts fit together; InvalidArgumentError or QuantizationError if not."""
        check_weight_range(self.values, self.bits)
        rows, columns = self.values.shape
        per_channel = self.scale.shape == (rows,) and self.scale.dtype == np.float32
        groups = self.scale.shape[1] if self.scale.ndim == 2 else 0
        per_group = (
            self.scale.shape == (rows, groups)
            and self.scale.dtype in (np.float16, np.float32)
            and groups > 0
            and columns % groups == 0
        )
        if not (per_channel or per_group):
            raise InvalidArgumentError(
                f"weight scale: expected float32 ({rows},), or ({rows}, G) float16 or "
                f"float32 with G a divisor of K = {columns}, got {self.scale.dtype} "
                f"{self.scale.shape}"
            )
        require_finite(self.scale, "weight scale")
        if per_group:
            _require_fixed_point(self.scale, "weight scale")
        if self.minimum is None:
            return
        if per_channel or self.minimum.shape != self.scale.shape:
            raise InvalidArgumentError(
                f"weight minimum: needs group scales of its own shape {self.minimum.shape}, "
                f"got scale {self.scale.shape}"
            )
        if self.minimum.dtype != self.scale.dtype:
            raise InvalidArgumentError(
                f"weight minimum: expected {self.scale.dtype} as the scale, "
                f"got {self.minimum.dtype}"
            )
        require_finite(self.minimum, "weight minimum")
        _require_fixed_point(self.minimum, "weight minimum")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): output channels, input channels."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def group_size(self) -> int:
        """Columns per scale, or 0 for one scale per output channel."""
        return 0 if self.scale.ndim == 1 else self.shape[1] // int(self.scale.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the values packed at `bits` per element, the scales and the minima."""
        rows, columns = self.shape
        minimum_bytes = 0 if self.minimum is None else self.minimum.nbytes
        values_bytes = rows * plane_bytes(columns, self.bits)
        return values_bytes + int(self.scale.nbytes) + minimum_bytes

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the real weights: float32 (N, K)."""
        values = self.values.astype(np.float32)
        if self.scale.ndim == 1:
            return np.asarray(values * self.scale[:, None])
        rows, groups = self.scale.shape
        real = values.reshape(rows, groups, -1) * self.scale[:, :, None].astype(np.float32)
        if self.minimum is not None:
            real += self.minimum[:, :, None].astype(np.float32)
        return real.reshape(values.shape)


def is_fixed_point(x: npt.NDArray[Any]) -> bool:
    """Whether all are multiples of 2^-24, as every float16 is."""
    return x.dtype == np.float16 or bool((np.ldexp(x, 24) % 1 == 0).all())


def _require_fixed_point(x: npt.NDArray[Any], name: str) -> None:
    if not is_fixed_point(x):
        raise QuantizationError(
            f"{name}: a float32 of a group is no multiple of 2^-24, so sums over groups would "
            "round; round it to one, or use float16"
        )


def require_finite(x: npt.NDArray[Any], name: str) -> None:
    """Refuse NaN and infinities; the QuantizationError names the first in row-major order."""
    finite = np.isfinite(x)
    if not finite.all():
        at = first_position(~finite)
        raise QuantizationError(
            f"{name}: {x[at]} at {list(at)} cannot be quantized; check the layer that produced it"
        )


def quantize_per_token(
    x: npt.NDArray[np.float32],
    *,
    qmax: int | None = None,
    k: int = 4,
    name: str = "activation",
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Quantize each row with a scale of its own: dynamic, symmetric, to integers of 2k bits.

    ``scale = max(max|x|, 1e-30) / qmax`` in float32, ``q = clip(round(x / scale), -qmax, qmax)``.

    Parameters
    ----------
    x : float32 (M, K)
        Activations, one token per row.
    qmax : int, optional
        Largest magnitude, 1 to 2^(2k - 1) - 1, which is the default.
    k : {2, 4, 8}
        Bits of a digit.

    Returns
    -------
    q : int8 (M, K), int16 for k = 8
    scale : float32 (M, 1)
        ``x`` is about ``q * scale``.

    Raises
    ------
    InvalidArgumentError
        If `k` is not known, or `qmax` is out of range.
    QuantizationError
        If `x` is no float32 matrix, K = 0, or an element is NaN or infinite.
    """
    require_digit_bits(k)
    largest = largest_integer(k)
    qmax = largest if qmax is None else qmax
    if not 1 <= qmax <= largest:
        raise InvalidArgumentError(f"qmax must be 1 to {largest}, got {qmax}")
    require_matrix(x, ("float32",), name)
    require_finite(x, name)
    amax = np.abs(x).max(axis=1, keepdims=True)
    scale = np.maximum(amax, SMALLEST_AMAX) / np.float32(qmax)
    q = np.clip(np.rint(x / scale), -qmax, qmax).astype(CONTAINER[k])
    return q, scale


def quantize_per_tensor(
    x: npt.NDArray[np.float32],
    scale: float,
    *,
    zero_point: int = 0,
    qmin: int = -128,
    qmax: int = 127,
    name: str = "activation",
) -> npt.NDArray[np.int8]:
    """Quantize with one given scale: ``clip(round(x / scale) + zero_point, qmin, qmax)``.

    Parameters
    ----------
    x : float32 (M, K)
        Activations.
    scale : float
        Step of the grid, used as float32; positive and finite.
    zero_point : int
        The integer that stands for 0.0, between `qmin` and `qmax`.
    qmin, qmax : int
        Limits within int8.

    Returns
    -------
    int8 (M, K)

    Raises
    ------
    InvalidArgumentError
        If scale, zero point or limits are out of range.
    QuantizationError
        As `quantize_per_token`.
    """
    step = np.float32(scale)
    if not (np.isfinite(step) and step > 0):
        raise InvalidArgumentError(f"{name}: scale must be positive and finite, got {scale}")
    if not -128 <= qmin <= zero_point <= qmax <= 127:
        raise InvalidArgumentError(
            f"{name}: need -128 <= qmin <= zero_point <= qmax <= 127, got qmin {qmin}, "
            f"zero_point {zero_point}, qmax {qmax}"
        )
    require_matrix(x, ("float32",), name)
    require_finite(x, name)
    return Grid(float(step), zero_point, qmin, qmax).quantize(x).astype(np.int8)


def quantize_weights(
    w: npt.NDArray[np.float32],
    *,
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool = True,
    name: str = "weight",
) -> QuantizedWeights:
    """Quantize weights to nearest, per output channel or per group along K.

    Parameters
    ----------
    w : float32 (N, K)
        Weights, one row per output channel.
    bits : {2, 4, 8}
        Width of the integers; symmetric 2 bits are ternary, {-1, 0, 1}.
    group_size : int or None
        Columns per float16 scale, a divisor of K (GGUF: 32); None: a float32 scale per channel.
    symmetric : bool
        Without or with a minimum per group (a zero point in real units); the latter needs
        `group_size`.

    Raises
    ------
    InvalidArgumentError
        If `bits` is not known, `group_size` does not divide K, or symmetric is false without it.
    QuantizationError
        If `w` is no float32 matrix, K = 0, an element is NaN or infinite, or a group scale
        exceeds float16.
    """
    require_digit_bits(bits)
    require_matrix(w, ("float32",), name)
    require_finite(w, name)
    rows, columns = w.shape
    if group_size is None:
        if not symmetric:
            raise InvalidArgumentError(
                f"{name}: symmetric=False needs a group_size; per-channel weights have no minimum"
            )
        largest = 2 ** (bits - 1) - 1
        amax = np.abs(w).max(axis=1)
        channel_scale = np.maximum(amax, SMALLEST_AMAX) / np.float32(largest)
        values = np.clip(np.rint(w / channel_scale[:, None]), -largest, largest).astype(np.int8)
        return QuantizedWeights(values, channel_scale, None, bits)
    if group_size < 1 or columns % group_size:
        raise InvalidArgumentError(f"{name}: K = {columns} is not a multiple of {group_size}")
    grouped = w.reshape(rows, columns // group_size, group_size)
    values, scale, minimum = _quantize_groups(grouped, bits, symmetric, name)
    return QuantizedWeights(values.reshape(w.shape), scale, minimum, bits)


def check_weight_range(values: npt.NDArray[np.int8], bits: int, name: str = "weight") -> None:
    """Hold integer weights, int8 (N, K), to the range of their width, 2, 4 or 8 bits.

    All lie in [-2^(bits-1), 2^(bits-1) - 1], or all in [0, 2^bits - 1].

    Raises
    ------
    InvalidArgumentError
        If `bits` is not known.
    QuantizationError
        If `values` is no int8 matrix, or a value is out of range; the first one is named.
    """
    require_digit_bits(bits)
    require_matrix(values, ("int8",), name)
    if bits == 8 or not values.size:
        return
    half = 2 ** (bits - 1)
    signed = int(values.min()) < 0
    low, high, kind = (-half, half - 1, "int") if signed else (0, 2 * half - 1, "uint")
    outside = (values < low) | (values > high)
    if outside.any():
        at = first_position(outside)
        raise QuantizationError(
            f"{name}: value {int(values[at])} at {list(at)} is out of the {kind}{bits} range "
            f"[{low}, {high}]; quantize again or declare more bits"
        )


def pack_int4(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack 4-bit integers (N, K) in int8 to uint8 (N, ceil(K / 2)); element 2i is the low half.

    Raises QuantizationError if the values are neither all in [-8, 7] nor all in [0, 15].
    """
    check_weight_range(values, 4)
    return pack_digits(values.view(np.uint8) & np.uint8(15), 4)


def unpack_int4(
    packed: npt.NDArray[np.uint8], *, columns: int, signed: bool = True
) -> npt.NDArray[np.int8]:
    """Undo `pack_int4`: int8 (N, columns), two's complement in [-8, 7] if signed, else [0, 15].

    Raises QuantizationError if `packed` is no uint8 matrix (N, ceil(columns / 2)).
    """
    require_matrix(packed, ("uint8",), "packed weight")
    width_bytes = plane_bytes(columns, 4)
    if packed.shape[1] != width_bytes:
        raise QuantizationError(
            f"packed weight: {columns} columns need {width_bytes} bytes, got {packed.shape[1]}"
        )
    digits = unpack_digits(packed, 4, columns)
    return sign_extend(digits, 4) if signed else digits.astype(np.int8)


def _quantize_groups(
    grouped: npt.NDArray[np.float32], bits: int, symmetric: bool, name: str
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16], npt.NDArray[np.float16] | None]:
    """Quantize (N, G, group_size): values, scale (N, G), and minimum (N, G) or None."""
    if symmetric:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        step = np.abs(grouped).max(axis=2) / np.float32(high)
        offset = np.zeros_like(step)
    else:
        # Eight unsigned bits do not fit the int8 container, so 8-bit values are signed here too.
        low = -128 if bits == 8 else 0
        high = low + 2**bits - 1
        smallest = grouped.min(axis=2)
        step = (grouped.max(axis=2) - smallest) / np.float32(high - low)
        offset = smallest - np.float32(low) * step
    scale, minimum = (
        to_float16(
            part,
            lambda row, group, value: (
                f"{name}: group {group} of output channel {row} needs {value:g}, beyond float16; "
                "scale the weights down or quantize per output channel"
            ),
        )
        for part in (step, offset)
    )
    real_scale = scale.astype(np.float32)[:, :, None]
    centred = grouped - minimum.astype(np.float32)[:, :, None]
    # A group of (nearly) equal weights has scale 0: all its values are 0.
    ratio = np.divide(centred, real_scale, out=np.zeros_like(centred), where=real_scale != 0)
    values = np.clip(np.rint(ratio), low, high).astype(np.int8)
    return values, scale, None if symmetric else minimum


def to_float16(
    x: npt.NDArray[np.float32], complaint: Callable[[int, int, np.float32], str]
) -> npt.NDArray[np.float16]:
    """Scales or minima (N, G) as float16.

    Raises QuantizationError for what is too large: `complaint` of channel, group and value.
    """
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    overflow = ~np.isfinite(half)
    if overflow.any():
        row, group = first_position(overflow)
        raise QuantizationError(complaint(row, group, x[row, group]))
    return half
