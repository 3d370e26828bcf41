"""The form of a dense with scales per group of K, and how it is recognised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sparqle_tvm.numerics.dense import EXACT_SUM_LIMIT
from sparqle_tvm.numerics.window import largest_integer
from sparqle_tvm.passes._activation import Activation, match_activation
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._match import axes_of, dims_of, dtype_of, op_name, same_dims, static_shape
from sparqle_tvm.passes._rewrite import Rewriter
from sparqle_tvm.passes._value_range import value_range
from sparqle_tvm.passes._weights import DIGIT_BITS, adds_exactly, is_weight

_FACTORS = ("float16", "float32")


@dataclass(frozen=True)
class GroupedDense:
    """The operands of one dense with G groups of g columns.

    Attributes
    ----------
    activation : Activation
        (.., K) integers, less a zero point.
    weight : relax.Expr
        (G, g, N) integers.
    w_scale : relax.Expr
        (G, 1, N) float16 or float32.
    w_min : relax.Expr or None
        (G, N) of the same type.
    label : str
        Name of the integer product.
    """

    activation: Activation
    weight: Any
    w_scale: Any
    w_min: Any | None
    label: str

    @property
    def q(self) -> Any:
        """The integers of the activation."""
        return self.activation.q


def match_grouped(rewriter: Rewriter, call: Any) -> GroupedDense | None:
    """The dense whose float64 sum ``call`` casts to float32; what is close is reported."""
    if op_name(call) != "relax.astype" or dtype_of(call) != "float32":
        return None
    total = rewriter.value(call.args[0])
    scaled, minimum = total, None
    if op_name(total) == "relax.add":
        scaled, minimum = total.args
        if op_name(rewriter.value(scaled)) != "relax.sum":
            scaled, minimum = minimum, scaled
    matched = _match_product(rewriter, scaled)
    if matched is None:
        return None
    acc, matmul, d = matched
    label = str(getattr(acc, "name", "")) or rewriter.label
    found = _match_operands(rewriter, matmul, d, minimum, label)
    if isinstance(found, GroupedDense):
        found = _obstacle(rewriter, found) or found
    if isinstance(found, str):
        rewriter.skip("matmul", label, found)
        return None
    return found


def _match_product(rewriter: Rewriter, expr: Any) -> tuple[Any, Any, Any] | None:
    """``(acc, matmul, d)`` of ``sum(astype(acc, f64) * d, axis=0)``, acc a 3-D matmul."""
    outer = rewriter.chain(expr, "sum", "multiply")
    if outer is None:
        return None
    total, product = outer
    for factor, d in (tuple(product.args), tuple(product.args)[::-1]):
        inner = rewriter.chain(factor, "astype", "matmul")
        if inner is None:
            continue
        cast, matmul = inner
        summed = axes_of(total.attrs.axis) == [0] and not total.attrs.keepdims
        if summed and dtype_of(cast) == "float64" and len(dims_of(matmul.args[1])) == 3:
            return cast.args[0], matmul, d
    return None


def _match_operands(
    rewriter: Rewriter, matmul: Any, d: Any, minimum: Any | None, label: str
) -> GroupedDense | str:
    """The operands of ``matmul(permute_dims(reshape(q), [1, 0, 2]), w)``, or what is wrong."""
    by_group, weight = matmul.args
    w_shape = static_shape(weight)
    if w_shape is None:
        return "the shape of the weights is symbolic"
    calls = rewriter.chain(by_group, "permute_dims", "reshape")
    if calls is None:
        return "activations are not cut into groups along K"
    moved, cut = calls
    if axes_of(moved.attrs.axes) != [1, 0, 2] or not same_dims(dims_of(cut)[1:], w_shape[:2]):
        return "activations are not cut into groups along K"
    if dtype_of(matmul) != "int32":
        return f"accumulates in {dtype_of(matmul)}, int32 is needed"
    w_scale = _narrow(rewriter, d)
    if w_scale is None or static_shape(w_scale) != [w_shape[0], 1, w_shape[2]]:
        return "group scales are no float16 or float32 of shape (G, 1, N)"
    w_min = None if minimum is None else _match_minimum(rewriter, minimum, by_group)
    if minimum is not None and (w_min is None or static_shape(w_min) != [w_shape[0], w_shape[2]]):
        return "what is added to the group sums is no minimum per group"
    if w_min is not None and dtype_of(w_min) != dtype_of(w_scale):
        wide = [_widened(rewriter, factors) for factors in (w_scale, w_min)]
        if None in wide:
            return f"minima are {dtype_of(w_min)}, the scales {dtype_of(w_scale)}"
        w_scale, w_min = wide
    activation = match_activation(rewriter, cut.args[0])
    if isinstance(activation, str):
        return activation
    if activation.by_rows and not activation.centred:
        return "zero points of rows are not moved to a centre, as LowerQDQ does it"
    if w_min is not None and (activation.zero_point or activation.zero_points is not None):
        return "weights with minima are multiplied by activations with a zero point"
    return GroupedDense(activation, weight, w_scale, w_min, label)


def _match_minimum(rewriter: Rewriter, expr: Any, by_group: Any) -> Any | None:
    """``matmul(permute_dims(astype(sum(astype(by_group, i32), 2), f64)), astype(m, f64))``."""
    calls = rewriter.chain(expr, "matmul", "permute_dims", "astype", "sum", "astype")
    if calls is None:
        return None
    matmul, moved, _, sums, widened = calls
    if axes_of(sums.attrs.axis) != [2] or dtype_of(widened) != "int32":
        return None
    transposed = axes_of(moved.attrs.axes) in ([], [1, 0])
    same = widened.args[0].same_as(by_group)
    return _narrow(rewriter, matmul.args[1]) if transposed and same else None


def _narrow(rewriter: Rewriter, expr: Any) -> Any | None:
    """The float16 or float32 that ``expr`` widens to float64, ``None`` if it is no such cast."""
    value = rewriter.value(expr)
    if isinstance(value, Constant) and dtype_of(value) == "float64":
        wide = value.value.numpy()
        for dtype in _FACTORS:
            with np.errstate(over="ignore"):
                narrow = wide.astype(dtype)
            if np.array_equal(narrow.astype(np.float64), wide):
                return rewriter.constants.once((value, dtype), partial(np.asarray, narrow))
        return None
    if op_name(value) == "relax.astype" and dtype_of(value.args[0]) in _FACTORS:
        return value.args[0]
    return None


def _widened(rewriter: Rewriter, factors: Any) -> Any | None:
    """A constant of scales or minima as float32, ``None`` if it is none."""
    value = rewriter.constants.value(factors)
    if value is None or value.dtype == np.float32:
        return None if value is None else factors
    return rewriter.constants.once((factors, "float32"), lambda: value.astype(np.float32))


def _obstacle(rewriter: Rewriter, dense: GroupedDense) -> str:
    """Why a dense of this form cannot be split, ``""`` if it can."""
    groups, size = (int(d) for d in dims_of(dense.weight)[:2])
    dims, columns = dims_of(dense.q), groups * size
    if dtype_of(dense.q) not in DIGIT_BITS:
        return f"activations are {dtype_of(dense.q)}, {' or '.join(DIGIT_BITS)} is needed"
    if dtype_of(dense.weight) != "int8":
        return f"weights are {dtype_of(dense.weight)}, int8 is needed"
    if not is_weight(dense.weight, rewriter):
        return "the second operand is computed at run time, it is no weight"
    if not dims or not hasattr(dims[-1], "value") or int(dims[-1]) != columns:
        return f"K of the activations is not G * group size = {columns}"
    if columns == 0:
        return "K = 0"
    # Twice the largest q: until the window's offset is added, sums of stored digits are larger.
    sum_q = size * 2 * (largest_integer(DIGIT_BITS[dtype_of(dense.q)]) + 1)
    bounds = value_range(dense.weight, rewriter.value, rewriter.weight_bounds)
    if not adds_exactly(rewriter, dense.w_scale, dense.w_min, bounds, sum_q):
        return (
            f"float64 would round: the group scales allow sums of {EXACT_SUM_LIMIT:g}, or are "
            "float32 that are not known to be multiples of 2^-24"
        )
    return ""
