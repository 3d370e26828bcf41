"""Quantize and encode outputs as a dense op drains them, for the dense ops that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._match import (
    const_scalar,
    dims_of,
    dtype_of,
    op_name,
    same_dims,
    static_shape,
)
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter


@dataclass(frozen=True)
class _Quantize:
    """``clip(round(x / scale) + zero, low, high)``, and the variables between x and q."""

    x: Any
    scale: float
    zero: int
    low: int
    high: int
    between: tuple[Any, ...]


# Ops of a quantization, and what may stand before it.
_QUANTIZING = frozenset(
    f"relax.{name}"
    for name in ("quantize", "astype", "clip", "round", "divide", "add", "maximum", "nn.relu")
)


class _NoMatch(Exception):
    """Why a tensor is not the quantized result of a dense."""


class _AtRunTime(_NoMatch):
    """It is quantized by what comes at run time, as of a whole row: the vector unit has that."""


@mutator
class _Drain(Rewriter):
    roots = ("relax.sparqle.encode",)

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        # What a function is given is quantized already.
        encode = dialect.Encode.of(call)
        if encode is None or isinstance(self.value(encode.x), relax.Var):
            return None
        try:
            fused = self._fuse(encode)
        except _AtRunTime:
            return None
        except _NoMatch as reason:
            if self._follows_dense(encode.x):
                self.skip("encode", encode.label, str(reason))
            return None
        self.count()
        return fused

    def _fuse(self, encode: dialect.Encode) -> relax.Call:
        quantize = self._quantize(encode.x)
        low, between = self._through_relu(quantize)
        found = self.value(between[-1])
        dense = dialect.SplitDenseScaled.of(found)
        if dense is None and op_name(found) == "relax.add":
            raise _NoMatch("a float is added first, as a bias that is no whole number of steps")
        if dense is None:
            raise _NoMatch("what is quantized is not the scaled result of a split dense op")
        if dense.k != encode.k:
            raise _NoMatch(f"digits of {encode.k} bits, the dense op has {dense.k}")
        if not same_dims(dims_of(encode.x), dims_of(found)):
            raise _NoMatch("the quantized tensor has another shape than the result")
        if encode.group_size:
            raise _NoMatch("its readers need group sums, which a drain does not make")
        if not self.used_once(*between):
            raise _NoMatch("the result of the dense op, or what becomes of it, has another reader")
        if encode.zero_points is not None:
            raise _NoMatch("its readers take off a zero point that comes at run time")
        smallest, largest = encode.digits.bounds
        low, high = max(low, smallest), min(quantize.high, largest)
        if not (low <= high and smallest <= quantize.zero <= largest):
            raise _NoMatch(f"limits [{low}, {high}] and zero point {quantize.zero} hold no values")
        around = replace(encode.digits, zero_point=quantize.zero).centre
        if around != encode.digits.centre:
            raise _NoMatch(
                f"its zero point is {quantize.zero}, its digits are centred on "
                f"{encode.digits.centre}"
            )
        return dense.encoded(
            out_scale=make_const(np.array(quantize.scale, np.float32)),
            out_window=encode.window,
            out_signed=int(encode.signed),
            out_low=low,
            out_high=high,
            out_zero=quantize.zero,
            out_label=encode.label,
        )

    def _follows_dense(self, expr: Any) -> bool:
        """Whether an integer tensor is a dense op's result quantized: else nothing is left."""
        call = self.value(expr)
        while op_name(call) in _QUANTIZING:
            call = self.value(call.args[0])
        return dialect.Dense.of(call) is not None

    def _quantize(self, q: Any) -> _Quantize:
        """The quantization with a static scale that q is the result of."""
        call = self.match(q, "quantize")
        return self._chained(q) if call is None else self._one_op(q, call)

    def _one_op(self, q: Any, call: relax.Call) -> _Quantize:
        """``R.quantize(x, scale, zero)``."""
        x, scale, zero = call.args
        limits = np.iinfo(dtype_of(call))
        scale, zero = self._number(scale, "scale"), self._number(zero, "zero point")
        return self._checked(_Quantize(x, scale, int(zero), limits.min, limits.max, (q,)))

    def _chained(self, q: Any) -> _Quantize:
        """``R.astype(R.clip(R.round(R.divide(x, scale)) + zero, low, high))``."""
        variables, zero = [q], 0.0
        calls = self.chain(q, "astype", "clip")
        if calls is None:
            raise _NoMatch("the activation is not quantized in one of the known forms")
        clip = calls[1]
        variables += [calls[0].args[0], clip.args[0]]
        added = self.match(clip.args[0], "add")
        if added is not None:
            zero = self._number(added.args[1], "zero point")
            variables.append(added.args[0])
        rounded = self.chain(variables[-1], "round", "divide")
        if rounded is None:
            raise _NoMatch("the activation is not quantized in one of the known forms")
        variables.append(rounded[0].args[0])
        x, scale = rounded[1].args
        low, high = const_scalar(clip.args[1]), const_scalar(clip.args[2])
        dtype = dtype_of(calls[0])
        limits = np.iinfo(dtype) if dtype.startswith(("int", "uint")) else None
        if low is None or high is None or limits is None:
            raise _NoMatch("the limits are not constant, or the result is no integer")
        if not (low.is_integer() and high.is_integer() and zero.is_integer()):
            raise _NoMatch(f"limits [{low}, {high}] and zero point {zero:g} are no integers")
        if low < limits.min or high > limits.max:
            raise _NoMatch(f"limits [{low:g}, {high:g}] do not fit {limits.dtype}")
        between = tuple(variables)
        scale = self._number(scale, "scale")
        return self._checked(_Quantize(x, scale, int(zero), int(low), int(high), between))

    def _number(self, expr: Any, what: str) -> float:
        value = self.constants.value(expr)
        if value is None:
            raise _AtRunTime(f"the {what} is computed at run time")
        if value.size != 1:
            raise _NoMatch(f"the {what} differs between columns")
        if what == "scale" and value.dtype != np.float32:
            raise _NoMatch(f"the scale is {value.dtype}, float32 is needed")
        return float(value.reshape(-1)[0])

    def _checked(self, found: _Quantize) -> _Quantize:
        if dtype_of(found.x) != "float32":
            raise _NoMatch(f"quantizes {dtype_of(found.x)}, float32 is needed")
        if not (np.isfinite(found.scale) and found.scale > 0):
            raise _NoMatch(f"the scale is {found.scale:g}, a positive number is needed")
        return found

    def _through_relu(self, quantize: _Quantize) -> tuple[int, tuple[Any, ...]]:
        """The lower limit and the variables between with a ReLU before the quantization."""
        x, between = quantize.x, quantize.between
        call = self.value(x)
        relu = op_name(call) == "relax.nn.relu"
        if op_name(call) == "relax.maximum":
            relu = const_scalar(call.args[1]) == 0 and static_shape(call.args[1]) == []
        if not relu:
            return quantize.low, (*between, x)
        return max(quantize.low, quantize.zero), (*between, x, call.args[0])


@tvm.transform.module_pass(opt_level=0)
class DrainEncoded(RewritePass):
    """Let a dense op write its outputs quantized and encoded, if only dense ops read them.

    Precondition: a static scale (one constant number), a constant zero point, which the digits are
    centred on, and limits, at most a ReLU between; no other reader of what is between; no group
    sums. Scales per token stay where they are: they need the whole row, which a tile is not.

    Before::

        y = R.sparqle.split_dense_scaled(a, s, w, d, offset, k=4, label="up", ...)
        q = R.quantize(R.nn.relu(y), R.const(0.5, "float32"), R.const(0, "int8"))
        b = R.sparqle.encode(q, k=4, window="unsigned", label="down")

    After::

        b = R.sparqle.split_dense_encoded(a, s, w, d, offset, R.const(0.5, "float32"), k=4,
                                          out_window="unsigned", out_low=0, out_high=127,
                                          out_zero=0, out_signed=1, label="up", out_label="down",
                                          ...)
    """

    rewriter = _Drain
