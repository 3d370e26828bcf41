"""The static facts of a function's encodings, and of the dense ops that read them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, visitor

from sparqle_tvm import dialect
from sparqle_tvm.numerics.window import WINDOWS, largest_integer


@dataclass(frozen=True)
class DenseInfo:
    """One dense that reads an encoding; ``n`` and ``k`` are its output and input features."""

    label: str
    n: int
    k: int
    weight_bits: int
    group_size: int
    has_min: bool


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
    columns : int
        K, elements in a row.
    quantizes : bool
        Whether the encoding quantizes too, so that it has scales.
    may_saturate : bool
        Whether elements outside the window's exact range, or through a small factor outside of
        the quantizer's limits, can come in.
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
    columns: int
    quantizes: bool
    may_saturate: bool
    consumers: list[DenseInfo] = field(default_factory=list)
    has_factors: bool = False
    has_bands: bool = False
    rows: int | None = None


@visitor
class _Describe(PyExprVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.encodings: dict[Any, EncodingInfo] = {}
        self.hidden: list[str] = []

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = binding.value
        op = dialect.Op.of(value)
        if isinstance(op, dialect.Encoder):
            self.encodings[binding.var] = _describe_encoding(op)
        elif isinstance(op, dialect.SplitDense | dialect.SplitDenseScaled):
            read = self.encodings.get(op.encoding)
            if read is not None:
                read.consumers.append(_describe_dense(op))
        elif isinstance(value, relax.Var) and value in self.encodings:
            self.encodings[binding.var] = self.encodings[value]
        elif isinstance(value, relax.If):
            inside = _Describe()
            inside.visit_expr(value)
            self.hidden += [info.label for info in inside.encodings.values()] + inside.hidden


def _describe_encoding(op: dialect.Encoder) -> EncodingInfo:
    # What arrives quantized can be anything that its dtype holds.
    largest = op.qmax or largest_integer(op.k)
    *lead, columns = op.x.ty.shape.values
    static = all(hasattr(extent, "value") for extent in lead)
    has_factors = op.factors is not None
    return EncodingInfo(
        label=op.label,
        digit_bits=op.k,
        window=op.window,
        columns=int(columns),
        quantizes=op.qmax > 0,
        may_saturate=has_factors or not WINDOWS[op.window].holds((-largest, largest), op.k),
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
    )


def describe_encodings(func: relax.Function) -> tuple[list[EncodingInfo], list[str]]:
    """The encodings of the outermost blocks in program order, and the labels of all others."""
    describe = _Describe()
    describe.visit_expr(func.body)
    unique: list[EncodingInfo] = []
    for info in describe.encodings.values():
        if not any(info is seen for seen in unique):
            unique.append(info)
    return unique, describe.hidden
