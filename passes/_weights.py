"""What counts as a weight, and the constants that a dense in split-precision form takes from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.errors import CompileError
from sparqle_tvm.numerics import QuantizedWeights, bias_term, grouped_bias_term
from sparqle_tvm.numerics.dense import EXACT_SUM_LIMIT
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.passes._constants import Constant, make_const
from sparqle_tvm.passes._match import op_name
from sparqle_tvm.passes._rewrite import Rewriter
from sparqle_tvm.passes._value_range import LAYOUT_OPS

# Digit width for each activation container.
DIGIT_BITS = {"int8": 4, "int16": 8}
# Ops a weight may pass through and still be a weight: they unpack or move, and use no activation.
TWO_TENSORS = {
    f"relax.{name}"
    for name in (
        "bitwise_and",
        "bitwise_or",
        "right_shift",
        "left_shift",
        "subtract",
        "add",
        "take",
    )
}
UNPACK_OPS = LAYOUT_OPS | TWO_TENSORS | {"relax.astype"}


def is_weight(expr: Any, rewriter: Rewriter) -> bool:
    """Whether ``expr`` is a constant or a parameter, or only unpacked and moved from those."""
    value = rewriter.value(expr)
    if isinstance(value, Constant):
        return True
    if isinstance(value, relax.Var):
        return value in rewriter.parameters
    if isinstance(value, relax.Tuple):
        return all(is_weight(field, rewriter) for field in value.fields)
    if op_name(value) not in UNPACK_OPS:
        return False
    # The other arguments are shapes and tuples of numbers.
    tensors = value.args[:2] if op_name(value) in TWO_TENSORS else value.args[:1]
    return all(is_weight(arg, rewriter) for arg in tensors)


def weight_outputs_first(rewriter: Rewriter, weight: Any) -> relax.Expr:
    """The weight of ``matmul(x, weight)`` as (N, K), without a transpose where that is free."""
    constants = rewriter.constants
    constant = constants.value(weight)
    if constant is not None:
        return constants.once((constants.source(weight), "transposed"), lambda: constant.T)
    value = rewriter.value(weight)
    if op_name(value) == "relax.permute_dims":
        return value.args[0]
    return rewriter.emit(relax.op.permute_dims(weight), "weight")


def _zeros(rewriter: Rewriter, weight: Any, dtype: type) -> relax.Expr:
    """(N,) zeros for a weight (N, K)."""
    outputs = int(weight.ty.shape.values[0])
    return rewriter.constants.once(("zeros", outputs, dtype), lambda: np.zeros(outputs, dtype))


def bias_constant(rewriter: Rewriter, weight: Any, k: int, window: str) -> relax.Expr:
    """``-b * sum_k w`` as (N,) int32, with b of the window, for a weight (N, K) int8."""
    constants = rewriter.constants
    values = constants.value(weight)
    if values is not None:
        key = (constants.source(weight), "bias", k, window)
        return constants.once(key, lambda: bias_term(values, k, window))
    if not WINDOWS[window].bias(k):
        return _zeros(rewriter, weight, np.int32)
    total = relax.op.sum(relax.op.astype(weight, "int32"), axis=[1])
    factor = relax.const(-WINDOWS[window].bias(k), "int32")
    return rewriter.emit(relax.op.multiply(total, factor), "window_bias")


def offset_constant(
    rewriter: Rewriter, weight: Any, w_scale: Any, k: int, window: str
) -> relax.Expr:
    """``-b * sum_g d_g * sum_{k in g} w`` as (N,) float64, with b of the window.

    ``weight`` is (N, K) int8 and ``w_scale`` (N, G) float16, so each term is exact in float64.
    """
    constants = rewriter.constants
    values, scales = constants.value(weight), constants.value(w_scale)
    if values is not None and scales is not None:
        key = (constants.source(weight), constants.source(w_scale), "offset", k, window)
        weights = QuantizedWeights(values, scales, None, 8)
        return constants.once(key, lambda: grouped_bias_term(weights, k, window))
    if not WINDOWS[window].bias(k):
        return _zeros(rewriter, weight, np.float64)
    outputs, groups = (int(d) for d in w_scale.ty.shape.values)
    columns = int(weight.ty.shape.values[1])
    op = relax.op
    by_group = rewriter.emit(op.reshape(weight, (outputs, groups, columns // groups)))
    sums64 = rewriter.emit(op.astype(op.sum(op.astype(by_group, "int32"), axis=[2]), "float64"))
    total = op.sum(op.multiply(sums64, op.astype(w_scale, "float64")), axis=[1])
    factor = relax.const(-float(WINDOWS[window].bias(k)), "float64")
    return rewriter.emit(op.multiply(total, factor), "window_offset")


def window_constant(rewriter: Rewriter, op: dialect.Dense, window: str) -> relax.Expr:
    """What undoes the bias of a window's digits in a dense: (N,) float64 with groups, or int32."""
    if isinstance(op, dialect.ScaledDense) and op.group_size:
        return offset_constant(rewriter, op.weight, op.w_scale, op.k, window)
    return bias_constant(rewriter, op.weight, op.k, window)


def remaining_offset(rewriter: Rewriter, op: dialect.Dense) -> relax.Expr | None:
    """What a split dense adds besides undoing the bias of its window's digits: (N,), or nothing.

    Raises
    ------
    CompileError
        If a float64 offset cannot be split exactly into the window's part and the rest.
    """
    own = window_constant(rewriter, op, op.window)
    whole, part = rewriter.constants.value(op.offset), rewriter.constants.value(own)
    if part is not None and not part.any():
        rest = whole
    elif whole is None or part is None:
        return rewriter.emit(relax.op.subtract(op.offset, own), "offset")
    else:
        rest = whole - part
    if rest is None:
        return op.offset
    if not rest.any():
        return None
    if rest.dtype == np.float64 and not _is_exact(rest):
        raise CompileError(
            "its float64 offset is no multiple of 2^-24 below 2^29, so that the order of its sums "
            "would matter; add it after the dense"
        )
    return make_const(rest)


def _is_exact(sums: np.ndarray) -> bool:
    """Whether float64 adds these to sums of integers times float16 without rounding."""
    scaled = np.ldexp(sums, 24)
    return bool(np.all(scaled == np.rint(scaled)) and np.all(np.abs(sums) < EXACT_SUM_LIMIT))


def adds_exactly(
    rewriter: Rewriter, w_scale: Any, w_min: Any | None, bounds: tuple[float, float], sum_q: int
) -> bool:
    """Whether float64 adds the groups of a dense without rounding, as far as can be known.

    Scales and minima that are no constants are taken to be small enough.

    Parameters
    ----------
    w_scale, w_min : relax.Expr
        (G, 1, N) and (G, N) float16; the minima may be ``None``.
    bounds : tuple of float
        Smallest and largest weight.
    sum_q : int
        Bound on the sum of the magnitudes of q over a group.
    """
    bound = np.float64(0.0)
    for factors, largest in ((w_scale, max(map(abs, bounds))), (w_min, 1.0)):
        values = rewriter.constants.value(factors) if factors is not None else None
        if values is not None:
            by_group = np.abs(values.astype(np.float64)).reshape(len(values), -1)
            bound = bound + sum_q * largest * by_group.sum(axis=0)
    return bool(np.all(bound < EXACT_SUM_LIMIT))
