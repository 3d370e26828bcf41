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
from sparqle_tvm.passes._match import int_shape, op_name
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


def arranged(
    rewriter: Rewriter,
    weight: Any,
    axes: list[int],
    shape: tuple[int, ...],
    cut: tuple[int, ...] | None = None,
) -> relax.Expr:
    """A weight reshaped to `cut`, permuted, reshaped to `shape`; at once if it is constant."""
    constants = rewriter.constants
    value = constants.value(weight)
    if value is not None:
        key = (constants.source(weight), "arranged", tuple(axes), shape, cut)
        parted = value if cut is None else value.reshape(cut)
        return constants.once(key, lambda: parted.transpose(axes).reshape(shape))
    if cut is not None:
        weight = rewriter.emit(relax.op.reshape(weight, cut))
    moved = rewriter.emit(relax.op.permute_dims(weight, axes))
    return moved if len(shape) == len(axes) else rewriter.emit(relax.op.reshape(moved, shape))


def window_bias(
    rewriter: Rewriter, weight: Any, w_scale: Any | None, k: int, window: str
) -> relax.Expr:
    """What undoes the bias b of a window's digits, for a weight (N, K) int8.

    Without scales ``-b * sum_k w`` as (N,) int32; with those of G groups, (N, G) float16,
    ``-b * sum_g d_g * sum_{k in g} w`` as (N,) float64, in which each term is exact.
    """
    constants, bias = rewriter.constants, WINDOWS[window].bias(k)
    operands = [weight] if w_scale is None else [weight, w_scale]
    values = [v for v in map(constants.value, operands) if v is not None]
    if len(values) == len(operands):
        key = (*map(constants.source, operands), "window bias", k, window)
        return constants.once(key, lambda: _bias_term(k, window, *values))
    outputs, columns = int_shape(weight)
    if not bias:
        dtype = np.int32 if w_scale is None else np.float64
        return constants.once(("zeros", outputs, dtype), lambda: np.zeros(outputs, dtype))
    op = relax.op
    if w_scale is None:
        total = op.sum(op.astype(weight, "int32"), axis=[1])
        return rewriter.emit(op.multiply(total, relax.const(-bias, "int32")), "window_bias")
    groups = int_shape(w_scale)[1]
    by_group = rewriter.emit(op.reshape(weight, (outputs, groups, columns // groups)))
    sums64 = rewriter.emit(op.astype(op.sum(op.astype(by_group, "int32"), axis=[2]), "float64"))
    total = op.sum(op.multiply(sums64, op.astype(w_scale, "float64")), axis=[1])
    return rewriter.emit(op.multiply(total, relax.const(-float(bias), "float64")), "window_bias")


def _bias_term(
    k: int, window: str, values: np.ndarray, scales: np.ndarray | None = None
) -> np.ndarray:
    if scales is None:
        return bias_term(values, k, window)
    return grouped_bias_term(QuantizedWeights(values, scales, None, 8), k, window)


def window_constant(rewriter: Rewriter, op: dialect.Dense, window: str) -> relax.Expr:
    """What undoes the bias of a window's digits in a dense: (N,) float64 with groups, or int32."""
    w_scale = op.w_scale if isinstance(op, dialect.ScaledDense) and op.group_size else None
    return window_bias(rewriter, op.weight, w_scale, op.k, window)


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
