"""Take split precision back: the same integers in plain Relax ops, without planes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax import op
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.integers import CONTAINER
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX
from sparqle_tvm.passes._encodings import in_bands
from sparqle_tvm.passes._match import dims_of, int_shape
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._weights import arranged, remaining_offset, zero_shift


@dataclass(frozen=True)
class _Plain:
    """An encoding without planes: what stands for its fields."""

    encoder: dialect.Encoder
    q: relax.Var
    fields: dict[str, relax.Var]


@mutator
class _Merge(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: Any) -> None:
        super().__init__(mod, owner)
        self.plain: dict[Any, _Plain] = {}

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> relax.Expr:
        plain = self.plain.get(item.tuple_value)
        if plain is None:
            return super().visit_tuple_getitem_(item)
        return plain.fields[plain.encoder.fields[item.index]]

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        op, before = dialect.Op.of(call), dialect.Dense.of(original)
        if isinstance(op, dialect.Encoder):
            # The encoding itself stays, until nothing reads it any more.
            self._merge_encoding(op)
        elif isinstance(op, dialect.SplitDense | dialect.SplitDenseScaled):
            plain = self.plain.get(before.encoding) if before is not None else None
            if plain is not None:
                self.count()
                return self._dense(op, call, plain.q)
        return None

    def _merge_encoding(self, op: dialect.Encoder) -> None:
        if self.passed_on(self.bound, len(dialect.PLANES)):
            self.skip(op.NAME, op.label, "its planes have other readers than dense ops")
            return
        bound, fields = self.bound, {}
        if isinstance(op, dialect.QuantizeEncode):
            q, fields["scale"] = self._quantize(op)
        else:
            q = self._integers(op, fields)
        if op.group_size:
            fields["group_sums"] = self._group_sums(op, q, fields)
        self.plain[bound] = _Plain(op, q, fields)

    def _quantize(self, encode: dialect.QuantizeEncode) -> tuple[relax.Var, relax.Var]:
        """The integers and the scales of ``quantize_encode``, as `numerics.choice` has them."""
        x, qmax = encode.x, encode.qmax
        amax = self.emit(op.max(op.abs(x), axis=[-1], keepdims=True), "amax")
        bounded = op.maximum(amax, relax.const(SMALLEST_AMAX, "float32"))
        scale = step = self.emit(op.divide(bounded, relax.const(float(qmax), "float32")), "scale")
        if encode.factors is not None:
            step = self.emit(op.multiply(scale, encode.factors), "step")
        q = self.emit(op.clip(op.round(op.divide(x, step)), -qmax, qmax), "q")
        if encode.bands is not None:
            q = self._clip_to_window(q, encode)
        return self.emit(op.astype(q, CONTAINER[encode.k]), "q"), scale

    def _clip_to_window(self, q: relax.Var, encode: dialect.QuantizeEncode) -> relax.Var:
        """Move the q in the bands (2, K) to the edges of the window, all in float32."""
        low, high = (relax.const(edge, "float32") for edge in encode.digits.zero_range)
        below, above = in_bands(self.emit, q, encode)
        return self.emit(op.where(below, low, op.where(above, high, q)), "q")

    def _integers(self, encode: dialect.Encoder, fields: dict[str, relax.Var]) -> relax.Var:
        """Integers that arrive quantized; less their centre if that is known at run time only."""
        if encode.zero_points is None:
            return self.emit(encode.x, "q")
        fields["zero_points"] = self.emit(encode.zero_points, "zero_points")
        shift = zero_shift(self, encode.digits, encode.zero_points)
        centre = self.emit(op.add(shift, op.astype(encode.zero_points, "int32")), "centre")
        return self.emit(op.subtract(op.astype(encode.x, "int32"), centre), "q")

    def _group_sums(
        self, encode: dialect.Encoder, q: relax.Var, fields: dict[str, relax.Var]
    ) -> relax.Var:
        """Sums of q - zero point, (.., K / size) int32."""
        *lead, columns = dims_of(q)
        size, real = encode.group_size, op.astype(q, "int32")
        if encode.zero_points is not None:
            # q lacks the centre, which is the shift more than the zero point.
            real = op.add(real, zero_shift(self, encode.digits, fields["zero_points"]))
        elif encode.zero_point:
            real = op.subtract(real, relax.const(encode.zero_point, "int32"))
        grouped = op.reshape(self.emit(real), (*lead, int(columns) // size, size))
        return self.emit(op.sum(self.emit(grouped), axis=[-1]), "group_sums")

    def _dense(self, dense: dialect.Dense, call: relax.Call, q: relax.Var) -> relax.Expr:
        digits = dense.digits
        # What the integers were less of is undone; constant zero points are still in them.
        undone = -digits.bias if dense.zero_points is not None else digits.centre - digits.bias
        offset = remaining_offset(self, dense, undone)
        if not isinstance(dense, dialect.SplitDenseScaled):
            return self._product(q, dense.weight, offset)
        if dense.group_size:
            return op.multiply(self._grouped(dense, call, q, offset), dense.act_scale)
        acc = op.astype(self.emit(self._product(q, dense.weight, offset), "acc"), "float32")
        return op.multiply(self.emit(op.multiply(acc, dense.act_scale)), dense.w_scale)

    def _product(self, q: relax.Var, weight: relax.Expr, offset: relax.Expr | None) -> relax.Expr:
        """``q @ w.T + offset`` in int32."""
        moved = arranged(self, weight, [1, 0], tuple(int_shape(weight)[::-1]))
        acc = op.matmul(q, moved, out_dtype="int32")
        return acc if offset is None else op.add(self.emit(acc, "acc"), offset)

    def _grouped(
        self,
        dense: dialect.SplitDenseScaled,
        call: relax.Call,
        q: relax.Var,
        offset: relax.Expr | None,
    ) -> relax.Var:
        """The float64 sum over the groups, rounded to float32 once: (.., N)."""
        outputs, size = dense.out_features, dense.group_size
        groups, rows = dense.in_features // size, math.prod(dims_of(q)[:-1])
        by_group = self.emit(op.reshape(q, (rows, groups, size)))
        by_group = self.emit(op.permute_dims(by_group, [1, 0, 2]), "q_groups")
        parts = arranged(
            self, dense.weight, [1, 2, 0], (groups, size, outputs), (outputs, groups, size)
        )
        acc = self.emit(op.matmul(by_group, parts, out_dtype="int32"), "acc")
        d = op.astype(arranged(self, dense.w_scale, [1, 0], (groups, 1, outputs)), "float64")
        y = self.emit(op.sum(op.multiply(op.astype(acc, "float64"), d), axis=[0]), "y64")
        if dense.has_min:
            sums = op.astype(op.reshape(dense.group_sums, (rows, groups)), "float64")
            m = op.astype(arranged(self, dense.w_min, [1, 0], (groups, outputs)), "float64")
            y = self.emit(op.add(y, self.emit(op.matmul(self.emit(sums), self.emit(m)))), "y64")
        if offset is not None:
            y = self.emit(op.add(y, offset), "y64")
        return self.emit(op.reshape(op.astype(y, "float32"), call.ty.shape), "y")


@tvm.transform.module_pass(opt_level=0)
class MergePrecision(RewritePass):
    """Bring a module in split-precision form back to plain integer ops with the same results.

    This is the reference that the split form is held to: it computes from q in int8, by other ops
    and kernels, and knows factors and bands. It is a form for checking, not for speed.

    Precondition: the planes of an encoding are read by dense ops only.

    Before::

        enc = R.sparqle.quantize_encode(x, factors, k=4, window="signed", qmax=127)
        y = R.sparqle.split_dense_scaled(enc, enc[4], w, w_scale, window_bias, group_size=0, ...)

    After::

        scale = R.maximum(R.max(R.abs(x), axis=[-1], keepdims=True), 1e-30) / 127
        q = R.astype(R.clip(R.round(x / (scale * factors)), -127, 127), "int8")
        acc = R.matmul(q, R.permute_dims(w), out_dtype="int32")
        y = R.astype(acc, "float32") * scale * w_scale
    """

    rewriter = _Merge
