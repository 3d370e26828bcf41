"""Quantize and encode outputs as a dense op drains them, for the dense ops that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.requantize import GRID_LIMIT, Grid
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
    """What a grid is applied to, and the variables between that and the integers."""

    x: Any
    grid: Grid
    between: tuple[Any, ...]


# Ops of a quantization, and what may stand before it.
_QUANTIZING = frozenset(
    f"relax.{name}"
    for name in (
        *("quantize", "dequantize", "astype", "clip", "round", "divide"),
        *("add", "maximum", "nn.relu"),
    )
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
        quantize = self._through_relu(self._quantize(encode.x))
        out, between = quantize.grid, quantize.between
        bias, x = self._bias(quantize.x)
        mid = self._mid(x)
        if bias is not None:
            between = (*between, x)
        if mid is not None:
            between, x = (*between, *mid.between), mid.x
        found = self.value(x)
        dense = dialect.SplitDenseScaled.of(found)
        if dense is None and op_name(found) == "relax.add":
            raise _NoMatch("what is added first is no bias, one constant per channel")
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
        low, high = max(out.low, smallest), min(out.high, largest)
        if not (low <= high and smallest <= out.zero <= largest):
            raise _NoMatch(f"limits [{low}, {high}] and zero point {out.zero} hold no values")
        around = replace(encode.digits, zero_point=out.zero).centre
        if around != encode.digits.centre:
            raise _NoMatch(
                f"its zero point is {out.zero}, its digits are centred on {encode.digits.centre}"
            )
        grid = {} if mid is None else {f"mid_{name}": n for name, n in vars(mid.grid).items()}
        return dense.encoded(
            bias=bias,
            out_scale=make_const(np.array(out.scale, np.float32)),
            out_window=encode.window,
            out_signed=int(encode.signed),
            out_low=low,
            out_high=high,
            out_zero=out.zero,
            out_label=encode.label,
            **grid,
        )

    def _bias(self, x: Any) -> tuple[relax.Expr | None, Any]:
        """A constant (N,) that x is the sum of, and the other summand; else nothing, and x."""
        add = self.match(x, "add")
        for added, other in (add.args, reversed(add.args)) if add is not None else ():
            bias, dims = self.constants.value(added), dims_of(other)
            if bias is None or bias.dtype != np.float32 or bias.ndim > len(dims):
                continue
            # A number that is added to rows of unknown length is no bias of a dense op either.
            channels = int(dims[-1]) if dims and hasattr(dims[-1], "value") else 0
            if bias.size not in (1, channels) or bias.shape[-1:] not in ((), (1,), (channels,)):
                continue
            if not np.isfinite(bias).all():
                raise _NoMatch("the bias is not finite")
            return make_const(np.broadcast_to(bias.reshape(-1), (channels,))), other
        return None, x

    def _mid(self, x: Any) -> _Quantize | None:
        """The grid that x lies on: quantized, and floats again."""
        call = self.match(x, "dequantize")
        if call is None:
            return None
        found = self._through_relu(self._quantize(call.args[0]))
        grid, (scale, zero) = found.grid, map(self._number, call.args[1:], ("scale", "zero point"))
        if (scale, zero) != (grid.scale, grid.zero):
            raise _NoMatch("it was quantized before, and made floats again by other numbers")
        if not -GRID_LIMIT <= grid.low < grid.high <= GRID_LIMIT:
            raise _NoMatch(f"it was quantized before, to [{grid.low}, {grid.high}]")
        return found

    def _follows_dense(self, expr: Any) -> bool:
        """Whether an integer tensor is a dense op's result quantized: else nothing is left."""
        call = self.value(expr)
        while op_name(call) in _QUANTIZING:
            first = call.args[0]
            if op_name(call) == "relax.add" and self.constants.value(first) is not None:
                first = call.args[1]
            call = self.value(first)
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
        return self._checked(x, Grid(scale, int(zero), int(limits.min), int(limits.max)), (q,))

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
        grid = Grid(self._number(scale, "scale"), int(zero), int(low), int(high))
        return self._checked(x, grid, tuple(variables))

    def _number(self, expr: Any, what: str) -> float:
        value = self.constants.value(expr)
        if value is None:
            raise _AtRunTime(f"the {what} is computed at run time")
        if value.size != 1:
            raise _NoMatch(f"the {what} differs between columns")
        if what == "scale" and value.dtype != np.float32:
            raise _NoMatch(f"the scale is {value.dtype}, float32 is needed")
        return float(value.reshape(-1)[0])

    def _checked(self, x: Any, grid: Grid, between: tuple[Any, ...]) -> _Quantize:
        if dtype_of(x) != "float32":
            raise _NoMatch(f"quantizes {dtype_of(x)}, float32 is needed")
        if not (np.isfinite(grid.scale) and grid.scale > 0):
            raise _NoMatch(f"the scale is {grid.scale:g}, a positive number is needed")
        return _Quantize(x, grid, (*between, x))

    def _through_relu(self, found: _Quantize) -> _Quantize:
        """With a ReLU before the quantization as part of its lower limit."""
        call, grid = self.value(found.x), found.grid
        relu = op_name(call) == "relax.nn.relu"
        if op_name(call) == "relax.maximum":
            relu = const_scalar(call.args[1]) == 0 and static_shape(call.args[1]) == []
        if not relu:
            return found
        grid = replace(grid, low=max(grid.low, grid.zero))
        return _Quantize(call.args[0], grid, (*found.between, call.args[0]))


@tvm.transform.module_pass(opt_level=0)
class DrainEncoded(RewritePass):
    """Let a dense op write its outputs quantized and encoded, if only dense ops read them.

    Precondition: a static scale (one constant number), a constant zero point, which the digits are
    centred on, and limits; between, in this order, at most a quantization of that kind that is
    undone again (as onnxruntime writes behind a MatMul), a float per channel that is added (a bias)
    and a ReLU; no other reader of what is between; no group sums. Scales per token stay where they
    are: they need the whole row, which a tile is not.

    Before::

        y = R.sparqle.split_dense_scaled(a, s, w, d, offset, k=4, label="up", ...)
        h = R.nn.relu(R.add(y, bias))
        q = R.quantize(h, R.const(0.5, "float32"), R.const(0, "int8"))
        b = R.sparqle.encode(q, k=4, window="unsigned", label="down")

    After::

        b = R.sparqle.split_dense_encoded(a, s, w, d, offset, R.const(0.5, "float32"), bias,
                                          k=4, out_window="unsigned", out_low=0, out_high=127,
                                          out_zero=0, out_signed=1, label="up", out_label="down",
                                          ...)
    """

    rewriter = _Drain
