"""Float tensors that are made of integers: ``(q - zero) * scale``, whoever wrote it, and moved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.passes._match import axes_of, dtype_of, op_name
from sparqle_tvm.passes._rewrite import Rewriter

NARROW = frozenset({"int8", "uint8", "int16", "uint16"})
_WIDE = frozenset({"int32", "int64"})
_MOVES = frozenset(
    f"relax.{name}" for name in ("reshape", "permute_dims", "expand_dims", "squeeze", "flatten")
)


@dataclass(frozen=True)
class Dequantized:
    """What a float tensor is made of.

    Attributes
    ----------
    values : relax.Expr
        Integers of 8 or 16 bits, as they were before they were moved.
    zero : np.ndarray, relax.Expr or None
        What is taken off them: constants, what comes at run time, or nothing.
    scale : relax.Expr
        One number; or one for each index of `axis`; or of the shape (.., 1), one for each row; or
        one for each group of a tensor of three axes: (A, G, 1) or (G, 1, A).
    axis : int or None
        Axis of the values that a vector of scales, or of zero points, goes along.
    factors : tuple of float
        Numbers that the product is multiplied with besides.
    moves : tuple of relax.Call
        Calls of layout ops, the first one done first.
    """

    values: Any
    zero: Any
    scale: Any
    axis: int | None
    factors: tuple[float, ...] = ()
    moves: tuple[Any, ...] = ()

    @property
    def per_row(self) -> bool:
        """Whether each row has a scale, or a zero point of run time, of its own."""
        several = [self.scale] if isinstance(self.zero, np.ndarray) else [self.scale, self.zero]
        return self.axis is None and any(
            each is not None and not dialect.is_single(each.ty) for each in several
        )

    @property
    def transposed(self) -> bool:
        """Whether the one move reverses the axes."""
        if len(self.moves) != 1 or op_name(self.moves[0]) != "relax.permute_dims":
            return False
        axes = axes_of(self.moves[0].attrs.axes)
        return axes == list(range(len(axes)))[::-1]

    def after(self, count: int) -> Dequantized:
        """The same without the first moves."""
        return replace(self, moves=self.moves[count:])

    def moved(self, rewriter: Rewriter, values: relax.Expr) -> relax.Expr:
        """Integers in the place of the values, moved as these are."""
        for move in self.moves:
            call = relax.Call(move.op, [values, *move.args[1:]], move.attrs)
            values = rewriter.emit(call)
        return values


def match_dequantized(rewriter: Rewriter, expr: Any) -> Dequantized | None:
    """The integers that a float tensor is made of; None if it is made in another way."""
    moves: list[Any] = []
    factors: list[float] = []
    value = rewriter.value(expr)
    while isinstance(value, relax.Call):
        name = op_name(value)
        if name in _MOVES:
            moves.append(value)
        elif name == "relax.dequantize":
            found = _from_op(rewriter, value)
            return _with(found, moves, factors)
        elif name in ("relax.multiply", "relax.divide"):
            spelled = _from_arithmetic(rewriter, value)
            if spelled is not None:
                return _with(spelled, moves, factors)
            inner = _scaled_by_number(rewriter, value, factors)
            if inner is None:
                return None
            value = rewriter.value(inner)
            continue
        elif not (name == "relax.astype" and dtype_of(value.args[0]).startswith("float")):
            return None
        value = rewriter.value(value.args[0])
    return None


def _with(found: Dequantized | None, moves: list[Any], factors: list[float]) -> Dequantized | None:
    if found is None:
        return None
    return Dequantized(
        found.values, found.zero, found.scale, found.axis, tuple(factors), tuple(moves[::-1])
    )


def _from_op(rewriter: Rewriter, call: relax.Call) -> Dequantized | None:
    values, scale, zero = call.args
    if dtype_of(values) not in NARROW:
        return None
    known = rewriter.constants.value(zero)
    several = not all(dialect.is_single(each.ty) for each in (scale, zero))
    axis = int(call.attrs.axis) % values.ty.ndim if several else None
    return Dequantized(values, zero if known is None else known, scale, axis)


def _scaled_by_number(rewriter: Rewriter, call: relax.Call, factors: list[float]) -> Any | None:
    """The other operand of a multiplication with (a division by) one constant number."""
    divides = op_name(call) == "relax.divide"
    for number, other in ((call.args[1], call.args[0]), (call.args[0], call.args[1])):
        value = rewriter.constants.value(number)
        if value is not None and value.size == 1 and value.ndim <= other.ty.ndim:
            factor = float(value.reshape(()))
            if divides and not factor:
                return None
            factors.append(1 / factor if divides else factor)
            return other
        if divides:
            break
    return None


def _from_arithmetic(rewriter: Rewriter, call: relax.Call) -> Dequantized | None:
    """``float(q) * scale`` or ``(float(q) - zero) * scale``, the difference of either type."""
    if op_name(call) != "relax.multiply":
        return None
    for integers, scale in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        found = _integers(rewriter, integers)
        if found is None:
            continue
        values, zero = found
        rank = values.ty.ndim
        if scale.ty.shape is None or scale.ty.ndim > rank:
            return None
        shape = _extents(scale, rank)
        along = [axis for axis, extent in enumerate(shape) if extent != 1]
        if isinstance(zero, relax.Expr) and rank == 2 and not dialect.is_single(zero.ty):
            # Both lie along one axis, or the scale along none.
            extents = _extents(zero, rank)
            if along and [i for i, extent in enumerate(extents) if extent != 1] != along:
                return None
            if not along and -1 not in extents and 1 in extents:
                return Dequantized(values, zero, scale, int(extents[0] == 1))
        several = isinstance(zero, np.ndarray) and zero.size > 1
        if not along and not several:
            return Dequantized(values, zero, scale, None)
        if len(along) == 1 and rank == 2 and shape[along[0]] > 0:
            return Dequantized(values, zero, scale, along[0])
        of_groups = rank == 3 and shape[1:].count(1) == 1 and -1 not in shape
        if along and ((shape[-1] == 1 and not several) or of_groups):
            return Dequantized(values, zero, scale, None)
        return None
    return None


def _extents(expr: Any, rank: int) -> list[int]:
    """The shape that a tensor has among `rank` axes, -1 for what is symbolic."""
    found = [int(d) if hasattr(d, "value") else -1 for d in expr.ty.shape.values]
    return [1] * (rank - len(found)) + found


def _integers(rewriter: Rewriter, expr: Any) -> tuple[Any, Any] | None:
    """``(q, zero)`` of narrow integers that are widened to floats, and maybe less something."""
    value, zero = rewriter.value(expr), None
    if op_name(value) == "relax.subtract":
        value, zero = rewriter.value(value.args[0]), value.args[1]
    if op_name(value) != "relax.astype":
        return None
    inner = rewriter.value(value.args[0])
    if zero is None and op_name(inner) == "relax.subtract" and dtype_of(inner) in _WIDE:
        # The difference of integers, widened afterwards.
        value, zero = rewriter.value(inner.args[0]), inner.args[1]
        if op_name(value) != "relax.astype":
            return None
    values = value.args[0]
    if dtype_of(values) not in NARROW:
        return None
    if zero is None:
        return values, None
    known = rewriter.constants.value(zero)
    if known is not None:
        return (values, known.astype(np.int64)) if (known == np.rint(known)).all() else None
    cast = rewriter.match(zero, "astype")
    return None if cast is None else (values, cast.args[0])
