"""Set factors and bands of encodings: sparser MSB planes, at a loss that somebody chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.errors import QuantizationError
from sparqle_tvm.numerics import EncodingChoice, QuantizedWeights, scale_weights
from sparqle_tvm.numerics.dense import require_exact_sum
from sparqle_tvm.numerics.window import largest_integer
from sparqle_tvm.passes._choosable import Choosable, choosable_encodings, window_term
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter


def _scaled_weights(encoding: Choosable, choice: EncodingChoice) -> list[QuantizedWeights] | str:
    """The weights of all readers with the factors taken in, or why that cannot be."""
    found, op = [], encoding.op
    factors = choice.factors_or_ones(op.columns)
    for dense, weights in zip(encoding.consumers, encoding.weights, strict=True):
        try:
            scaled = scale_weights(weights, factors, dense.label)
            if scaled.group_size:
                # Digits with the window's bias are up to twice as large as q.
                require_exact_sum(scaled, 2 * largest_integer(op.k))
        except QuantizationError as error:
            return str(error)
        found.append(scaled)
    return found


@mutator
class _Raise(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: RaiseMsbSparsity) -> None:
        super().__init__(mod, owner)
        self.seen: set[str] = set()
        # By the variables that encodings and dense ops are bound to.
        self.chosen: dict[Any, EncodingChoice] = {}
        self.scaled: dict[Any, tuple[EncodingChoice, QuantizedWeights]] = {}

    def begin(self, name: str, func: relax.Function) -> None:
        super().begin(name, func)
        for encoding in choosable_encodings(func):
            label = encoding.op.label
            self.seen.update(self.labels(label))
            choice = self.owner.choices.get(label)
            if choice is None or (choice.factors is None and choice.bands is None):
                continue
            reason = encoding.obstacle or encoding.misfit(choice)
            scaled = reason or _scaled_weights(encoding, choice)
            if isinstance(scaled, str):
                self.skip("quantize_encode", label, scaled)
                continue
            self.chosen[encoding.variable] = choice
            for result, weights in zip(encoding.results, scaled, strict=True):
                self.scaled[result] = choice, weights

    def finish(self) -> None:
        """Note the labels that were given a choice and that no encoding bears."""
        for label in sorted(set(self.owner.choices) - self.seen):
            self.skip("quantize_encode", label, "no encoding has this label")

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        op = dialect.Op.of(call)
        if isinstance(op, dialect.QuantizeEncode) and self.bound in self.chosen:
            self.count()
            return self._encode(op, self.chosen[self.bound])
        if isinstance(op, dialect.SplitDenseScaled) and self.bound in self.scaled:
            choice, weights = self.scaled[self.bound]
            return None if choice.factors is None else self._rescale(op, choice, weights)
        return None

    def _constant(self, *key: Any, value: np.ndarray) -> relax.Expr:
        return self.constants.once(("choice", *key), lambda: value)

    def _encode(self, op: dialect.QuantizeEncode, choice: EncodingChoice) -> relax.Call:
        factors, bands = choice.factors_or_ones(op.columns), None
        if choice.bands is not None:
            bands = self._constant(id(choice), "bands", value=choice.bands)
        return op.changed(factors=self._constant(id(choice), "factors", value=factors), bands=bands)

    def _rescale(
        self, op: dialect.SplitDenseScaled, choice: EncodingChoice, weights: QuantizedWeights
    ) -> relax.Call:
        """The same dense with scales, minima and window offset that hold the factors."""
        # What is equal in prefill and decode becomes one constant.
        source = self.constants.source
        key = (id(choice), source(op.weight), source(op.w_scale))
        term, w_min = window_term(weights, op.k, op.window), None
        if weights.minimum is not None:
            w_min = self._constant(*key, source(op.w_min), "minimum", value=weights.minimum)
        return op.changed(
            w_scale=self._constant(*key, "scale", value=weights.scale),
            offset=self._constant(*key, op.window, "offset", value=term),
            w_min=w_min,
        )


@tvm.transform.module_pass(opt_level=0)
class RaiseMsbSparsity(RewritePass):
    """Give encodings factors on their step (and bands), and let the weights take the factors in.

    A coarser step makes more q fall into the window. As ``sum x w`` over a group of weights is
    ``scale * (f * d) * sum q w_int``, the group scales (and minima) absorb the factor: the array
    does nothing more, and no integer of the weights changes. The result is that of int8
    quantization with the same factors, bit for bit; `sparqle_tvm.numerics.choice` defines it.

    Precondition: split-precision form with constant weights and scales in all readers of an
    encoding, and factors that are constant within each reader's groups. What does not meet that
    is left alone and reported. Windows are chosen before: bands belong to one.

    Before::

        enc = R.sparqle.quantize_encode(x, label="up", group_size=32)
        y = R.sparqle.split_dense_scaled(enc, enc[4], w, d, offset, m, enc[5], ...)

    After ``RaiseMsbSparsity({"up": EncodingChoice.per_group(f, 64)})``::

        enc = R.sparqle.quantize_encode(x, factors, label="up", group_size=32)
        y = R.sparqle.split_dense_scaled(enc, enc[4], w, d * f, offset', m * f, enc[5], ...)

    Parameters
    ----------
    choices : mapping of label to EncodingChoice
        What is chosen for the encodings of these labels; all others stay as they are.

    Raises
    ------
    InvalidArgumentError
        When applied, for a choice that cannot suit its encoding: another K, factors that change
        within a group, bands that end inside the window.
    """

    rewriter = _Raise

    def __init__(
        self, choices: Mapping[str, EncodingChoice], *, report: PassReport | None = None
    ) -> None:
        super().__init__(report=report)
        self.choices = dict(choices)
