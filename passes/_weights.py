"""Constants that a dense in split-precision form takes from its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from sparqle_tvm.passes._rewrite import Rewriter


def digit_bias(k: int, window: str) -> int:
    """What the stored LSB digit is too large by: 2^(k-1) for the signed window, else 0."""
    return 1 << (k - 1) if window == "signed" else 0


def window_bias(rewriter: Rewriter, weight: Any, k: int, window: str) -> relax.Expr:
    """``-digit_bias * sum_k w`` as (N,) int32 for a weight (N, K) int8."""
    factor = -digit_bias(k, window)
    constants = rewriter.constants
    constant = constants.value(weight)
    if constant is not None:
        key = (constants.source(weight), "window_bias", factor)
        return constants.once(
            key, lambda: (constant.sum(axis=1, dtype=np.int64) * factor).astype(np.int32)
        )
    total = relax.op.sum(relax.op.astype(weight, "int32"), axis=[1])
    return rewriter.emit(relax.op.multiply(total, relax.const(factor, "int32")), "window_bias")


def _offset_of(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """``sum_g d_g * sum_{k in g} w`` of weights (N, K) with scales (N, G): (N,) float64."""
    outputs, groups = scales.shape
    sums = values.reshape(outputs, groups, -1).sum(axis=2, dtype=np.int64)
    return np.asarray((sums * scales.astype(np.float64)).sum(axis=1))


def window_offset(rewriter: Rewriter, weight: Any, w_scale: Any, k: int, window: str) -> relax.Expr:
    """``-digit_bias * sum_g d_g * sum_{k in g} w`` as (N,) float64.

    ``weight`` is (N, K) int8 and ``w_scale`` (N, G) float16, so each term is exact in float64.
    """
    factor = -float(digit_bias(k, window))
    constants = rewriter.constants
    values, scales = constants.value(weight), constants.value(w_scale)
    if values is not None and scales is not None:
        key = (constants.source(weight), constants.source(w_scale), "window_offset", factor)
        return constants.once(key, lambda: _offset_of(values, scales) * factor)
    outputs, groups = (int(d) for d in w_scale.ty.shape.values)
    columns = int(weight.ty.shape.values[1])
    op = relax.op
    by_group = rewriter.emit(op.reshape(weight, (outputs, groups, columns // groups)))
    sums64 = rewriter.emit(op.astype(op.sum(op.astype(by_group, "int32"), axis=[2]), "float64"))
    total = op.sum(op.multiply(sums64, op.astype(w_scale, "float64")), axis=[1])
    return rewriter.emit(op.multiply(total, relax.const(factor, "float64")), "window_offset")
