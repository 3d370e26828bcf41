"""Make factors and bands parameters of the functions: many choices, one compilation."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics import QuantizedWeights
from sparqle_tvm.numerics.integers import CONTAINER
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.passes._choosable import choosable_encodings
from sparqle_tvm.passes._lifted import LiftedEncoding, describe_lifted
from sparqle_tvm.passes._match import dtype_of
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter, called_functions, has_mark

LIFTED = "sparqle_lifted"


@mutator
class _Lift(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: LiftChoices) -> None:
        super().__init__(mod, owner)
        self.lifted: dict[Any, LiftedEncoding] = {}
        self.weights: dict[Any, tuple[LiftedEncoding, QuantizedWeights]] = {}
        self.columns: dict[tuple[int, int], relax.Var] = {}
        self.operands: list[relax.Var] = []
        self.called = called_functions(mod)

    def begin(self, name: str, func: relax.Function) -> None:
        super().begin(name, func)
        self.lifted, self.weights, self.columns = {}, {}, {}
        if has_mark(func, LIFTED):
            return
        start = 0
        for encoding in choosable_encodings(func):
            obstacle = encoding.obstacle
            if name in self.called and not self.segments:
                obstacle = f"its function {name} is called by another one"
            if obstacle:
                self.skip("quantize_encode", encoding.op.label, obstacle)
                continue
            found = self.lifted[encoding.variable] = describe_lifted(encoding, start)
            start += found.columns
            for result, weights in zip(encoding.results, encoding.weights, strict=True):
                self.weights[result] = found, weights
        if self.lifted:
            self.owner.lifted[name] = list(self.lifted.values())

    def visit_function_(self, func: relax.Function) -> relax.Expr:
        if not self.lifted:
            return func
        total = sum(encoding.columns for encoding in self.lifted.values())
        self.operands = [
            relax.Var("factors", relax.TensorType((total,), "float32")),
            relax.Var("bands", relax.TensorType((2, total), "int16")),
        ]
        params = [*func.params, *self.operands]
        wider = relax.Function(params, func.body, func.ret_ty, func.is_pure, func.attrs)
        return super().visit_function_(wider).with_attr(LIFTED, True)

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        op = dialect.Op.of(call)
        if isinstance(op, dialect.QuantizeEncode) and self.bound in self.lifted:
            self.count()
            return self._encode(op, self.lifted[self.bound])
        if isinstance(op, dialect.SplitDenseScaled) and self.bound in self.weights:
            return self._rescale(op, *self.weights[self.bound])
        return None

    def _slice(self, whole: relax.Var, encoding: LiftedEncoding, step: int = 1) -> relax.Expr:
        """The columns of an encoding, or every `step`-th of them, of a parameter (.., F)."""
        axis, end = whole.ty.ndim - 1, encoding.start + encoding.columns
        return relax.op.strided_slice(whole, [axis], [encoding.start], [end], [step])

    def _encode(self, op: dialect.QuantizeEncode, encoding: LiftedEncoding) -> relax.Call:
        factors, bands = self.operands
        chosen = self.emit(self._slice(factors, encoding), "factors")
        limits = self.emit(self._slice(bands, encoding), "bands")
        if CONTAINER[encoding.k] != dtype_of(limits):
            limits = self.emit(relax.op.astype(limits, CONTAINER[encoding.k]), "bands")
        return op.changed(factors=chosen, bands=limits)

    def _by_group(self, encoding: LiftedEncoding, size: int) -> relax.Var:
        """One factor for each group of that many columns: (K / size,) float32."""
        key = (encoding.start, size)
        if key not in self.columns:
            found = self._slice(self.operands[0], encoding, size)
            self.columns[key] = self.emit(found, "group_factors")
        return self.columns[key]

    def _rescale(
        self, dense: dialect.SplitDenseScaled, encoding: LiftedEncoding, weights: QuantizedWeights
    ) -> relax.Call:
        """The same dense with scales, minima and offset computed from the factors."""
        op, factors = relax.op, self._by_group(encoding, weights.group_size or encoding.columns)
        if not weights.group_size:
            scale = self.emit(op.multiply(dense.w_scale, factors), "w_scale")
            return dense.changed(w_scale=scale)

        def scaled(operand: relax.Expr) -> relax.Var:
            if dtype_of(operand) == "float16":
                product = op.multiply(op.astype(operand, "float32"), factors)
                return self.emit(op.astype(product, "float16"), "w_scale")
            unit, product = relax.const(2.0**24, "float32"), op.multiply(operand, factors)
            return self.emit(op.divide(op.round(op.multiply(product, unit)), unit), "w_scale")

        changes = {"w_scale": scaled(dense.w_scale)}
        if weights.minimum is not None:
            changes["w_min"] = scaled(dense.w_min)
        bias = WINDOWS[encoding.window].bias(encoding.k)
        if bias:
            key = (self.constants.source(dense.weight), weights.group_size, "group sums", bias)
            sums = self.constants.once(key, lambda: _biased_sums(weights, bias))
            terms = op.multiply(sums, op.astype(changes["w_scale"], "float64"))
            changes["offset"] = self.emit(op.sum(terms, axis=[1]), "offset")
        return dense.changed(**changes)


def _biased_sums(weights: QuantizedWeights, bias: int) -> np.ndarray:
    """``-bias * sum of the integers of a group``: (N, G) float64."""
    rows, groups = weights.scale.shape
    sums = weights.values.reshape(rows, groups, -1).sum(axis=2, dtype=np.int64)
    return np.asarray(-bias * sums, np.float64)


@tvm.transform.module_pass(opt_level=0)
class LiftChoices(RewritePass):
    """Let functions take the factors and bands of all their encodings as parameters.

    A search over choices compiles a model once and calls it with each of them. The scales of the
    weights are multiplied when the function is called, in the arithmetic of
    `numerics.scale_weights`: the result is that of ``RaiseMsbSparsity``, bit for bit, and that of
    the module without choices if all factors are 1 and all bands empty.

    Precondition: as for ``RaiseMsbSparsity``; functions that others call keep their parameters.

    Before::

        def main(x):
            enc = R.sparqle.quantize_encode(x, label="up", group_size=32)
            y = R.sparqle.split_dense_scaled(enc, enc[4], w, d, offset, ...)

    After::

        def main(x, factors, bands):
            enc = R.sparqle.quantize_encode(x, factors[0:K], bands[:, 0:K], label="up", ...)
            y = R.sparqle.split_dense_scaled(enc, enc[4], w, f16(d * factors[0:K:32]), ...)

    Attributes
    ----------
    lifted : dict of str to list of LiftedEncoding
        After the pass: for each function with new parameters, its encodings; `choice_arguments`
        makes the arguments from them.
    """

    rewriter = _Lift

    def __init__(self, *, report: PassReport | None = None) -> None:
        super().__init__(report=report)
        self.lifted: dict[str, list[LiftedEncoding]] = {}
