"""Turn dequantize-matmul into an integer matmul and a rescale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.integers import INT32_MAX
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._match import axes_of, dtype_of, op_name, static_shape
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._value_range import dtype_range
from sparqle_tvm.passes._weights import DIGIT_BITS


@dataclass(frozen=True)
class _Dequantized:
    """``scale * (values - zero_point)``; empty arrays stand for what is not constant."""

    values: Any
    scale: np.ndarray
    zero_point: np.ndarray
    zero: Any
    transposed: bool
    axis: int


@mutator
class _Lower(Rewriter):
    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.matmul" or dtype_of(call) != "float32":
            return None
        activation, weight = (self._dequantized(arg) for arg in call.args)
        if activation is None or weight is None:
            return None
        wide = [dtype_of(arg) for arg in call.args]
        reason = self._obstacle(activation, weight)
        if wide != ["float32", "float32"]:
            reason = f"dequantized to {' x '.join(wide)}, float32 is needed"
        if reason:
            self.skip("matmul", self.label, reason)
            return None
        self.count()
        return self._build(activation, weight)

    def _dequantized(self, expr: Any) -> _Dequantized | None:
        moved = self.match(expr, "permute_dims")
        inner = self.match(moved.args[0] if moved is not None else expr, "dequantize")
        if inner is None:
            return None
        axes = axes_of(moved.attrs.axes) if moved is not None else []
        if axes != list(range(len(axes)))[::-1]:
            return None
        values, *parameters = inner.args
        known = [self.constants.value(each) for each in parameters]
        scale, zero_point = (np.empty(0) if value is None else value for value in known)
        axis = int(inner.attrs.axis) % values.ty.ndim
        return _Dequantized(values, scale, zero_point, inner.args[2], moved is not None, axis)

    def _obstacle(self, activation: _Dequantized, weight: _Dequantized) -> str:
        """Why the product of the two cannot be an integer matmul, ``""`` if it can."""
        shape = static_shape(weight.values)
        if activation.transposed:
            return "the activation is transposed after it is dequantized"
        if dtype_of(activation.values) not in DIGIT_BITS or dtype_of(weight.values) != "int8":
            found = f"{dtype_of(activation.values)} x {dtype_of(weight.values)}"
            return f"quantized as {found}, {' or '.join(DIGIT_BITS)} x int8 is needed"
        if weight.zero_point.size == 0:
            return "the zero point of the weight is not constant"
        if activation.zero_point.size == 0 and not self._takes(activation):
            return "the zero point of the activation is not one number of the activation's type"
        if weight.scale.size == 0 or activation.scale.size == 0:
            return "a scale is not constant"
        if activation.scale.size != 1 or activation.zero_point.size > 1:
            return "the activation has a scale or zero point per column of K"
        if shape is None or len(shape) != 2:
            return "the weight is not a matrix of known shape"
        columns_axis = 0 if weight.transposed else 1
        if weight.scale.size > 1 and weight.axis != columns_axis:
            return "the weight has a scale per row of K"
        shifted = self._shifted(weight)
        if shifted is None:
            return "the weight has a zero point and is not constant, or leaves int8 without it"
        return self._overflow(activation, shifted, shape[0] if columns_axis else shape[1])

    def _takes(self, activation: _Dequantized) -> bool:
        """Whether a zero point of run time is one that the integers can be less of."""
        same = dtype_of(activation.zero) == dtype_of(activation.values)
        return same and dialect.is_single(activation.zero.ty)

    def _overflow(self, activation: _Dequantized, shifted: Any, columns: int) -> str:
        """Whether the int32 sum could be too small for what the floats hold, and where."""
        low, high = dtype_range(dtype_of(activation.values))
        zero = activation.zero_point.reshape(-1)
        # Of run time it may be any: the difference is at most the width of the type.
        largest = max(high - zero[0], zero[0] - low) if zero.size else high - low
        weights = 128 * columns
        if isinstance(shifted, np.ndarray) and shifted.size:
            magnitudes = np.abs(shifted.astype(np.int64))
            weights = int(max(magnitudes.sum(axis=0).max(), magnitudes.sum(axis=1).max()))
        if largest * weights <= INT32_MAX:
            return ""
        return f"sums over K = {columns} can leave int32 with {dtype_of(activation.values)}"

    def _shifted(self, weight: _Dequantized) -> Any | None:
        """The weight with its zero point taken off, if that is possible within int8."""
        values = self.constants.value(weight.values)
        if values is None:
            return None if weight.zero_point.any() else weight.values
        zero = weight.zero_point.astype(np.int64)
        if zero.size > 1:
            zero = np.expand_dims(zero.reshape(-1), 1 - weight.axis)
        wide = values.astype(np.int64) - zero
        inside = wide.size == 0 or (wide.min() >= -128 and wide.max() <= 127)
        return wide.astype(np.int8) if inside else None

    def _build(self, activation: _Dequantized, weight: _Dequantized) -> relax.Expr:
        op, shifted = relax.op, self._shifted(weight)
        second = make_const(shifted) if isinstance(shifted, np.ndarray) else shifted
        if weight.transposed:
            second = self.emit(op.permute_dims(second))
        first, zero = activation.values, self._zero(activation)
        if zero is not None or dtype_of(first) != "int8":
            first = self.emit(op.astype(first, "int32"), "q")
            second = self.emit(op.astype(second, "int32"), "weight")
            first = first if zero is None else self.emit(op.subtract(first, zero), "q")
        acc = self.emit(op.matmul(first, second, out_dtype="int32"), self.label)
        scale = make_const(activation.scale.reshape(()).astype(np.float32))
        scaled = self.emit(op.multiply(self.emit(op.astype(acc, "float32")), scale))
        w_scale = weight.scale.reshape(-1) if weight.scale.size > 1 else weight.scale.reshape(())
        return op.multiply(scaled, make_const(w_scale.astype(np.float32)))

    def _zero(self, activation: _Dequantized) -> relax.Expr | None:
        """The zero point as int32, None if it is 0."""
        if not activation.zero_point.size:
            return self.emit(relax.op.astype(activation.zero, "int32"), "zero_point")
        value = int(activation.zero_point.reshape(-1)[0])
        return relax.const(value, "int32") if value else None


@tvm.transform.module_pass(opt_level=0)
class LowerQDQ(RewritePass):
    """Compute ``matmul(dequantize(q), dequantize(w))`` in integers.

    Precondition: int8 or uint8 (int16 or uint16) activations, int8 weights, constant scales, one
    for the activation, one or one per output column for the weight; constant zero points, that of
    the activation may come at run time. The integer sum is exact, and fits int32 whatever the
    activations are; the result differs from the float matmul it replaces by that one's rounding.

    Before::

        y = R.matmul(R.dequantize(q, s, z), R.dequantize(w, sw, zw, axis=1))

    After::

        a = R.subtract(R.astype(q, "int32"), z)  # q itself if that is int8 and z is 0
        acc = R.matmul(a, R.astype(w - zw, "int32"), out_dtype="int32")
        y = R.astype(acc, "float32") * s * sw
    """

    rewriter = _Lower
