"""Which encodings of a function can be given factors, and who reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, visitor

from sparqle_tvm import dialect
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics import (
    EncodingChoice,
    QuantizedWeights,
    bias_term,
    group_factors,
    grouped_bias_term,
)
from sparqle_tvm.passes._constants import ConstantEvaluator
from sparqle_tvm.passes._rewrite import count_uses

SUMS_FIELD = dialect.SCALE_FIELD + 1


@dataclass(eq=False)
class Choosable:
    """An encoding that quantizes, with its readers.

    Attributes
    ----------
    variable : relax.Var
        What it is bound to.
    call : relax.Call
        ``encode`` or ``quantize_encode``.
    consumers : list of relax.Call
        The dense ops that read it, in program order.
    results : list of relax.Var
        What the consumers are bound to.
    weights : list of QuantizedWeights
        Those of the consumers; complete if there is no obstacle.
    obstacle : str
        Why it cannot be given factors, ``""`` if it can.
    """

    variable: Any
    call: Any
    consumers: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    weights: list[QuantizedWeights] = field(default_factory=list)
    obstacle: str = ""

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the call: k, window, qmax, group_size, label."""
        return dialect.attributes(self.call)

    @property
    def label(self) -> str:
        """Name of the encoding."""
        return str(self.attrs["label"])

    @property
    def columns(self) -> int:
        """K."""
        return int(self.call.args[0].ty.shape.values[-1])

    @property
    def group_sizes(self) -> list[int]:
        """Columns that have to share a factor, for each consumer: its group size, or all of K."""
        sizes = (dialect.attributes(dense)["group_size"] for dense in self.consumers)
        return [size or self.columns for size in sizes]

    def misfit(self, choice: EncodingChoice) -> str:
        """Why a choice does not suit one of several readers, ``""`` if it suits all.

        Raises
        ------
        InvalidArgumentError
            If it suits no reader: another K, factors that change within the smallest group, bands
            that end inside the window.
        """
        attrs = self.attrs
        choice.check(self.columns, attrs["k"], attrs["window"], self.label)
        if choice.factors is None:
            return ""
        smallest = min(self.group_sizes)
        group_factors(choice.factors, self.columns, smallest, self.label)
        for dense, size in zip(self.consumers, self.group_sizes, strict=True):
            try:
                group_factors(
                    choice.factors, self.columns, size, dialect.attributes(dense)["label"]
                )
            except InvalidArgumentError as error:
                return str(error)
        return ""


@visitor
class _Readers(PyExprVisitor):
    """Finds encodings and everything that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, Choosable] = {}
        self.bindings: dict[Any, Any] = {}
        self.sums: dict[Any, Any] = {}
        self.known: Counter[Any] = Counter()
        self.foreign_sums: set[Any] = set()

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = self.bindings[binding.var] = binding.value
        if dialect.is_op(value, "encode", "quantize_encode"):
            self.found[binding.var] = Choosable(binding.var, value)
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.found:
            self._read_field(binding.var, value)
        elif dialect.is_op(value, "split_dense", "split_dense_scaled"):
            self._read_dense(binding.var, value)
        super().visit_var_binding_(binding)

    def _read_field(self, variable: Any, item: relax.TupleGetItem) -> None:
        encoding = item.tuple_value
        if item.index == SUMS_FIELD:
            self.sums[variable] = encoding
        # The scale is the same with and without factors.
        if item.index in (dialect.SCALE_FIELD, SUMS_FIELD):
            self.known[encoding] += 1

    def _read_dense(self, variable: Any, call: relax.Call) -> None:
        encoding = self.found.get(call.args[0])
        if encoding is None:
            return
        self.known[call.args[0]] += 1
        encoding.consumers.append(call)
        encoding.results.append(variable)
        sums = _minimum_and_sums(call)[1]
        if sums is None:
            return
        if self.sums.get(sums) == call.args[0]:
            self.known[sums] += 1
        else:
            # Sums from elsewhere would not change with this encoding's factors.
            self.foreign_sums.add(call.args[0])

    def resolve(self, expr: Any) -> Any:
        """What an expression is bound to."""
        while isinstance(expr, relax.Var) and expr in self.bindings:
            expr = self.bindings[expr]
        return expr


def choosable_encodings(func: relax.Function) -> list[Choosable]:
    """All encodings of a function in program order; what stands against factors is noted.

    Parameters
    ----------
    func : relax.Function
        In split-precision form.
    """
    readers, uses = _Readers(), count_uses(func)
    readers.visit_expr(func.body)
    # Encodings of which more is read, directly or through their group sums, than is understood.
    passed_on = {v for v in readers.found if uses[v] != readers.known[v]} | readers.foreign_sums
    passed_on |= {e for v, e in readers.sums.items() if uses[v] != readers.known[v]}
    constants = ConstantEvaluator(readers.resolve)
    for variable, encoding in readers.found.items():
        if len(encoding.call.args) > 1:
            encoding.obstacle = "it has factors already"
        elif not dialect.is_op(encoding.call, "quantize_encode"):
            encoding.obstacle = "it arrives quantized, with a scale of its own"
        elif variable in passed_on:
            encoding.obstacle = "its planes or group sums have a reader of another kind"
        elif not encoding.consumers:
            encoding.obstacle = "no dense op with scales reads it"
        else:
            encoding.obstacle = _take_weights(encoding, constants)
    return list(readers.found.values())


def _take_weights(encoding: Choosable, constants: ConstantEvaluator) -> str:
    """Fill in the weights; why a dense cannot take factors into them, ``""`` if all can."""
    for dense in encoding.consumers:
        attrs = dialect.attributes(dense)
        if dialect.is_op(dense, "split_dense"):
            return f"{attrs['label']} has no scales that could take factors in"
        weights = _constant_weights(dense, constants)
        if weights is None:
            return f"the weights or scales of {attrs['label']} are no constants"
        offset = constants.value(dense.args[4])
        term = window_term(weights, attrs["k"], attrs["window"])
        if offset is None or not np.array_equal(offset, term):
            return f"{attrs['label']} adds a bias to its sums, which factors would scale"
        encoding.weights.append(weights)
    return ""


def _minimum_and_sums(dense: relax.Call) -> tuple[Any, Any]:
    """The minima and group sums that a dense reads, two times ``None`` if it has none."""
    if not dialect.is_op(dense, "split_dense_scaled"):
        return None, None
    return dialect.scaled_operands(dense)[0] or (None, None)


def _constant_weights(dense: relax.Call, constants: ConstantEvaluator) -> QuantizedWeights | None:
    """Weights and scales of a ``split_dense_scaled``, ``None`` if one of them is no constant."""
    values, scale = constants.value(dense.args[2]), constants.value(dense.args[3])
    operand = _minimum_and_sums(dense)[0]
    minimum = None if operand is None else constants.value(operand)
    if values is None or scale is None or (minimum is None and operand is not None):
        return None
    # Eight bits: the container, whatever the values are.
    return QuantizedWeights(values, scale, minimum, 8)


def window_term(weights: QuantizedWeights, k: int, window: str) -> np.ndarray:
    """The constant that undoes a window's bias: (N,) float64 with group scales, else int32."""
    if weights.group_size:
        return grouped_bias_term(weights, k, window)
    return bias_term(weights.values, k, window)
