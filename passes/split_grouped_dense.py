"""Split integer dense ops whose weights have a scale per group along K."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics import max_exact
from sparqle_tvm.numerics.dense import EXACT_SUM_LIMIT
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import (
    Rewriter,
    apply_rewriter,
    dims_of,
    dtype_of,
    int_shape,
    op_name,
    same_dims,
    static_shape,
)
from sparqle_tvm.passes._value_range import value_range, weight_bits
from sparqle_tvm.passes._weights import adds_exactly, offset_constant
from sparqle_tvm.passes.split_precision import DIGIT_BITS, exact_window, is_weight


@dataclass(frozen=True)
class _Groups:
    """The operands of one grouped dense: q (.., K), weights (G, g, N), scales (G, 1, N)."""

    q: Any
    by_group: Any
    weight: Any
    w_scale: Any
    label: str


def _as_float16(rewriter: Rewriter, expr: Any) -> Any | None:
    """The float16 tensor that ``expr`` widens to float64, ``None`` if it is no such cast."""
    value = rewriter.value(expr)
    if isinstance(value, Constant) and dtype_of(value) == "float64":
        wide = value.value.numpy()
        narrow = wide.astype(np.float16)
        exact = np.array_equal(narrow.astype(np.float64), wide)
        return rewriter.constants.once((value, "float16"), lambda: narrow) if exact else None
    if op_name(value) == "relax.astype" and dtype_of(value.args[0]) == "float16":
        return value.args[0]
    return None


def _axes(axes: Any) -> list[int]:
    return [int(axis) for axis in axes] if axes is not None else []


def _arrange(rewriter: Rewriter, expr: Any, axes: list[int], shape: tuple[int, ...]) -> relax.Expr:
    """Permute and reshape a weight tensor, at once where it is a constant."""
    constants = rewriter.constants
    constant = constants.value(expr)
    if constant is not None:
        key = (constants.source(expr), tuple(axes), shape)
        return constants.once(key, lambda: constant.transpose(axes).reshape(shape))
    moved = rewriter.emit(relax.op.permute_dims(expr, axes))
    return rewriter.emit(relax.op.reshape(moved, shape))


@mutator
class _SplitGrouped(Rewriter):
    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.astype" or dtype_of(call.args[0]) != "float64":
            return None
        if dtype_of(call) != "float32":
            return None
        total = self.value(call.args[0])
        scaled, minimum = total, None
        if op_name(total) == "relax.add":
            scaled, minimum = total.args
            if op_name(self.value(scaled)) != "relax.sum":
                scaled, minimum = minimum, scaled
        groups = self._match_groups(scaled)
        if groups is None:
            return None
        w_min = None
        if minimum is not None:
            w_min = self._match_minimum(minimum, groups)
            if w_min is None:
                self._skip(groups, "what is added to the group sums is no minimum per group")
                return None
        return self._build(call, groups, w_min)

    def _skip(self, groups: _Groups, reason: str) -> None:
        self.report.skip("SplitGroupedDense", "matmul", groups.label, reason)

    def _match_groups(self, expr: Any) -> _Groups | None:
        """``sum(astype(matmul(by_group(q), w), f64) * astype(d, f64), axis=0)``."""
        outer = self.chain(expr, "sum", "multiply")
        if outer is None:
            return None
        total, product = outer
        acc, d = product.args
        inner = self.chain(acc, "astype", "matmul")
        if inner is None:
            acc, d = d, acc
            inner = self.chain(acc, "astype", "matmul")
        if inner is None:
            return None
        cast, matmul = inner
        if _axes(total.attrs.axis) != [0] or total.attrs.keepdims or dtype_of(cast) != "float64":
            return None
        label = str(getattr(cast.args[0], "name", "")) or self.label
        by_group = self.match(matmul.args[0], "permute_dims")
        w_shape = static_shape(matmul.args[1])
        found = _Groups(None, matmul.args[0], matmul.args[1], None, label)
        if by_group is None or w_shape is None or len(w_shape) != 3:
            return None
        reshaped = self.match(by_group.args[0], "reshape")
        cut = reshaped is not None and same_dims(dims_of(reshaped)[1:], w_shape[:2])
        if not cut or _axes(by_group.attrs.axes) != [1, 0, 2]:
            self._skip(found, "activations are not cut into groups along K")
            return None
        w_scale = _as_float16(self, d)
        if w_scale is None or static_shape(w_scale) != [w_shape[0], 1, w_shape[2]]:
            self._skip(found, "group scales are not float16 of shape (G, 1, N)")
            return None
        return _Groups(reshaped.args[0], matmul.args[0], matmul.args[1], w_scale, label)

    def _match_minimum(self, expr: Any, groups: _Groups) -> Any | None:
        """``matmul(permute_dims(astype(sum(astype(by_group, i32), 2), f64)), astype(m, f64))``."""
        calls = self.chain(expr, "matmul", "permute_dims", "astype", "sum", "astype")
        if calls is None:
            return None
        matmul, moved, _, sums, widened = calls
        if _axes(sums.attrs.axis) != [2] or dtype_of(widened) != "int32":
            return None
        if _axes(moved.attrs.axes) not in ([], [1, 0]):
            return None
        count, _, outputs = int_shape(groups.weight)
        w_min = _as_float16(self, matmul.args[1])
        fits = w_min is not None and static_shape(w_min) == [count, outputs]
        return w_min if fits and widened.args[0].same_as(groups.by_group) else None

    def _obstacle(self, groups: _Groups, w_min: Any | None) -> str:
        dims, w_shape = dims_of(groups.q), static_shape(groups.weight)
        if dtype_of(groups.q) not in DIGIT_BITS:
            return f"activations are {dtype_of(groups.q)}, int8 or int16 is needed"
        if dtype_of(groups.weight) != "int8":
            return f"weights are {dtype_of(groups.weight)}, int8 is needed"
        if not is_weight(groups.weight, self):
            return "the second operand is computed at run time, it is no weight"
        columns = w_shape[0] * w_shape[1] if w_shape else 0
        if not dims or not hasattr(dims[-1], "value") or int(dims[-1]) != columns:
            return f"K of the activations is not G * group size = {columns}"
        if columns == 0:
            return "K = 0"
        # Twice the largest q: until the window's offset is added, sums of biased digits are larger.
        largest = 2 * max_exact(DIGIT_BITS[dtype_of(groups.q)], "unsigned")
        bounds = value_range(groups.weight, self.value)
        if not adds_exactly(self, groups.w_scale, w_min, bounds, w_shape[1] * largest):
            return f"the group scales allow sums of {EXACT_SUM_LIMIT:g}, where float64 rounds"
        return ""

    def _build(self, call: relax.Call, groups: _Groups, w_min: Any | None) -> relax.Expr | None:
        reason = self._obstacle(groups, w_min)
        if reason:
            self._skip(groups, reason)
            return None
        count, size, outputs = int_shape(groups.weight)
        columns, k = count * size, DIGIT_BITS[dtype_of(groups.q)]
        window = exact_window(value_range(groups.q, self.value), k)
        weight = _arrange(self, groups.weight, [2, 0, 1], (outputs, columns))
        w_scale = _arrange(self, groups.w_scale, [2, 0, 1], (outputs, count))
        encoding = self.emit(
            dialect.encode(
                groups.q,
                k=k,
                window=window,
                group_size=size if w_min is not None else 0,
                label=groups.label,
            ),
            "encoding",
        )
        sums = None
        if w_min is not None:
            w_min = _arrange(self, w_min, [1, 0], (outputs, count))
            sums = self.emit(relax.TupleGetItem(encoding, 4), "group_sums")
        dense = dialect.split_dense_scaled(
            encoding,
            relax.const(1.0, "float32"),
            weight,
            w_scale,
            offset_constant(self, weight, w_scale, k, window),
            w_min,
            sums,
            k=k,
            window=window,
            in_features=columns,
            group_size=size,
            weight_bits=weight_bits(value_range(groups.weight, self.value)),
            label=groups.label,
        )
        self.report.rewrite("SplitGroupedDense")
        return relax.op.reshape(self.emit(dense, groups.label), call.ty.shape)


@tvm.transform.module_pass(opt_level=0, name="SplitGroupedDense")
class SplitGroupedDense:
    """Rewrite a dense with float16 scales (and minima) per group of K into split form.

    Precondition: the partial sums of the groups are int32 and are added up in float64, so that
    the sum is exact and its order free; weights (G, g, N) int8, scales (G, 1, N) float16,
    minima (G, N) float16.

    Before::

        qg = R.permute_dims(R.reshape(q, (T, G, g)), [1, 0, 2])
        acc = R.matmul(qg, w, out_dtype="int32")
        y64 = R.sum(R.astype(acc, "float64") * R.astype(d, "float64"), axis=[0])
        sums = R.astype(R.sum(R.astype(qg, "int32"), axis=[2]), "float64")
        y = R.astype(y64 + R.matmul(R.permute_dims(sums), R.astype(m, "float64")), "float32")

    After::

        enc = R.sparqle.encode(q, k=4, window="signed", group_size=g)
        y = R.sparqle.split_dense_scaled(enc, 1.0, w, d, offset, m, enc[4], group_size=g, ...)

    Parameters
    ----------
    report : PassReport, optional
        Takes the number of rewrites and what was skipped.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        self.report = report if report is not None else PassReport()

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        return apply_rewriter(mod, self.report, lambda m: _SplitGrouped(m, self.report))
