"""Split integer matrix multiplies with weights into LSB and MSB passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.integers import INT32_MAX
from sparqle_tvm.numerics.window import WINDOWS, default_window
from sparqle_tvm.passes._activation import Activation, match_activation
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._match import axes_of, dims_of, dtype_of, op_name, static_shape
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._value_range import dtype_range, value_range, weight_bits
from sparqle_tvm.passes._weights import (
    DIGIT_BITS,
    dense_offset,
    is_weight,
    weight_outputs_first,
    weight_sums,
    zero_shift,
)


@mutator
class _Split(Rewriter):
    roots = ("relax.matmul",)

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.matmul":
            return None
        wide, weight = (self._cast_once(operand) for operand in call.args)
        if not dtype_of(wide).startswith(("int", "uint")):
            return None
        activation = match_activation(self, wide)
        if isinstance(activation, Activation) and activation.centred:
            activation = "its zero points are clipped"
        narrow, shift = weight if dtype_of(weight) == "int8" else self._narrow(weight), None
        if narrow is None:
            narrow, shift = self._centred(weight) or self._less(weight) or (None, None)
        if not isinstance(activation, str):
            obstacle = self._obstacle(call, activation.q, weight if narrow is None else narrow)
            activation = obstacle or activation
        if isinstance(activation, str):
            self.skip("matmul", self.label, activation)
            return None
        self.count()
        dense = self._build(activation, narrow)
        if dtype_of(call) == "int64":
            dense = relax.op.astype(self.emit(dense, self.label), "int64")
        if shift is None:
            return dense
        op = relax.op
        dtype = dtype_of(call)
        sums = self.emit(op.sum(op.astype(wide, dtype), axis=[-1], keepdims=True), "row_sums")
        term = self.emit(op.multiply(sums, self.emit(op.astype(shift, dtype))), "shift")
        return op.add(self.emit(dense, self.label), term)

    def _cast_once(self, expr: Any) -> Any:
        """An operand; widened in several steps, it is widened in one."""
        last = self.match(expr, "astype")
        inner = None if last is None else self.match(last.args[0], "astype")
        if (
            last is None
            or inner is None
            or not _holds(dtype_of(last.args[0]), dtype_of(inner.args[0]))
        ):
            return expr
        return self._cast_once(self.emit(relax.op.astype(inner.args[0], dtype_of(expr))))

    def _centred(self, weight: Any) -> tuple[Any, relax.Expr] | None:
        """A constant of 9 bits as int8, and what its columns are less by: (N,) int32.

        uint8 weights without their zero point are such. The sums of the activations, times that,
        are added behind the op.
        """
        value = self.constants.value(weight)
        if value is None or value.dtype.kind not in "iu" or value.ndim != 2 or not value.size:
            return None
        wide = value.astype(np.int64)
        low, high = wide.min(axis=0), wide.max(axis=0)
        shift = np.where(low < -128, low + 128, np.maximum(high - 127, 0))
        if (high - low).max() > 255 or np.abs(shift).max() > 256:
            return None
        key = (self.constants.source(weight), "centred")
        narrow = self.constants.once(key, lambda: (wide - shift).astype(np.int8))
        return narrow, make_const(shift.astype(np.int32))

    def _less(self, weight: Any, axis: int = 1) -> tuple[Any, relax.Expr] | None:
        """Weights of 8 bits less a zero point of run time, or unsigned, as of `_centred`.

        The zero point is one number or one for each channel, which lie along this axis.
        """
        op, emit, value = relax.op, self.emit, self.value(weight)
        if op_name(value) == "relax.permute_dims" and axes_of(value.attrs.axes) in ([], [1, 0]):
            found = self._less(value.args[0], 1 - axis)
            return None if found is None else (emit(op.permute_dims(found[0])), found[1])
        zero, dtype = None, "int32"
        if op_name(value) == "relax.subtract" and dtype_of(value) in ("int32", "int64"):
            dtype, zero = dtype_of(value), value.args[1]
            value = self.value(value.args[0])
        if op_name(value) == "relax.astype" and dtype_of(value) in ("int32", "int64"):
            value = value.args[0]
        shape = static_shape(value)
        if dtype_of(value) not in ("int8", "uint8") or shape is None or len(shape) != 2:
            return None
        if zero is None:
            shift = relax.const(0, dtype)
        else:
            along = [[shape[0], 1]] if axis == 0 else [[shape[1]], [1, shape[1]]]
            single = dialect.is_single(zero.ty)
            if not single and static_shape(zero) not in along:
                return None
            flat = emit(op.reshape(zero, () if single else (-1,)))
            shift = emit(op.negative(flat), "weight_shift")
        if dtype_of(value) == "int8":
            return None if zero is None else (value, shift)
        moved = op.subtract(emit(op.astype(value, "int32")), relax.const(128, "int32"))
        return emit(op.astype(emit(moved), "int8"), "weight"), emit(
            op.add(shift, relax.const(128, dtype))
        )

    def _build(self, activation: Activation, weight: Any) -> relax.Expr:
        q, label = activation.q, self.label
        k, signed = DIGIT_BITS[dtype_of(q)], not dtype_of(q).startswith("u")
        rows = weight_outputs_first(self, weight)
        zero_points, zero_point = activation.zero_points, activation.zero_point
        known = None if zero_points is not None else zero_point
        smallest = value_range(q, self.value)[0]
        window, _ = default_window(k, signed=signed, zero_point=known, smallest=smallest)
        digits = WINDOWS[window].digits(k, signed=signed, zero_point=zero_point)
        encode = dialect.Encode(
            q, zero_points, k=k, window=window, zero_point=zero_point, label=label
        )
        dense = dialect.split_dense(
            self.emit(encode.call(), "encoding"),
            rows,
            dense_offset(self, rows, None, digits, zero_points),
            k=k,
            window=window,
            act_signed=int(signed),
            zero_point=zero_point,
            in_features=int(dims_of(q)[-1]),
            weight_bits=weight_bits(value_range(weight, self.value, self.weight_bounds)),
            label=label,
        )
        if zero_points is None or dialect.is_single(zero_points.ty):
            return dense
        # Rows differ in what their sums lack, which is 0 unless a zero point is at an end.
        shift, sums = zero_shift(self, digits, zero_points), weight_sums(self, rows, None)
        return relax.op.add(self.emit(dense, label), self.emit(relax.op.multiply(shift, sums)))

    def _narrow(self, weight: Any) -> Any | None:
        """A weight that was widened from int8, or a constant within int8, as int8."""
        cast = self.match(weight, "astype")
        if cast is not None and dtype_of(cast.args[0]) == "int8":
            return cast.args[0]
        constant = self.constants.value(weight)
        if constant is not None and constant.dtype.kind in "iu":
            if constant.size and not (constant.min() >= -128 and constant.max() <= 127):
                return None
            key = (self.constants.source(weight), "int8")
            return self.constants.once(key, lambda: constant.astype(np.int8))
        moved = self.match(weight, "permute_dims")
        inner = None if moved is None else self._narrow(moved.args[0])
        if moved is None or inner is None:
            return None
        return self.emit(relax.op.permute_dims(inner, axes_of(moved.attrs.axes) or None))

    def _obstacle(self, call: relax.Call, activation: Any, weight: Any) -> str:
        """Why this integer matmul cannot be split, ``""`` if it can."""
        if dtype_of(call) not in ("int32", "int64"):
            return f"accumulates in {dtype_of(call)}, int32 is needed"
        if not is_weight(weight, self):
            return "the second operand is computed at run time, it is no weight"
        if dtype_of(weight) != "int8":
            return f"weights are {dtype_of(weight)}, int8 is needed"
        shape = static_shape(weight)
        if shape is None:
            return "the shape of the weights is symbolic"
        if len(shape) != 2:
            return f"weights have {len(shape)} dimensions, 2 are needed"
        dims = dims_of(activation)
        if not dims:
            return "the shape of the activations is not known"
        if shape[0] == 0:
            return "K = 0"
        if not hasattr(dims[-1], "value"):
            return f"K = {dims[-1]} of the activations is symbolic"
        low, high = dtype_range(dtype_of(activation))
        if dtype_of(call) == "int64" and shape[0] * 128 * (high - low) > INT32_MAX:
            return f"accumulates in int64, and a sum of {shape[0]} products may not fit int32"
        return ""


def _holds(wide: str, narrow: str) -> bool:
    """Whether one integer type has all values of another."""
    if not all(each.startswith(("int", "uint")) for each in (wide, narrow)):
        return False
    (low, high), (least, most) = dtype_range(wide), dtype_range(narrow)
    return low <= least and most <= high


@tvm.transform.module_pass(opt_level=0)
class SplitPrecision(RewritePass):
    """Rewrite ``matmul`` of integer activations and weights into split-precision form.

    Precondition: int8 or uint8 (int16 or uint16) activations (.., K) with K static, as they are or
    widened and less a zero point; int8 weights of two dimensions that are constants, parameters,
    or unpacked or widened from those; int32 result, or int64 where int32 holds every sum. A zero
    point is a constant or comes at run time in the dtype of the activations, one in all or one per
    row. The window is that of ``numerics.default_window``: centred on the zero point wherever that
    pays.

    Before::

        a = R.subtract(R.astype(q, "int32"), R.const(128, "int32"))
        acc = R.matmul(a, R.astype(R.permute_dims(w), "int32"), out_dtype="int32")

    After::

        enc = R.sparqle.encode(q, k=4, window="signed", zero_point=128, group_size=0)
        acc = R.sparqle.split_dense(enc, w, offset, k=4, window="signed", act_signed=0,
                                    zero_point=128, in_features=K, weight_bits=4)

    Constant weights of 9 bits (uint8 without their zero point) are brought into int8 by column, and
    the sums of the activations times the difference are added behind the op. So are int8 or uint8
    weights with a zero point of run time, one or one for each column.

    Zero points per row that lie at an end of their type leave a term ``shift * sum w`` that is
    added behind the op.
    """

    rewriter = _Split
