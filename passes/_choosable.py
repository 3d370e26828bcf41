"""Which encodings of a function can be given factors, and who reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import relax

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
from sparqle_tvm.passes._encodings import Encodings
from sparqle_tvm.passes._rewrite import count_uses


@dataclass(eq=False)
class Choosable:
    """An encoding that quantizes, with its readers.

    Attributes
    ----------
    variable : relax.Var
        What it is bound to.
    op : dialect.Encoder
        ``encode`` or ``quantize_encode``.
    consumers : list of dialect.Dense
        The dense ops that read it, in program order.
    results : list of relax.Var
        What the consumers are bound to.
    weights : list of QuantizedWeights
        Those of the consumers; complete if there is no obstacle.
    obstacle : str
        Why it cannot be given factors, ``""`` if it can.
    """

    variable: Any
    op: dialect.Encoder
    consumers: list[dialect.Dense] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    weights: list[QuantizedWeights] = field(default_factory=list)
    obstacle: str = ""

    @property
    def group_sizes(self) -> list[int]:
        """Columns that have to share a factor, for each consumer: its group size, or all of K."""
        return [dense.group_size or self.op.columns for dense in self.consumers]

    def misfit(self, choice: EncodingChoice) -> str:
        """Why a choice does not suit one of several readers, ``""`` if it suits all.

        Raises
        ------
        InvalidArgumentError
            If it suits no reader: another K, factors that change within the smallest group, bands
            that end inside the window.
        """
        op = self.op
        choice.check(op.columns, op.k, op.window, op.label)
        if choice.factors is None:
            return ""
        smallest = min(self.group_sizes)
        group_factors(choice.factors, op.columns, smallest, op.label)
        for dense, size in zip(self.consumers, self.group_sizes, strict=True):
            try:
                group_factors(choice.factors, op.columns, size, dense.label)
            except InvalidArgumentError as error:
                return str(error)
        return ""


def choosable_encodings(func: relax.Function) -> list[Choosable]:
    """All encodings of a function in program order; what stands against factors is noted.

    Parameters
    ----------
    func : relax.Function
        In split-precision form.
    """
    bound = Encodings(func)
    found = {variable: Choosable(variable, op) for variable, op in bound.encoders.items()}
    passed_on = _take_readers(found, bound, count_uses(func))
    constants = ConstantEvaluator(bound.resolve)
    for variable, encoding in found.items():
        if encoding.op.factors is not None:
            encoding.obstacle = "it has factors already"
        elif not isinstance(encoding.op, dialect.QuantizeEncode):
            encoding.obstacle = "it arrives quantized, with a scale of its own"
        elif variable in passed_on:
            encoding.obstacle = "its planes or group sums have a reader of another kind"
        elif not encoding.consumers:
            encoding.obstacle = "no dense op with scales reads it"
        else:
            encoding.obstacle = _take_weights(encoding, constants)
    return list(found.values())


def _take_readers(found: dict[Any, Choosable], bound: Encodings, uses: Counter[Any]) -> set[Any]:
    """Fill in the readers; encodings of which more is read than by those and through the scale."""
    known: Counter[Any] = Counter()
    sums: dict[Any, Any] = {}
    passed_on = set()
    for variable, value in bound.values.items():
        dense = bound.dense.get(variable)
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in found:
            name = found[value.tuple_value].op.fields[value.index]
            if name == "group_sums":
                sums[variable] = value.tuple_value
            # The scale is the same with and without factors.
            if name in ("scale", "group_sums"):
                known[value.tuple_value] += 1
        elif isinstance(dense, dialect.SplitDense | dialect.SplitDenseScaled):
            encoding = found.get(dense.encoding)
            if encoding is None:
                continue
            known[dense.encoding] += 1
            encoding.consumers.append(dense)
            encoding.results.append(variable)
            if dense.group_sums is None:
                continue
            if sums.get(dense.group_sums) == dense.encoding:
                known[dense.group_sums] += 1
            else:
                # Sums from elsewhere would not change with this encoding's factors.
                passed_on.add(dense.encoding)
    passed_on |= {variable for variable in found if uses[variable] != known[variable]}
    return passed_on | {sums[each] for each in sums if uses[each] != known[each]}


def _take_weights(encoding: Choosable, constants: ConstantEvaluator) -> str:
    """Fill in the weights; why a dense cannot take factors into them, ``""`` if all can."""
    for dense in encoding.consumers:
        if not isinstance(dense, dialect.ScaledDense):
            return f"{dense.label} has no scales that could take factors in"
        weights = _constant_weights(dense, constants)
        if weights is None:
            return f"the weights or scales of {dense.label} are no constants"
        offset = constants.value(dense.offset)
        if offset is None or not np.array_equal(
            offset, window_term(weights, dense.k, dense.window)
        ):
            return f"{dense.label} adds a bias to its sums, which factors would scale"
        encoding.weights.append(weights)
    return ""


def _constant_weights(
    dense: dialect.ScaledDense, constants: ConstantEvaluator
) -> QuantizedWeights | None:
    """Weights and scales of a dense, ``None`` if one of them is no constant."""
    values, scale = constants.value(dense.weight), constants.value(dense.w_scale)
    minimum = constants.value(dense.w_min) if dense.has_min else None
    if values is None or scale is None or (minimum is None and dense.has_min):
        return None
    # Eight bits: the container, whatever the values are.
    return QuantizedWeights(values, scale, minimum, 8)


def window_term(weights: QuantizedWeights, k: int, window: str) -> np.ndarray:
    """The constant that undoes a window's bias: (N,) float64 with group scales, else int32."""
    if weights.group_size:
        return grouped_bias_term(weights, k, window)
    return bias_term(weights.values, k, window)
