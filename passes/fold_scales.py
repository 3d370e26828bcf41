"""Fold what follows an integer dense (bias, scales) into the dense."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import (
    Rewriter,
    apply_rewriter,
    const_value,
    dims_of,
    dtype_of,
    int_shape,
    op_name,
    same_dims,
    static_shape,
)


def _factor_kind(factor: Any, dims: list[Any]) -> str:
    """``"row"`` for (.., 1) or a scalar, ``"column"`` for (N,) beside (.., N), else ``""``."""
    found = dims_of(factor)
    if not found:
        return ""
    shape = static_shape(factor)
    if shape is not None and int(np.prod(shape)) == 1 and len(shape) <= len(dims):
        return "row"
    if same_dims(found, [*dims[:-1], tvm.tirx.IntImm("int64", 1)]):
        return "row"
    if shape is None or any(d != 1 for d in shape[:-1]) or len(shape) > len(dims):
        return ""
    return "column" if same_dims(found[-1:], dims[-1:]) else ""


@mutator
class _Fold(Rewriter):
    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name == "relax.add" and dtype_of(call) == "int32":
            return self._either(call, self._fold_bias)
        if name == "relax.multiply" and dtype_of(call) == "float32":
            return self._either(call, self._fold_factor)
        return None

    def _either(self, call: relax.Call, fold: Any) -> relax.Expr | None:
        first, second = call.args
        folded = fold(call, first, second)
        return folded if folded is not None else fold(call, second, first)

    def _fold_bias(self, call: relax.Call, dense: Any, bias: Any) -> relax.Expr | None:
        """``split_dense(.., b) + c`` with c (N,) or (1, .., N)."""
        producer = self.value(dense)
        if not dialect.is_op(producer, "split_dense") or not self.used_once(dense):
            return None
        if _factor_kind(bias, dims_of(producer)) != "column":
            return None
        total = relax.op.add(producer.args[2], self._flat(bias))
        old, new = const_value(producer.args[2]), const_value(bias)
        if old is not None and new is not None:
            total = make_const((old + new.reshape(-1)).astype(np.int32))
        else:
            total = self.emit(total, "bias")
        self.report.rewrite("FoldScales")
        return dialect.with_attributes(producer, [*producer.args[:2], total])

    def _flat(self, vector: Any) -> relax.Expr:
        """A (1, .., N) vector as (N,)."""
        value = const_value(vector)
        if value is not None:
            return make_const(value.reshape(-1))
        if vector.ty.ndim == 1:
            return vector
        return self.emit(relax.op.reshape(vector, (int_shape(vector)[-1],)))

    def _row(self, factor: Any) -> relax.Expr:
        """A factor of one element as a scalar, any other as it is."""
        value = const_value(factor)
        return make_const(value.reshape(())) if value is not None and value.size == 1 else factor

    def _fold_factor(self, call: relax.Call, dense: Any, factor: Any) -> relax.Expr | None:
        producer, variables = self._producer(dense)
        if producer is None or not self.used_once(*variables):
            return None
        dims = dims_of(producer)
        kind = _factor_kind(factor, dims)
        if not kind or not same_dims(dims_of(call), dims):
            return None
        folded = (
            self._first_factor(producer, factor, kind)
            if dialect.is_op(producer, "split_dense")
            else self._next_factor(producer, factor, kind)
        )
        if folded is not None:
            self.report.rewrite("FoldScales")
        return folded

    def _producer(self, expr: Any) -> tuple[relax.Call | None, list[Any]]:
        """The dense below reshapes (or below the cast to float32), and the variables between."""
        variables = [expr]
        value = self.value(expr)
        while op_name(value) in ("relax.reshape", "relax.astype"):
            if op_name(value) == "relax.astype" and dtype_of(value) != "float32":
                return None, variables
            variables.append(value.args[0])
            value = self.value(value.args[0])
        return (
            value if dialect.is_op(value, "split_dense", "split_dense_scaled") else None
        ), variables

    def _first_factor(self, dense: relax.Call, factor: Any, kind: str) -> relax.Expr:
        """``float32(acc) * factor``."""
        outputs = int_shape(dense.args[1])[0]
        attrs = dialect.attributes(dense)
        ones = make_const(np.ones(outputs, np.float32))
        row = kind == "row"
        return dialect.split_dense_scaled(
            dense.args[0],
            self._row(factor) if row else relax.const(1.0, "float32"),
            dense.args[1],
            ones if row else self._flat(factor),
            dense.args[2],
            group_size=0,
            **attrs,
        )

    def _next_factor(self, dense: relax.Call, factor: Any, kind: str) -> relax.Expr | None:
        """``dense * factor`` where the place of that factor is still 1, so no bit changes."""
        args = list(dense.args)
        grouped = dialect.attributes(dense)["group_size"] > 0
        act_scale, w_scale = const_value(args[1]), const_value(args[3])
        if kind == "row" and grouped and act_scale is not None and np.all(act_scale == 1):
            args[1] = self._row(factor)
        elif kind == "column" and not grouped and w_scale is not None and np.all(w_scale == 1):
            args[3] = self._flat(factor)
        else:
            return None
        return dialect.with_attributes(dense, args)


@tvm.transform.module_pass(opt_level=0, name="FoldScales")
class FoldScales:
    """Fold the integer bias, the activation scale and the weight scale into the dense.

    Precondition: the multiplies come in the order (activation scale, weight scale), or only one
    of them; another order rounds differently and is left as it is. Each intermediate result has
    one reader.

    Before::

        acc = R.sparqle.split_dense(enc, w, bias, k=4, window="signed", ...)
        y = R.astype(acc, "float32") * enc[4] * w_scale

    After::

        y = R.sparqle.split_dense_scaled(enc, enc[4], w, w_scale, bias, group_size=0, ...)

    Parameters
    ----------
    report : PassReport, optional
        Takes the number of rewrites.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        self.report = report if report is not None else PassReport()

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        return apply_rewriter(mod, self.report, lambda m: _Fold(m, self.report))
