"""Take split precision back: the same integers in plain Relax ops, without planes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax import op
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics import max_exact, window_limits
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import (
    Rewriter,
    apply_rewriter,
    count_field_readers,
    count_uses,
    dims_of,
    dtype_of,
    int_shape,
)
from sparqle_tvm.passes._value_range import value_range
from sparqle_tvm.passes._weights import remaining_offset


@dataclass(frozen=True)
class _Plain:
    """An encoding without planes: what stands for its fields."""

    q: relax.Var
    fields: dict[int, relax.Var]


@mutator
class _Merge(Rewriter):
    def __init__(self, mod: tvm.IRModule, report: PassReport) -> None:
        super().__init__(mod, report)
        self.plain: dict[Any, _Plain] = {}
        self.all_uses: Counter[Any] = Counter()
        self.known: Counter[Any] = Counter()

    def visit_function_(self, func: relax.Function) -> relax.Expr:
        self.plain = {}
        self.all_uses = count_uses(func)
        self.known = count_field_readers(func, dialect.SCALE_FIELD)
        return super().visit_function_(func)

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> relax.Expr:
        plain = self.plain.get(item.tuple_value)
        return super().visit_tuple_getitem_(item) if plain is None else plain.fields[item.index]

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if dialect.is_op(call, "encode", "quantize_encode"):
            # The encoding itself stays, until nothing reads it any more.
            self._merge_encoding(call)
            return None
        if dialect.is_op(call, "split_dense", "split_dense_scaled"):
            plain = self.plain.get(original.args[0])
            if plain is not None:
                self.report.rewrite("MergePrecision")
                return self._dense(call, plain.q)
        return None

    def _merge_encoding(self, call: relax.Call) -> None:
        attrs = dialect.attributes(call)
        if self.all_uses[self.bound] != self.known[self.bound]:
            name = str(call.op.name).removeprefix("relax.sparqle.")
            reason = "its planes have other readers than dense ops"
            self.report.skip("MergePrecision", name, attrs["label"], reason)
            return
        bound, fields = self.bound, {}
        if "qmax" in attrs:
            q, fields[dialect.SCALE_FIELD] = self._quantize(call, attrs)
        else:
            q = self._saturated(call.args[0], attrs)
        if attrs["group_size"]:
            place = dialect.SCALE_FIELD + len(fields)
            fields[place] = self._group_sums(q, attrs["group_size"])
        self.plain[bound] = _Plain(q, fields)

    def _quantize(self, call: relax.Call, attrs: dict[str, Any]) -> tuple[relax.Var, relax.Var]:
        """The integers and the scales of ``quantize_encode``, as `numerics.choice` has them."""
        x, qmax = call.args[0], attrs["qmax"]
        amax = self.emit(op.max(op.abs(x), axis=[-1], keepdims=True), "amax")
        bounded = op.maximum(amax, relax.const(SMALLEST_AMAX, "float32"))
        scale = self.emit(op.divide(bounded, relax.const(float(qmax), "float32")), "scale")
        step = self.emit(op.multiply(scale, call.args[1]), "step") if call.args[1:] else scale
        largest = min(qmax, max_exact(attrs["k"], attrs["window"]))
        q = self.emit(op.clip(op.round(op.divide(x, step)), -qmax, largest), "q")
        if len(call.args) > 2:
            q = self._clip_to_window(q, call.args[2], attrs)
        container = "int16" if attrs["k"] == 8 else "int8"
        return self.emit(op.astype(q, container), "q"), scale

    def _clip_to_window(self, q: relax.Var, bands: relax.Expr, attrs: dict[str, Any]) -> relax.Var:
        """Move the q in the bands (2, K) to the edges of the window, all in float32."""
        sides = op.split(self.emit(op.astype(bands, "float32"), "bands"), 2, axis=0)
        pair, columns = self.emit(sides, "bands"), dims_of(bands)[1:]
        lo, hi = (
            self.emit(op.reshape(self.emit(relax.TupleGetItem(pair, i)), columns)) for i in (0, 1)
        )
        low, high = (relax.const(v, "float32") for v in window_limits(attrs["k"], attrs["window"]))
        below = self.emit(op.logical_and(op.less(q, low), op.greater_equal(q, lo)), "below")
        above = self.emit(op.logical_and(op.greater(q, high), op.less_equal(q, hi)), "above")
        return self.emit(op.where(below, low, op.where(above, high, q)), "q")

    def _saturated(self, q: relax.Expr, attrs: dict[str, Any]) -> relax.Var:
        """Integers that arrive quantized, limited to what the window holds."""
        largest = max_exact(attrs["k"], attrs["window"])
        if value_range(q, self.value)[1] > largest:
            q = op.minimum(q, relax.const(largest, dtype_of(q)))
        return self.emit(q, "q")

    def _group_sums(self, q: relax.Var, size: int) -> relax.Var:
        """(.., K / size) int32."""
        *lead, columns = dims_of(q)
        grouped = op.reshape(op.astype(q, "int32"), (*lead, int(columns) // size, size))
        return self.emit(op.sum(self.emit(grouped), axis=[-1]), "group_sums")

    def _dense(self, call: relax.Call, q: relax.Var) -> relax.Expr:
        offset = remaining_offset(self, call)
        if dialect.is_op(call, "split_dense"):
            return self._product(q, call.args[1], offset)
        _, act_scale, weight, w_scale, *_ = call.args
        size = dialect.attributes(call)["group_size"]
        if size:
            y = self._grouped(call, q, size, offset)
            return op.multiply(y, act_scale)
        acc = op.astype(self.emit(self._product(q, weight, offset), "acc"), "float32")
        return op.multiply(self.emit(op.multiply(acc, act_scale)), w_scale)

    def _product(self, q: relax.Var, weight: relax.Expr, offset: relax.Expr | None) -> relax.Expr:
        """``q @ w.T + offset`` in int32."""
        moved = self._arranged(weight, [1, 0], tuple(int_shape(weight)[::-1]))
        acc = op.matmul(q, moved, out_dtype="int32")
        return acc if offset is None else op.add(self.emit(acc, "acc"), offset)

    def _grouped(
        self, call: relax.Call, q: relax.Var, size: int, offset: relax.Expr | None
    ) -> relax.Var:
        """The float64 sum over the groups, rounded to float32 once: (.., N)."""
        weight, w_scale = call.args[2], call.args[3]
        outputs, columns = int_shape(weight)
        groups, rows = columns // size, self._rows(q)
        by_group = self.emit(op.reshape(q, (rows, groups, size)))
        by_group = self.emit(op.permute_dims(by_group, [1, 0, 2]), "q_groups")
        parts = self._arranged(weight, [1, 2, 0], (groups, size, outputs), (outputs, groups, size))
        acc = self.emit(op.matmul(by_group, parts, out_dtype="int32"), "acc")
        d = op.astype(self._arranged(w_scale, [1, 0], (groups, 1, outputs)), "float64")
        y = self.emit(op.sum(op.multiply(op.astype(acc, "float64"), d), axis=[0]), "y64")
        minimum, _ = dialect.scaled_operands(call)
        if minimum is not None:
            sums = op.astype(op.reshape(minimum[1], (rows, groups)), "float64")
            m = op.astype(self._arranged(minimum[0], [1, 0], (groups, outputs)), "float64")
            y = self.emit(op.add(y, self.emit(op.matmul(self.emit(sums), self.emit(m)))), "y64")
        if offset is not None:
            y = self.emit(op.add(y, offset), "y64")
        return self.emit(op.reshape(op.astype(y, "float32"), call.ty.shape), "y")

    def _rows(self, q: relax.Var) -> Any:
        """Product of the leading dimensions."""
        rows: Any = 1
        for dim in dims_of(q)[:-1]:
            rows = dim * rows
        return rows

    def _arranged(
        self,
        weight: relax.Expr,
        axes: list[int],
        shape: tuple[int, ...],
        cut: tuple[int, ...] | None = None,
    ) -> relax.Expr:
        """A weight reshaped to `cut`, permuted, reshaped to `shape`; at once if it is constant."""
        constants = self.constants
        value = constants.value(weight)
        if value is not None:
            key = (constants.source(weight), "plain", tuple(axes), shape)
            parted = value if cut is None else value.reshape(cut)
            return constants.once(key, lambda: parted.transpose(axes).reshape(shape))
        if cut is not None:
            weight = self.emit(op.reshape(weight, cut))
        moved = self.emit(op.permute_dims(weight, axes))
        return moved if len(shape) == len(axes) else self.emit(op.reshape(moved, shape))


@tvm.transform.module_pass(opt_level=0, name="MergePrecision")
class MergePrecision:
    """Bring a module in split-precision form back to plain integer ops with the same results.

    This is the reference that the split form is held to: it computes from q in int8, by other ops
    and kernels, and knows factors and bands. It is a form for checking, not for speed.

    Precondition: the planes of an encoding are read by dense ops only.

    Before::

        enc = R.sparqle.quantize_encode(x, factors, k=4, window="signed", qmax=119)
        y = R.sparqle.split_dense_scaled(enc, enc[4], w, w_scale, window_bias, group_size=0, ...)

    After::

        scale = R.maximum(R.max(R.abs(x), axis=[-1], keepdims=True), 1e-30) / 119
        q = R.astype(R.clip(R.round(x / (scale * factors)), -119, 119), "int8")
        acc = R.matmul(q, R.permute_dims(w), out_dtype="int32")
        y = R.astype(acc, "float32") * scale * w_scale

    Parameters
    ----------
    report : PassReport, optional
        Takes the number of dense ops merged and what was left alone.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        self.report = report if report is not None else PassReport()

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        return apply_rewriter(mod, self.report, lambda m: _Merge(m, self.report))
