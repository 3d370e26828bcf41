"""Fold what follows an integer dense (bias, scales) into the dense."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.integers import INT32_MAX
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._match import (
    const_value,
    dims_of,
    dtype_of,
    op_name,
    same_dims,
    static_shape,
)
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._weights import is_weight

# How far float32 may be from a product of two scales and an integer: a few roundings.
ROUNDING = 2.0**-21


def _is_single(expr: Any) -> bool:
    """Whether a tensor has exactly one element."""
    shape = static_shape(expr)
    return shape is not None and all(d == 1 for d in shape)


def _is_row(factor: Any, dims: list[Any]) -> bool:
    """Whether a factor of a result (.., N) is one number or one per row: (.., 1)."""
    per_row = [*dims[:-1], tvm.tirx.IntImm("int64", 1)]
    return (_is_single(factor) and factor.ty.ndim <= len(dims)) or same_dims(
        dims_of(factor), per_row
    )


def _is_column(factor: Any, dims: list[Any]) -> bool:
    """Whether a factor of a result (.., N) is one number or one per column: (N,), (1, .., N)."""
    shape = static_shape(factor)
    if shape is None or len(shape) > len(dims):
        return False
    return _is_single(factor) or (
        all(d == 1 for d in shape[:-1]) and same_dims(dims_of(factor)[-1:], dims[-1:])
    )


def _whole_steps(bias: np.ndarray, act_scale: np.ndarray, w_scale: np.ndarray) -> np.ndarray | None:
    """A float32 bias in steps of the scales' product, int64; None if it is no whole number.

    A whole number is one that gives the bias again but for the rounding of float32.
    """
    step = act_scale.astype(np.float64) * w_scale.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = np.rint(bias / step)
    if not (np.abs(found) <= INT32_MAX).all():
        return None
    close = np.abs(found * step - bias) <= ROUNDING * np.abs(bias)
    return found.astype(np.int64) if close.all() else None


@mutator
class _Fold(Rewriter):
    roots = (
        "relax.add",
        "relax.multiply",
    )

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name == "relax.add" and dtype_of(call) == "int32":
            return self._either(call, self._fold_bias)
        if name == "relax.add" and dtype_of(call) == "float32":
            return self._either(call, self._fold_float_bias)
        if name == "relax.multiply" and dtype_of(call) == "float32":
            return self._either(call, self._fold_factor)
        return None

    def _either(self, call: relax.Call, fold: Any) -> relax.Expr | None:
        first, second = call.args
        folded = fold(call, first, second)
        return folded if folded is not None else fold(call, second, first)

    def _fold_bias(self, call: relax.Call, dense: Any, bias: Any) -> relax.Expr | None:
        """``split_dense(.., b) + c`` with c (N,), (1, .., N) or one number."""
        bound = self.value(dense)
        producer = dialect.SplitDense.of(bound)
        if producer is None or not _is_column(bias, dims_of(bound)):
            return None
        if not self.used_once(dense):
            self.skip(producer.NAME, producer.label, "the result without bias has another reader")
            return None
        flat = self._column(bias, producer.out_features)
        old, new = const_value(producer.offset), const_value(flat)
        if old is not None and new is not None:
            total = make_const(old + new)
        else:
            total = self.emit(relax.op.add(producer.offset, flat), "bias")
        self.count()
        return producer.changed(offset=total)

    def _fold_float_bias(self, call: relax.Call, dense: Any, bias: Any) -> relax.Expr | None:
        """``split_dense_scaled(..) + c`` where c is a whole number of steps of the sum.

        A quantized bias is: its scale is the product of the two scales, its zero point 0.
        """
        bound, variables = self._producer(dense)
        producer = dialect.SplitDenseScaled.of(bound)
        if producer is None or not _is_column(bias, dims_of(bound)):
            return None
        if not same_dims(dims_of(call), dims_of(bound)):
            return None
        factors = (producer.act_scale, producer.w_scale, producer.offset, bias)
        known = [v for v in map(self.constants.value, factors) if v is not None]
        if producer.group_size or len(known) < len(factors) or known[0].size != 1:
            return None
        act_scale, w_scale, offset, added = known
        steps = _whole_steps(added.reshape(-1), act_scale.reshape(()), w_scale)
        if steps is None or np.abs(offset + steps).max(initial=0) > INT32_MAX:
            return None
        if not self.used_once(*variables):
            self.skip(producer.NAME, producer.label, "the result without bias has another reader")
            return None
        self.count()
        return producer.changed(offset=make_const((offset + steps).astype(np.int32)))

    def _column(self, vector: Any, outputs: int) -> relax.Expr:
        """A (1, .., N) vector, or one number for all, as (N,)."""
        value = const_value(vector)
        if value is not None:
            return make_const(np.broadcast_to(value.reshape(-1), (outputs,)))
        if vector.ty.ndim != 1:
            vector = self.emit(relax.op.reshape(vector, (1,) if _is_single(vector) else (outputs,)))
        if not _is_single(vector) or outputs == 1:
            return vector
        return self.emit(relax.op.broadcast_to(vector, (outputs,)))

    def _row(self, factor: Any) -> relax.Expr:
        """A constant of one element as a scalar, any other factor as it is."""
        value = const_value(factor)
        return make_const(value.reshape(())) if value is not None and value.size == 1 else factor

    def _fold_factor(self, call: relax.Call, dense: Any, factor: Any) -> relax.Expr | None:
        bound, variables = self._producer(dense)
        producer = dialect.Dense.of(bound)
        if not isinstance(producer, dialect.SplitDense | dialect.SplitDenseScaled):
            return None
        dims = dims_of(bound)
        # For one token, a gate computed at run time has the shape of a weight scale, too.
        row, column = _is_row(factor, dims), _is_column(factor, dims) and is_weight(factor, self)
        if not (row or column) or not same_dims(dims_of(call), dims):
            return None
        if not self.used_once(*variables):
            reason = "the result before the scale has another reader"
            self.skip(producer.NAME, producer.label, reason)
            return None
        if isinstance(producer, dialect.SplitDense):
            folded = self._first_factor(producer, factor, row)
        else:
            folded = self._next_factor(producer, factor, row, column)
        if folded is None:
            reason = "the scales come in an order that rounds differently"
            self.skip(producer.NAME, producer.label, reason)
            return None
        self.count()
        return folded

    def _producer(self, expr: Any) -> tuple[Any, list[Any]]:
        """What is below reshapes (or below the cast to float32), and the variables between."""
        variables = [expr]
        value = self.value(expr)
        while op_name(value) in ("relax.reshape", "relax.astype"):
            if op_name(value) == "relax.astype" and dtype_of(value) != "float32":
                return None, variables
            variables.append(value.args[0])
            value = self.value(value.args[0])
        return value, variables

    def _first_factor(self, dense: dialect.SplitDense, factor: Any, row: bool) -> relax.Expr:
        """``float32(acc) * factor``."""
        ones = make_const(np.ones(dense.out_features, np.float32))
        return dialect.split_dense_scaled(
            dense.encoding,
            self._row(factor) if row else relax.const(1.0, "float32"),
            dense.weight,
            ones if row else self._column(factor, dense.out_features),
            dense.offset,
            group_size=0,
            **dense.attributes,
        )

    def _next_factor(
        self, dense: dialect.SplitDenseScaled, factor: Any, row: bool, column: bool
    ) -> relax.Expr | None:
        """``dense * factor`` where the place of that factor is still 1, so no bit changes."""
        grouped = dense.group_size > 0
        act_scale, w_scale = const_value(dense.act_scale), const_value(dense.w_scale)
        if grouped and row and act_scale is not None and np.all(act_scale == 1):
            return dense.changed(act_scale=self._row(factor))
        if not grouped and column and w_scale is not None and np.all(w_scale == 1):
            return dense.changed(w_scale=self._column(factor, dense.out_features))
        return None


@tvm.transform.module_pass(opt_level=0)
class FoldScales(RewritePass):
    """Fold the bias, the activation scale and the weight scale into the dense.

    Precondition: the multiplies come in the order (activation scale, weight scale), or only one
    of them; another order rounds differently and is left as it is. Each intermediate result has
    one reader. A float bias behind the scales is folded where it is a whole number of steps of the
    integer sum (as quantized biases are), so that the result differs by rounding only.

    Before::

        acc = R.sparqle.split_dense(enc, w, bias, k=4, window="signed", ...)
        y = R.astype(acc, "float32") * enc[4] * w_scale

    After::

        y = R.sparqle.split_dense_scaled(enc, enc[4], w, w_scale, bias, group_size=0, ...)
    """

    rewriter = _Fold
