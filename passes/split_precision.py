"""Split integer matrix multiplies with weights into LSB and MSB passes."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics import max_exact
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import (
    Rewriter,
    apply_rewriter,
    dims_of,
    dtype_of,
    op_name,
    static_shape,
)
from sparqle_tvm.passes._value_range import LAYOUT_OPS, value_range, weight_bits
from sparqle_tvm.passes._weights import bias_constant

# Digit width for each activation container.
DIGIT_BITS = {"int8": 4, "int16": 8}
# Ops a weight may pass through and still be a weight: they unpack or move, and use no activation.
TWO_TENSORS = {
    f"relax.{name}"
    for name in (
        "bitwise_and",
        "bitwise_or",
        "right_shift",
        "left_shift",
        "subtract",
        "add",
        "take",
    )
}
UNPACK_OPS = LAYOUT_OPS | TWO_TENSORS | {"relax.astype"}


def exact_window(bounds: tuple[float, float], k: int) -> str:
    """``"signed"`` if values within ``bounds`` slice exactly with it, else ``"unsigned"``."""
    return "signed" if bounds[1] <= max_exact(k, "signed") else "unsigned"


def is_weight(expr: Any, rewriter: Rewriter) -> bool:
    """Whether ``expr`` is a constant or a parameter, or only unpacked and moved from those."""
    value = rewriter.value(expr)
    if isinstance(value, Constant):
        return True
    if isinstance(value, relax.Var):
        return value in rewriter.parameters
    if isinstance(value, relax.Tuple):
        return all(is_weight(field, rewriter) for field in value.fields)
    if op_name(value) not in UNPACK_OPS:
        return False
    # The other arguments are shapes and tuples of numbers.
    tensors = value.args[:2] if op_name(value) in TWO_TENSORS else value.args[:1]
    return all(is_weight(arg, rewriter) for arg in tensors)


def weight_outputs_first(rewriter: Rewriter, weight: Any) -> relax.Expr:
    """The weight of ``matmul(x, weight)`` as (N, K), without a transpose where that is free."""
    constants = rewriter.constants
    constant = constants.value(weight)
    if constant is not None:
        return constants.once((constants.source(weight), "transposed"), lambda: constant.T)
    value = rewriter.value(weight)
    if op_name(value) == "relax.permute_dims":
        return value.args[0]
    return rewriter.emit(relax.op.permute_dims(weight), "weight")


@mutator
class _Split(Rewriter):
    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.matmul" or not dtype_of(call.args[0]).startswith(
            ("int", "uint")
        ):
            return None
        reason = self._obstacle(call)
        if reason:
            self.report.skip("SplitPrecision", "matmul", self.label, reason)
            return None
        activation, weight = call.args
        k = DIGIT_BITS[dtype_of(activation)]
        rows = weight_outputs_first(self, weight)
        bits = weight_bits(value_range(weight, self.value))
        window = exact_window(value_range(activation, self.value), k)
        label = self.label
        encoding = self.emit(
            dialect.encode(activation, k=k, window=window, label=label), "encoding"
        )
        self.report.rewrite("SplitPrecision")
        return dialect.split_dense(
            encoding,
            rows,
            bias_constant(self, rows, k, window),
            k=k,
            window=window,
            in_features=int(dims_of(activation)[-1]),
            weight_bits=bits,
            label=label,
        )

    def _obstacle(self, call: relax.Call) -> str:
        """Why this integer matmul cannot be split, ``""`` if it can."""
        activation, weight = call.args
        if dtype_of(activation) not in DIGIT_BITS:
            return f"activations are {dtype_of(activation)}, int8 or int16 is needed"
        if dtype_of(call) != "int32":
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
        return ""


@tvm.transform.module_pass(opt_level=0, name="SplitPrecision")
class SplitPrecision:
    """Rewrite ``matmul`` of integer activations and weights into split-precision form.

    Precondition: int8 (or int16) activations (.., K) with K static, int8 weights of two
    dimensions that are constants, parameters, or unpacked from those; int32 result. The window
    is ``signed`` where the ops before prove it exact, else ``unsigned``, which always is.

    Before::

        acc = R.matmul(q, R.permute_dims(w), out_dtype="int32")

    After::

        enc = R.sparqle.encode(q, k=4, window="unsigned", group_size=0)
        acc = R.sparqle.split_dense(enc, w, bias, k=4, window="unsigned", in_features=K,
                                    weight_bits=4)

    Parameters
    ----------
    report : PassReport, optional
        Takes the number of rewrites and what was skipped.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        self.report = report if report is not None else PassReport()

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        return apply_rewriter(mod, self.report, lambda m: _Split(m, self.report))
