"""Turn dequantize-matmul into an integer matmul and a rescale."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.integers import INT32_MAX
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._dequantized import Dequantized, match_dequantized
from sparqle_tvm.passes._grouped_weight import GroupedWeight
from sparqle_tvm.passes._match import dims_of, dtype_of, op_name, same_dims, static_shape
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._value_range import dtype_range
from sparqle_tvm.passes._weights import DIGIT_BITS, is_weight


@mutator
class _Lower(Rewriter):
    roots = ("relax.matmul",)

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.matmul" or dtype_of(call) not in ("float32", "float16"):
            return None
        activation, weight = (match_dequantized(self, arg) for arg in call.args)
        if activation is None or weight is None:
            return None
        activation = self._by_rows(activation)
        if GroupedWeight.is_one(weight):
            return self._grouped(call, activation, weight)
        reason = self._obstacle(activation, weight)
        if reason:
            self.skip("matmul", self.label, reason)
            return None
        self.count()
        found = self._build(activation, weight)
        if dtype_of(call) == "float32":
            return found
        return relax.op.astype(self.emit(found), dtype_of(call))

    def _grouped(
        self, call: relax.Call, activation: Dequantized, weight: Dequantized
    ) -> relax.Expr | None:
        """The product with a weight that has scales per group of K."""
        found = GroupedWeight.of(self, weight)
        if isinstance(found, GroupedWeight):
            found = self._obstacle_of_activation(activation) or found
        if isinstance(found, str):
            self.skip("matmul", self.label, found)
            return None
        self.count()
        first = activation.moved(self, activation.values)
        scale, zero = self._scale(activation), self._zero(activation)
        return found.product(self, call, first, scale, zero, self.label)

    def _obstacle(self, activation: Dequantized, weight: Dequantized) -> str:
        """Why the product of the two cannot be an integer matmul, ``""`` if it can."""
        shape = static_shape(weight.values)
        if dtype_of(weight.values) not in ("int8", "uint8"):
            found = f"{dtype_of(activation.values)} x {dtype_of(weight.values)}"
            return f"quantized as {found}, {' or '.join(DIGIT_BITS)} x int8 is needed"
        reason = self._obstacle_of_activation(activation)
        if reason:
            return reason
        if isinstance(weight.zero, relax.Expr) and dtype_of(weight.zero) != dtype_of(weight.values):
            return "the zero point of the weight comes at run time, and is not of the weight's type"
        if not is_weight(weight.values, self) or not is_weight(weight.scale, self):
            return "the second operand is computed at run time, it is no weight"
        if shape is None or len(shape) != 2:
            return "the weight is not a matrix of known shape"
        if weight.moves and not weight.transposed:
            return "the weight is moved otherwise than transposed"
        if weight.per_row or weight.axis not in (None, 0 if weight.transposed else 1):
            return "the weight has a scale per row of K"
        columns = shape[1] if weight.transposed else shape[0]
        return self._overflow(activation, self._shifted(weight), columns)

    def _obstacle_of_activation(self, activation: Dequantized) -> str:
        """Why an activation cannot be multiplied as integers, ``""`` if it can."""
        if dtype_of(activation.values) not in DIGIT_BITS:
            found = dtype_of(activation.values)
            return f"the activation is {found}, {' or '.join(DIGIT_BITS)} is needed"
        if activation.axis is not None or (activation.per_row and activation.moves):
            return "the activation has a scale or zero point per column of K"
        if not self._takes(activation):
            return (
                "the zero point of the activation is neither one number nor one for each row, of "
                "the activation's type"
            )
        return ""

    def _by_rows(self, activation: Dequantized) -> Dequantized:
        """Scales along the rows of a matrix as (M, 1), which is what those of any rank are."""
        if activation.axis != 0 or activation.values.ty.ndim != 2:
            return activation
        rows = [dims_of(activation.values)[0], tvm.tirx.IntImm("int64", 1)]

        def column(each: Any) -> Any:
            if not isinstance(each, relax.Expr) or dialect.is_single(each.ty):
                return each
            return self.emit(relax.op.reshape(each, rows)) if each.ty.ndim == 1 else each

        scale, zero = column(activation.scale), column(activation.zero)
        return replace(activation, axis=None, scale=scale, zero=zero)

    def _takes(self, activation: Dequantized) -> bool:
        """Whether a zero point is one number, or at run time of the type of the integers."""
        zero = activation.zero
        if zero is None or isinstance(zero, np.ndarray):
            return zero is None or zero.size == 1
        if dtype_of(zero) != dtype_of(activation.values):
            return False
        rows = [*dims_of(activation.values)[:-1], tvm.tirx.IntImm("int64", 1)]
        return dialect.is_single(zero.ty) or same_dims(dims_of(zero), rows)

    def _overflow(self, activation: Dequantized, shifted: Any, columns: int) -> str:
        """Whether the int32 sum could be too small for what the floats hold, and where."""
        low, high = dtype_range(dtype_of(activation.values))
        # Of run time it may be any: the difference is at most the width of the type.
        largest, zero = high - low, _number(activation.zero)
        if zero is not None:
            largest = max(high - zero, zero - low)
        weights = 255 * columns
        if isinstance(shifted, np.ndarray) and shifted.size:
            magnitudes = np.abs(shifted.astype(np.int64))
            weights = int(max(magnitudes.sum(axis=0).max(), magnitudes.sum(axis=1).max()))
        if largest * weights <= INT32_MAX:
            return ""
        return f"sums over K = {columns} can leave int32 with {dtype_of(activation.values)}"

    def _shifted(self, weight: Dequantized) -> np.ndarray | None:
        """A constant weight less a constant zero point: int8, or int32 where it must be."""
        values = self.constants.value(weight.values)
        if values is None or isinstance(weight.zero, relax.Expr):
            return None
        zero = np.zeros((), np.int64) if weight.zero is None else weight.zero.astype(np.int64)
        if zero.size > 1 and zero.ndim == 1 and weight.axis is not None:
            zero = np.expand_dims(zero, 1 - weight.axis)
        wide = values.astype(np.int64) - (zero if zero.size > 1 else zero.reshape(()))
        inside = wide.size == 0 or (wide.min() >= -128 and wide.max() <= 127)
        return wide.astype(np.int8 if inside else np.int32)

    def _second(self, weight: Dequantized) -> relax.Expr:
        """The weight (K, N) less its zero point: int8 as it is, or int32."""
        op, shifted, zero = relax.op, self._shifted(weight), weight.zero
        if shifted is not None:
            return weight.moved(self, make_const(shifted))
        values = weight.moved(self, weight.values)
        if isinstance(zero, np.ndarray):
            zero = make_const(zero.astype(np.int32)) if zero.any() else None
        if zero is None:
            return values
        wide = self.emit(op.astype(values, "int32"), "weight")
        # One number, or one for each column.
        flat = self.emit(op.reshape(zero, () if dialect.is_single(zero.ty) else (-1,)))
        return self.emit(op.subtract(wide, self.emit(op.astype(flat, "int32"), "weight_zero")))

    def _build(self, activation: Dequantized, weight: Dequantized) -> relax.Expr:
        op, second = relax.op, self._second(weight)
        first, zero = activation.moved(self, activation.values), self._zero(activation)
        if zero is not None or (dtype_of(first), dtype_of(second)) != ("int8", "int8"):
            first = self.emit(op.astype(first, "int32"), "wide")
            if dtype_of(second) != "int32":
                second = self.emit(op.astype(second, "int32"), "weight")
            first = first if zero is None else self.emit(op.subtract(first, zero), "centred")
        acc = self.emit(op.matmul(first, second, out_dtype="int32"), self.label)
        wide = self.emit(op.astype(acc, "float32"))
        scaled = self.emit(op.multiply(wide, self._scale(activation)))
        return op.multiply(scaled, self._scale(weight))

    def _scale(self, of: Dequantized) -> relax.Expr:
        """All that the sum is multiplied with because of one operand: (), (N,) or (.., 1)."""
        factor = math.prod(of.factors)
        known = self.constants.value(of.scale)
        if known is not None:
            # One float32 product: where there are no factors, the scale as it is.
            wide = known.astype(np.float32) if factor == 1 else known.astype(np.float64) * factor
            shape = known.shape if of.per_row else (-1,) if known.size > 1 else ()
            return make_const(wide.astype(np.float32).reshape(shape))
        scale = of.scale
        if dtype_of(scale) != "float32":
            scale = self.emit(relax.op.astype(scale, "float32"))
        if factor != 1:
            scale = self.emit(relax.op.multiply(scale, relax.const(factor, "float32")))
        if of.per_row or scale.ty.ndim == (0 if of.axis is None else 1):
            return scale
        return self.emit(relax.op.reshape(scale, () if of.axis is None else (-1,)))

    def _zero(self, activation: Dequantized) -> relax.Expr | None:
        """The zero point as int32, None if it is 0."""
        value = _number(activation.zero)
        if value is None:
            return self.emit(relax.op.astype(activation.zero, "int32"), "zero_point")
        return relax.const(value, "int32") if value else None


def _number(zero: Any) -> int | None:
    """A constant zero point, None if it comes at run time."""
    if zero is None or isinstance(zero, np.ndarray):
        return 0 if zero is None else int(zero.reshape(-1)[0])
    return None


@tvm.transform.module_pass(opt_level=0)
class LowerQDQ(RewritePass):
    """Compute ``matmul(dequantize(q), dequantize(w))`` in integers.

    Precondition: int8 or uint8 (int16 or uint16) activations with one scale and zero point, or with
    one per row, which may come at run time; int8 or uint8 weights with one scale and zero point, or
    with one per output column, constants or parameters (a zero point may come at run time); or
    constant weights with a scale per group of K, see `GroupedWeight`. Floats may be spelled out
    (``float(q) * s``), of 16 bits, moved, and multiplied with a number. The integer sum is exact,
    and fits int32 whatever the activations are; the result differs from the float matmul it
    replaces by that one's rounding.

    Before::

        y = R.matmul(R.dequantize(q, s, z), R.dequantize(w, sw, zw, axis=1))

    After::

        a = R.subtract(R.astype(q, "int32"), z)  # q itself if that is int8 and z is 0
        acc = R.matmul(a, R.astype(w - zw, "int32"), out_dtype="int32")
        y = R.astype(acc, "float32") * s * sw
    """

    rewriter = _Lower
