"""The encodings of a function, and the dense ops that read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.numerics.window import default_window
from sparqle_tvm.passes._value_range import value_range


class Encodings:
    """What a function in split-precision form binds, in program order.

    Attributes
    ----------
    values : dict of relax.Var to relax.Expr
        All bindings.
    encoders : dict of relax.Var to dialect.Encoder
        Those of encodings.
    dense : dict of relax.Var to dialect.Dense
        Those of dense ops, whatever they read.
    inner : set of relax.Var
        What is bound in branches and local functions.
    """

    def __init__(self, func: relax.Function) -> None:
        self.values: dict[Any, relax.Expr] = {}
        self.encoders: dict[Any, dialect.Encoder] = {}
        self.dense: dict[Any, dialect.Dense] = {}
        self.inner: set[Any] = set()
        self._walk(func.body, inner=False)

    def _walk(self, body: relax.SeqExpr, *, inner: bool) -> None:
        for binding in (each for block in body.blocks for each in block.bindings):
            if isinstance(binding, relax.VarBinding):
                self._note(binding.var, binding.value)
                if inner:
                    self.inner.add(binding.var)
            if isinstance(binding.value, relax.If):
                self._walk(binding.value.true_branch, inner=True)
                self._walk(binding.value.false_branch, inner=True)
            elif isinstance(binding.value, relax.Function):
                self._walk(binding.value.body, inner=True)

    def _note(self, variable: Any, value: relax.Expr) -> None:
        self.values[variable] = value
        op = dialect.Op.of(value)
        if isinstance(op, dialect.Encoder):
            self.encoders[variable] = op
        elif isinstance(op, dialect.Dense):
            self.dense[variable] = op

    def variable(self, expr: Any) -> Any:
        """The variable that another name stands for."""
        while isinstance(self.values.get(expr), relax.Var):
            expr = self.values[expr]
        return expr

    def resolve(self, expr: Any) -> Any:
        """What an expression is bound to, itself if it is no variable that is bound here."""
        return self.values.get(self.variable(expr), expr)


@dataclass(frozen=True)
class DenseInfo:
    """One dense that reads an encoding; ``n`` and ``k`` are its output and input features."""

    label: str
    n: int
    k: int
    weight_bits: int
    group_size: int
    has_min: bool
    scale_bytes: int


@dataclass
class EncodingInfo:
    """One encoding of a function: its static facts and the dense ops that read it.

    Attributes
    ----------
    label : str
        Name of the tensor.
    digit_bits : int
        k, bits of a digit.
    window : str
        ``"signed"`` or ``"unsigned"``.
    window_reason : str
        Why it has that window, in a few words.
    columns : int
        K, elements in a row.
    quantizes : bool
        Whether the encoding quantizes too, so that it has scales.
    consumers : list of DenseInfo
        In program order.
    has_factors, has_bands : bool
        Whether the quantizer's step has factors, and whether bands are clipped to the window.
    rows : int or None
        M, if that is static.
    """

    label: str
    digit_bits: int
    window: str
    window_reason: str
    columns: int
    quantizes: bool
    consumers: list[DenseInfo] = field(default_factory=list)
    has_factors: bool = False
    has_bands: bool = False
    rows: int | None = None


def window_reason(op: dialect.Encoder, smallest: float) -> str:
    """Why an encoding has its window; nothing it quantizes is below `smallest`."""
    zero = None if op.zero_points is not None else op.zero_point
    window, reason = default_window(op.k, signed=op.signed, zero_point=zero, smallest=smallest)
    if op.window == window:
        return reason
    return f"chosen, by name or by measurement; by rule it were {window}: {reason}"


def _describe_encoding(op: dialect.Encoder, smallest: float) -> EncodingInfo:
    *lead, columns = op.x.ty.shape.values
    static = all(hasattr(extent, "value") for extent in lead)
    has_factors = op.factors is not None
    return EncodingInfo(
        label=op.label,
        digit_bits=op.k,
        window=op.window,
        window_reason=window_reason(op, smallest),
        columns=int(columns),
        quantizes=op.qmax > 0,
        has_factors=has_factors,
        has_bands=op.bands is not None,
        rows=math.prod(int(extent) for extent in lead) if static else None,
    )


def _describe_dense(op: dialect.Dense) -> DenseInfo:
    return DenseInfo(
        label=op.label,
        n=op.out_features,
        k=op.in_features,
        weight_bits=op.weight_bits,
        group_size=op.group_size,
        has_min=op.has_min,
        scale_bytes=op.scale_bytes,
    )


def _smallest(op: dialect.Encoder, bound: Encodings) -> float:
    """What no integer of an encoding is below."""
    return -math.inf if op.qmax else value_range(op.x, bound.resolve)[0]


def describe_encodings(func: relax.Function) -> tuple[list[EncodingInfo], list[str]]:
    """The encodings of the outermost blocks in program order, and the labels of all others."""
    bound = Encodings(func)
    inner = bound.inner
    infos = {
        v: _describe_encoding(op, _smallest(op, bound))
        for v, op in bound.encoders.items()
        if v not in inner
    }
    for variable, dense in bound.dense.items():
        info = infos.get(bound.variable(dense.encoding))
        drained = isinstance(dense, dialect.SplitDenseEncoded)
        if info is not None and variable not in inner and not drained:
            info.consumers.append(_describe_dense(dense))
    return list(infos.values()), [op.label for v, op in bound.encoders.items() if v in inner]


def in_bands(
    emit: Callable[[relax.Expr], relax.Var], q: relax.Expr, encoder: dialect.Encoder
) -> tuple[relax.Var, relax.Var]:
    """Which elements of q (.., K) float32 lie in the band below the window, and in that above."""
    op, bands = relax.op, emit(relax.op.astype(encoder.bands, "float32"))
    sides = emit(op.split(bands, 2, axis=0))
    lo, hi = (
        emit(op.reshape(emit(relax.TupleGetItem(sides, side)), (encoder.columns,)))
        for side in (0, 1)
    )
    low, high = (relax.const(edge, "float32") for edge in encoder.digits.zero_range)
    below = op.logical_and(emit(op.less(q, low)), emit(op.greater_equal(q, lo)))
    above = op.logical_and(emit(op.greater(q, high)), emit(op.less_equal(q, hi)))
    return emit(below), emit(above)
