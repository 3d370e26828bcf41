"""What an integer product takes as its activations: narrow integers, less a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.numerics.integers import bounds
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.passes._match import dims_of, dtype_of, op_name, same_dims
from sparqle_tvm.passes._rewrite import Rewriter
from sparqle_tvm.passes._weights import DIGIT_BITS


@dataclass(frozen=True)
class Activation:
    """Integers, less a zero point.

    Attributes
    ----------
    q : relax.Expr
        (.., K) integers of 8 or 16 bits.
    zero_point : int
        A constant one.
    zero_points : relax.Expr or None
        What comes at run time, in the dtype of q: one number, or (.., 1), one for each row.
    centred : bool
        Whether the zero points are moved to the nearest centre of a window.
    """

    q: Any
    zero_point: int = 0
    zero_points: Any = None
    centred: bool = False

    @property
    def by_rows(self) -> bool:
        """Whether each row has a zero point of its own."""
        return self.zero_points is not None and not dialect.is_single(self.zero_points.ty)


def match_activation(rewriter: Rewriter, wide: Any) -> Activation | str:
    """What is multiplied, as integers of 8 or 16 bits and a zero point, or what is wrong."""
    found = f"activations are {dtype_of(wide)}, {' or '.join(DIGIT_BITS)} is needed"
    if dtype_of(wide) in DIGIT_BITS and rewriter.match(wide, "subtract") is None:
        cast = rewriter.match(wide, "astype")
        if cast is None or dtype_of(cast.args[0]) not in DIGIT_BITS:
            return Activation(wide)
    value, zero = rewriter.value(wide), None
    if op_name(value) == "relax.subtract":
        value, zero = rewriter.value(value.args[0]), value.args[1]
    if op_name(value) != "relax.astype" or dtype_of(value.args[0]) not in DIGIT_BITS:
        return Activation(wide) if dtype_of(wide) in DIGIT_BITS else found
    q = value.args[0]
    # The difference must not wrap: the two have one bit more than q.
    exact = ("int32", "int64") if DIGIT_BITS[dtype_of(q)] == 8 else ("int16", "int32", "int64")
    if dtype_of(wide) not in exact:
        return Activation(wide) if dtype_of(wide) in DIGIT_BITS else found
    return Activation(q) if zero is None else _with_zero(rewriter, q, zero)


def _with_zero(rewriter: Rewriter, q: Any, zero: Any) -> Activation | str:
    """q with a constant zero point, or one of run time, in the dtype of q."""
    k, dtype = DIGIT_BITS[dtype_of(q)], dtype_of(q)
    constant = rewriter.constants.value(zero)
    if constant is not None:
        if constant.size != 1:
            return "the activation has several constant zero points"
        low, high = bounds(k, not dtype.startswith("u"))
        found = int(constant.reshape(-1)[0])
        if low <= found <= high:
            return Activation(q, found)
        return f"the zero point {found} is no {dtype}, as the activation is"
    centred = _clipped(rewriter, zero, centre_range(q))
    cast = rewriter.match(zero if centred is None else centred, "astype")
    if cast is None or dtype_of(cast.args[0]) != dtype:
        return f"the zero point comes at run time and is no {dtype}, as the activation is"
    source = cast.args[0]
    if not dialect.is_single(source.ty):
        row = [*dims_of(q)[:-1], tvm.tirx.IntImm("int64", 1)]
        if not same_dims(dims_of(source), row):
            return "the zero points are neither one number nor one for each row"
    return Activation(q, zero_points=source, centred=centred is not None)


def centre_range(q: Any) -> tuple[int, int]:
    """Smallest and largest centre of the centred window of integers of this type."""
    signed = not dtype_of(q).startswith("u")
    return WINDOWS["signed"].digits(DIGIT_BITS[dtype_of(q)], signed=signed).centre_range


def centred(rewriter: Rewriter, zero: relax.Expr, limits: tuple[int, int]) -> relax.Var:
    """int32 zero points moved to the nearest centre."""
    op = relax.op
    # The clip of integers takes their limits as numbers of their own dtype.
    low, high = (relax.const(edge, "int32") for edge in limits)
    return rewriter.emit(op.minimum(op.maximum(zero, low), high), "centre")


def _clipped(rewriter: Rewriter, expr: Any, limits: tuple[int, int]) -> Any | None:
    """What `centred` moves with these limits, None if it is another expression."""
    calls = rewriter.chain(expr, "minimum", "maximum")
    if calls is None:
        return None
    edges = [rewriter.constants.value(call.args[1]) for call in calls]
    found = [int(edge) for edge in edges if edge is not None and edge.ndim == 0]
    return calls[1].args[0] if tuple(found[::-1]) == limits else None
