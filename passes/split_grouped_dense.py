"""Split integer dense ops whose weights have a scale per group along K."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.window import WINDOWS, default_window
from sparqle_tvm.passes._grouped_form import GroupedDense, match_grouped
from sparqle_tvm.passes._match import dtype_of, int_shape
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._value_range import value_range, weight_bits
from sparqle_tvm.passes._weights import DIGIT_BITS, arranged, dense_offset


@mutator
class _SplitGrouped(Rewriter):
    roots = ("relax.astype",)

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        found = match_grouped(self, call)
        if found is None:
            return None
        self.count()
        dense = self.emit(self._build(found), found.label)
        return relax.op.reshape(dense, call.ty.shape)

    def _build(self, found: GroupedDense) -> relax.Call:
        groups, size, outputs = int_shape(found.weight)
        columns, k = groups * size, DIGIT_BITS[dtype_of(found.q)]
        signed = not dtype_of(found.q).startswith("u")
        smallest, zero_point = value_range(found.q, self.value)[0], found.activation.zero_point
        zero_points = found.activation.zero_points
        known = None if zero_points is not None else zero_point
        window, _ = default_window(k, signed=signed, zero_point=known, smallest=smallest)
        digits = WINDOWS[window].digits(k, signed=signed, zero_point=zero_point)
        weight = arranged(self, found.weight, [2, 0, 1], (outputs, columns))
        w_scale = arranged(self, found.w_scale, [2, 0, 1], (outputs, groups))
        sum_size = size if found.w_min is not None else 0
        encode = dialect.Encode(
            found.q,
            zero_points,
            k=k,
            window=window,
            zero_point=zero_point,
            group_size=sum_size,
            label=found.label,
        )
        encoding = self.emit(encode.call(), "encoding")
        w_min = sums = None
        if found.w_min is not None:
            w_min = arranged(self, found.w_min, [1, 0], (outputs, groups))
            sums = self.emit(encode.field(encoding, "group_sums"), "group_sums")
        return dialect.split_dense_scaled(
            encoding,
            relax.const(1.0, "float32"),
            weight,
            w_scale,
            dense_offset(self, weight, w_scale, digits, zero_points),
            w_min,
            sums,
            k=k,
            window=window,
            act_signed=int(signed),
            zero_point=zero_point,
            in_features=columns,
            group_size=size,
            weight_bits=weight_bits(value_range(found.weight, self.value, self.weight_bounds)),
            label=found.label,
        )


@tvm.transform.module_pass(opt_level=0)
class SplitGroupedDense(RewritePass):
    """Rewrite a dense with scales (and minima) per group of K into split form.

    Precondition: the partial sums of the groups are int32 and are added up in float64, so that
    the sum is exact and its order free; activations as of `SplitPrecision`, but that zero points of
    rows are moved to a centre before they are taken off, and that minima go without zero points;
    weights (G, g, N) int8, scales (G, 1, N) float16, minima (G, N) float16; or both float32 and
    constant multiples of 2^-24.

    Before::

        qg = R.permute_dims(R.reshape(q, (T, G, g)), [1, 0, 2])
        acc = R.matmul(qg, w, out_dtype="int32")
        y64 = R.sum(R.astype(acc, "float64") * R.astype(d, "float64"), axis=[0])
        sums = R.astype(R.sum(R.astype(qg, "int32"), axis=[2]), "float64")
        y = R.astype(y64 + R.matmul(R.permute_dims(sums), R.astype(m, "float64")), "float32")

    After::

        enc = R.sparqle.encode(q, k=4, window="signed", group_size=g)
        y = R.sparqle.split_dense_scaled(enc, 1.0, w, d, offset, m, enc[4], group_size=g, ...)
    """

    rewriter = _SplitGrouped
