"""The exact value of a quantized dense layer; kernels and simulator match it bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics.integers import (
    first_position,
    int_matmul,
    max_magnitude,
    require_matrix,
    to_int32,
)
from sparqle_tvm.numerics.quantization import QuantizedWeights
from sparqle_tvm.numerics.window import window_of

# Sums of multiples of 2^-24 (integers times group scales) stay exact in float64 below this.
EXACT_SUM_LIMIT = 2.0**29
# So many int8 add up to an integer that float32 has.
_EXACT_IN_FLOAT32 = 2**24 // 128


def dense_reference(
    q: npt.NDArray[Any], act_scale: Any, weights: QuantizedWeights, zero_point: Any = 0
) -> npt.NDArray[np.float32]:
    """Value of a quantized dense layer, the definition for every other implementation.

    Per output channel, with `acc` the int32 product of ``q - zero_point`` and the weights:
    ``y = (float32(acc) * act_scale) * w_scale``. Grouped, with int32 partial sums p of a group and
    sigma the sum of q - zero_point over it, in float64:
    ``y = float32(sum_g [p * d + m * sigma]) * act_scale``.
    The float64 sum is exact (its terms are multiples of 2^-24), so the order of groups is free.

    Parameters
    ----------
    q : int8 or uint8 (M, K)
        Quantized activations.
    act_scale : float32 scalar or (M, 1)
        Scale of the activations.
    weights : QuantizedWeights (N, K)
        Weights.
    zero_point : int or integers (M, 1)
        The integer that stands for 0, of all or of each row.

    Returns
    -------
    float32 (M, N)

    Raises
    ------
    QuantizationError
        If shapes or dtypes do not fit, or if scales are so large that the float64 sum over the
        groups might round.
    """
    require_matrix(q, ("int8", "uint8"), "activation")
    if q.shape[1] != weights.shape[1]:
        raise QuantizationError(f"activation {q.shape} and weight {weights.shape} differ in K")
    act_scale = np.asarray(act_scale, dtype=np.float32)
    q = (q.astype(np.int32) - zero_point).astype(np.int16)
    if not weights.group_size:
        acc = int_matmul(q, weights.values).astype(np.float32)
        return np.asarray((acc * act_scale) * weights.scale)
    require_exact_sum(weights, max_magnitude(q))
    return np.asarray(_group_sum(q, weights).astype(np.float32) * act_scale)


def grouped_bias_term(
    weights: QuantizedWeights, k: int, window: str, *, signed: bool = True, zero_point: int = 0
) -> npt.NDArray[np.float64]:
    """Constant that sums over stored digits lack under group scales; see `slicing.bias_term`.

    ``Digits.offset * sum_g d[n, g] * sum_(k in g) w[n, k]``, exact in float64 (N,).

    Raises
    ------
    InvalidArgumentError
        If the weights have no group scales.
    """
    if not weights.group_size:
        raise InvalidArgumentError("weights without group scales: use bias_term")
    rows, groups = weights.scale.shape
    sums = weights.values.reshape(rows, groups, -1).sum(axis=2, dtype=np.int64)
    products = sums * weights.scale.astype(np.float64)
    offset = window_of(window).digits(k, signed=signed, zero_point=zero_point).offset
    return np.asarray(offset * products.sum(axis=1))


def _group_sum(q: npt.NDArray[np.int16], weights: QuantizedWeights) -> npt.NDArray[np.float64]:
    """Sum ``p * d + m * sigma`` over the groups: float64 (M, N)."""
    total = np.zeros((q.shape[0], weights.shape[0]), dtype=np.float64)
    scale = weights.scale.astype(np.float64)
    for group in range(scale.shape[1]):
        columns = slice(group * weights.group_size, (group + 1) * weights.group_size)
        partial = int_matmul(q[:, columns], weights.values[:, columns])
        total += partial * scale[:, group]
        if weights.minimum is not None:
            sigma = q[:, columns].sum(axis=1, dtype=np.int32)
            total += sigma[:, None] * weights.minimum[:, group].astype(np.float64)
    return total


def exact_sum_bound(weights: QuantizedWeights, largest_q: int) -> npt.NDArray[np.float64]:
    """Bound on the magnitude of the sums over the groups: float64 (N,).

    Weights (N, K) have group scales; `largest_q` is the largest magnitude of the activations.
    """
    rows, groups = weights.scale.shape
    magnitudes = np.abs(weights.values.astype(np.int32)).reshape(rows, groups, -1).sum(axis=2)
    terms = magnitudes * np.abs(weights.scale.astype(np.float64))
    if weights.minimum is not None:
        terms += weights.group_size * np.abs(weights.minimum.astype(np.float64))
    return np.asarray(largest_q * terms.sum(axis=1))


def require_exact_sum(weights: QuantizedWeights, largest_q: int) -> None:
    """Refuse group scales with which a partial sum over the groups could round in float64.

    Raises QuantizationError if `exact_sum_bound` reaches 2^29.
    """
    bound = exact_sum_bound(weights, largest_q)
    if (bound >= EXACT_SUM_LIMIT).any():
        row = first_position(bound >= EXACT_SUM_LIMIT)[0]
        raise QuantizationError(
            f"weight: the scales of output channel {row} allow sums of {bound[row]:g}, above "
            f"{EXACT_SUM_LIMIT:g}, where float64 no longer adds exactly; scale the weights down"
        )


def weight_channel_sums(
    factor: int, values: npt.NDArray[np.int8], scales: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """``factor * sum_k w`` of each channel; with scales of groups, of ``d_g * sum_{k in g} w``.

    Parameters
    ----------
    factor : int
    values : int8 (N, K)
    scales : float16 or float32 (N, G), optional
        Multiples of 2^-24, so that no sum is rounded.

    Returns
    -------
    (N,) int32, float64 with scales
    """
    rows, columns = values.shape
    groups = 1 if scales is None else scales.shape[1]
    size = columns // max(groups, 1)
    if size <= _EXACT_IN_FLOAT32:
        # The product with ones is several times faster than a sum of int8 along the last axis.
        wide = values.reshape(rows * groups, size).astype(np.float32)
        sums = (wide @ np.ones(size, np.float32)).reshape(rows, groups).astype(np.int64)
    else:
        sums = values.reshape(rows, groups, size).sum(axis=2, dtype=np.int64)
    if scales is None:
        return to_int32(factor * sums[:, 0])
    total: npt.NDArray[Any] = factor * (sums * scales.astype(np.float64)).sum(axis=1)
    return total
