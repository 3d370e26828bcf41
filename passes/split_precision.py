"""Split integer matrix multiplies with weights into LSB and MSB passes."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.window import exact_window
from sparqle_tvm.passes._match import dims_of, dtype_of, op_name, static_shape
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._value_range import value_range, weight_bits
from sparqle_tvm.passes._weights import (
    DIGIT_BITS,
    is_weight,
    weight_outputs_first,
    window_bias,
)


@mutator
class _Split(Rewriter):
    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.matmul":
            return None
        activation, weight = call.args
        if not dtype_of(activation).startswith(("int", "uint")):
            return None
        reason = self._obstacle(call, activation, weight)
        if reason:
            self.skip("matmul", self.label, reason)
            return None
        k = DIGIT_BITS[dtype_of(activation)]
        rows = weight_outputs_first(self, weight)
        bits = weight_bits(value_range(weight, self.value))
        window = exact_window(value_range(activation, self.value), k)
        label = self.label
        encoding = self.emit(
            dialect.encode(activation, k=k, window=window, label=label), "encoding"
        )
        self.count()
        return dialect.split_dense(
            encoding,
            rows,
            window_bias(self, rows, None, k, window),
            k=k,
            window=window,
            in_features=int(dims_of(activation)[-1]),
            weight_bits=bits,
            label=label,
        )

    def _obstacle(self, call: relax.Call, activation: Any, weight: Any) -> str:
        """Why this integer matmul cannot be split, ``""`` if it can."""
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


@tvm.transform.module_pass(opt_level=0)
class SplitPrecision(RewritePass):
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
    """

    rewriter = _Split
