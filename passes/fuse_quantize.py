"""Quantize and encode in one step, where the activation is produced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX
from sparqle_tvm.numerics.window import largest_integer
from sparqle_tvm.passes._match import axes_of, const_scalar, dtype_of
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter


@mutator
class _Fuse(Rewriter):
    roots = ("relax.sparqle.encode",)

    def __init__(self, mod: tvm.IRModule, owner: Any) -> None:
        super().__init__(mod, owner)
        self.fused: dict[Any, tuple[dialect.Encode, dialect.QuantizeEncode]] = {}

    def in_block(self, block: relax.BindingBlock, visit: Callable[..., Any]) -> relax.BindingBlock:
        # The scale of an encoding cannot be read outside of the block that makes it.
        outer = dict(self.replacements)
        rebuilt = visit(block)
        self.replacements = outer
        return rebuilt

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        encode = dialect.Encode.of(call)
        if encode is None:
            return None
        found = self._match_quantize(encode.x, largest_integer(encode.k))
        shifted = encode.zero_point or encode.zero_points is not None
        if not isinstance(found, str) and shifted:
            found = "it has a zero point, the quantization that is fused is symmetric"
        if not isinstance(found, str) and self.passed_on(self.bound):
            found = "the encoding as a whole is returned or passed on"
        if isinstance(found, str):
            if found:
                self.skip(encode.NAME, encode.label, found)
            return None
        x, scale, qmax = found
        bound = self.bound
        shared = {name: value for name, value in encode.attributes.items() if name != "zero_point"}
        fused = dialect.QuantizeEncode(x, qmax=qmax, **shared)
        encoding = self.emit(fused.call(), "encoding")
        if isinstance(scale, relax.Var):
            self.replacements[scale] = self.emit(fused.field(encoding, "scale"), "act_scale")
        self.fused[bound] = encode, fused
        self.count()
        return encoding

    def visit_tuple_getitem_(self, op: relax.TupleGetItem) -> relax.Expr:
        # The scale takes the place that the group sums had.
        if op.tuple_value in self.fused:
            encode, fused = self.fused[op.tuple_value]
            return fused.field(self.visit_expr(op.tuple_value), encode.fields[op.index])
        return super().visit_tuple_getitem_(op)

    def _match_quantize(self, q: Any, limit: int) -> tuple[Any, Any, int] | str:
        """``(x, scale, qmax)`` of ``astype(clip(round(x / scale)))``, or why it is not that.

        The reason is empty if there is nothing to fuse: what a function is given, or the result of
        another op, with a static scale, a zero point, or no division by a scale.
        """
        if self.chain(q, "astype", "clip", "round") is None:
            return ""
        calls = self.chain(q, "astype", "clip", "round", "divide")
        if calls is None:
            return ""
        _, clip, _, divided = calls
        low, high = const_scalar(clip.args[1]), const_scalar(clip.args[2])
        x, scale = divided.args
        if dtype_of(x) != "float32":
            return f"quantizes {dtype_of(x)}, float32 is needed"
        if low is None or high is None or low != -high or not high.is_integer():
            return f"clips to [{low}, {high}], symmetric integer limits are needed"
        if not 1 <= high <= limit:
            return f"clips to {high:g}, a limit from 1 to {limit} is needed"
        reason = self._match_scale(scale, x, high)
        return reason if reason else (x, scale, int(high))

    def _match_scale(self, scale: Any, x: Any, qmax: float) -> str:
        """``""`` if ``scale`` is ``max(amax(|x|), 1e-30) / qmax`` over the last axis."""
        calls = self.chain(scale, "divide", "maximum", "max", "abs")
        if calls is None:
            return "the scale is not max(amax, 1e-30) / qmax"
        divided, floor, amax, magnitude = calls
        if const_scalar(divided.args[1]) != qmax:
            return f"the absolute maximum is not divided by the limit {qmax:g}"
        if not magnitude.args[0].same_as(x):
            return "the scale does not come from the absolute maximum of the same tensor"
        if not amax.attrs.keepdims or axes_of(amax.attrs.axis) not in ([-1], [x.ty.ndim - 1]):
            return "the scale is not per row"
        if const_scalar(floor.args[1]) != SMALLEST_AMAX:
            return f"the absolute maximum is not bounded below by {SMALLEST_AMAX:g}"
        return ""


@tvm.transform.module_pass(opt_level=0)
class FuseQuantize(RewritePass):
    """Merge the dynamic per-row quantization of a tensor with its encoding.

    Precondition: symmetric limits, scale ``max(amax, 1e-30) / qmax`` over the last axis. Later
    readers of the scale read it from the encoding, bit for bit the same.

    Before::

        scale = R.divide(R.maximum(R.max(R.abs(x), axis=[-1], keepdims=True), 1e-30), 127)
        q = R.astype(R.clip(R.round(R.divide(x, scale)), -127, 127), "int8")
        enc = R.sparqle.encode(q, k=4, window="signed")

    After::

        enc = R.sparqle.quantize_encode(x, k=4, window="signed", qmax=127)
        scale = enc[4]
    """

    rewriter = _Fuse
