"""What counts as a weight, and the constants that a dense in split-precision form takes from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.dialect.weights import WEIGHT_SUMS, Bounds
from sparqle_tvm.errors import CompileError
from sparqle_tvm.numerics.dense import EXACT_SUM_LIMIT, weight_channel_sums
from sparqle_tvm.numerics.quantization import is_fixed_point
from sparqle_tvm.numerics.window import Digits
from sparqle_tvm.passes._constants import Constant, make_const
from sparqle_tvm.passes._match import axes_of, dtype_of, int_shape, op_name
from sparqle_tvm.passes._rewrite import Rewriter
from sparqle_tvm.passes._value_range import LAYOUT_OPS

# Digit width for each activation container.
DIGIT_BITS = {"int8": 4, "uint8": 4, "int16": 8, "uint16": 8}
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
    elif (source := _before(rewriter, weight, axes, shape)) is not None:
        return source
    moved = rewriter.emit(relax.op.permute_dims(weight, axes))
    return moved if len(shape) == len(axes) else rewriter.emit(relax.op.reshape(moved, shape))


def _before(
    rewriter: Rewriter, weight: Any, axes: list[int], shape: tuple[int, ...]
) -> relax.Expr | None:
    """What a weight was of that shape, if these axes undo how it was permuted since."""
    moved = rewriter.match(weight, "permute_dims")
    if moved is None:
        return None
    ndim = len(axes)
    done = axes_of(moved.attrs.axes) or list(reversed(range(ndim)))
    if [done[axis] for axis in axes] != list(range(ndim)):
        return None
    source = moved.args[0]
    while int_shape(source) != list(shape):
        cut = rewriter.match(source, "reshape")
        if cut is None:
            return None
        source = cut.args[0]
    return source


def weight_sums(
    rewriter: Rewriter, weight: Any, w_scale: Any | None, factor: int = 1
) -> relax.Expr:
    """The sums of the channels of a weight (N, K) int8, times a whole number.

    Without scales ``factor * sum_k w`` as (N,) int32; with those of G groups, (N, G),
    ``factor * sum_g d_g * sum_{k in g} w`` as (N,) float64, in which each term is exact.
    """
    constants = rewriter.constants
    operands = [weight] if w_scale is None else [weight, w_scale]
    values = [v for v in map(constants.value, operands) if v is not None]
    if len(values) == len(operands):
        key = (*map(constants.source, operands), "weight sums", factor)
        return constants.once(key, lambda: weight_channel_sums(factor, *values))
    outputs, columns = int_shape(weight)
    if not factor:
        dtype = np.int32 if w_scale is None else np.float64
        return constants.once(("zeros", outputs, dtype), lambda: np.zeros(outputs, dtype))
    op = relax.op
    if all(map(rewriter.declared, operands)):
        out = relax.TensorType((outputs,), "int32" if w_scale is None else "float64")
        given = relax.Tuple([*operands, relax.prim_value(factor)])
        return rewriter.emit(op.call_dps_packed(WEIGHT_SUMS, given, out_ty=out), "weight_sums")
    if w_scale is None:
        total = op.sum(op.astype(weight, "int32"), axis=[1])
        return rewriter.emit(op.multiply(total, relax.const(factor, "int32")), "weight_sums")
    groups = int_shape(w_scale)[1]
    by_group = rewriter.emit(op.reshape(weight, (outputs, groups, columns // groups)))
    sums64 = rewriter.emit(op.astype(op.sum(op.astype(by_group, "int32"), axis=[2]), "float64"))
    total = op.sum(op.multiply(sums64, op.astype(w_scale, "float64")), axis=[1])
    return rewriter.emit(op.multiply(total, relax.const(float(factor), "float64")), "weight_sums")


def zero_shift(rewriter: Rewriter, digits: Digits, zero_points: relax.Expr) -> relax.Var:
    """`Digits.shift` of zero points that come at run time, int32 of their shape."""
    op = relax.op
    zero = rewriter.emit(op.astype(zero_points, "int32"), "zero_point")
    if not digits.window.centred:
        return rewriter.emit(op.negative(zero), "zero_shift")
    # The clip of integers takes their limits as numbers of their own dtype.
    low, high = (relax.const(edge, "int32") for edge in digits.centre_range)
    centre = rewriter.emit(op.minimum(op.maximum(zero, low), high), "centre")
    return rewriter.emit(op.subtract(centre, zero), "zero_shift")


def dense_offset(
    rewriter: Rewriter,
    weight: Any,
    w_scale: Any | None,
    digits: Digits,
    zero_points: relax.Expr | None = None,
) -> relax.Expr:
    """The offset that a dense adds to its sums over stored digits: (N,) int32 or float64.

    With a constant zero point, or one of run time, the sums become those of ``q - zero point``;
    with one per row those of ``q - centre``, see `row_correction`.
    """
    if zero_points is None:
        return weight_sums(rewriter, weight, w_scale, digits.offset)
    own = weight_sums(rewriter, weight, w_scale, -digits.bias)
    if not dialect.is_single(zero_points.ty):
        return own
    shift, sums = zero_shift(rewriter, digits, zero_points), weight_sums(rewriter, weight, w_scale)
    if zero_points.ty.ndim != 1:
        shift = rewriter.emit(relax.op.reshape(shift, (1,)))
    shift = rewriter.emit(relax.op.astype(shift, dtype_of(sums)))
    term = rewriter.emit(relax.op.multiply(shift, sums), "zero_term")
    return rewriter.emit(relax.op.add(own, term), "offset")


def group_scale(op: dialect.Dense) -> relax.Expr | None:
    """The scales per group of the weights, None if there are none."""
    return op.w_scale if isinstance(op, dialect.ScaledDense) and op.group_size else None


def remaining_offset(rewriter: Rewriter, op: dialect.Dense, undone: int) -> relax.Expr | None:
    """What a split dense adds besides `undone` times the sums of its weights: (N,), or nothing.

    Who multiplies digits without their bias has undone ``-bias`` already.

    Raises
    ------
    CompileError
        If a float64 offset cannot be split exactly into the window's part and the rest.
    """
    own = weight_sums(rewriter, op.weight, group_scale(op), undone)
    whole, part = rewriter.constants.value(op.offset), rewriter.constants.value(own)
    added = rewriter.match(op.offset, "add")
    if part is not None and not part.any():
        rest = whole
    elif whole is None and rewriter.same(op.offset, own):
        return None
    elif added is not None and rewriter.same(added.args[0], own):
        return added.args[1]
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
    """Whether float64 adds these to sums of integers times group scales without rounding."""
    scaled = np.ldexp(sums, 24)
    return bool(np.all(scaled == np.rint(scaled)) and np.all(np.abs(sums) < EXACT_SUM_LIMIT))


def _declared(rewriter: Rewriter, expr: Any) -> Bounds | None:
    """The bounds that are declared of a parameter, maybe moved."""
    value = rewriter.value(expr)
    while op_name(value) in LAYOUT_OPS and isinstance(value.args[0], relax.Var):
        value = rewriter.value(value.args[0])
    return rewriter.weight_bounds.get(value) if isinstance(value, relax.Var) else None


def adds_exactly(
    rewriter: Rewriter, w_scale: Any, w_min: Any | None, bounds: tuple[float, float], sum_q: int
) -> bool:
    """Whether float64 adds the groups of a dense without rounding, as far as can be known.

    Scales and minima that are no constants are as they are declared; of those that are not, it is
    supposed that they are small enough, and in float32 no multiples of 2^-24.

    Parameters
    ----------
    w_scale, w_min : relax.Expr
        (G, 1, N) and (G, N) float16 or float32; the minima may be ``None``.
    bounds : tuple of float
        Smallest and largest weight.
    sum_q : int
        Bound on the sum of the magnitudes of q over a group.
    """
    bound = np.float64(0.0)
    for factors, largest in ((w_scale, max(map(abs, bounds))), (w_min, 1.0)):
        if factors is None:
            continue
        values = rewriter.constants.value(factors)
        declared = _declared(rewriter, factors)
        if declared is not None and np.isfinite(declared).all():
            groups = int_shape(factors)[0]
            bound = bound + sum_q * largest * max(map(abs, declared)) * groups
            continue
        if dtype_of(factors) == "float32" and (values is None or not is_fixed_point(values)):
            return False
        if values is not None:
            by_group = np.abs(values.astype(np.float64)).reshape(len(values), -1)
            bound = bound + sum_q * largest * by_group.sum(axis=0)
    return bool(np.all(bound < EXACT_SUM_LIMIT))
