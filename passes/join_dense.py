"""Let the dense ops that read one encoding run as one op."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.errors import CompileError
from sparqle_tvm.passes._dense_specs import weight_format
from sparqle_tvm.passes._encodings import Encodings
from sparqle_tvm.passes._match import dtype_of
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.passes._weights import group_scale, remaining_offset, weight_sums
from sparqle_tvm.target.joint_op import SEPARATOR

# Operands whose first dimension is that of the output channels.
PER_CHANNEL = ("weight", "w_scale", "w_min", "offset")


@mutator
class _Join(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: JoinDense) -> None:
        super().__init__(mod, owner)
        self.known: Encodings | None = None
        self.readers: dict[Any, list[Any]] = {}
        self.results: dict[Any, relax.Expr] = {}

    def begin(self, name: str, func: relax.Function) -> None:
        super().begin(name, func)
        self.known = bound = Encodings(func)
        readers: dict[Any, list[Any]] = defaultdict(list)
        for result, op in bound.dense.items():
            if result not in bound.inner and not isinstance(op, dialect.SplitDenseEncoded):
                readers[bound.variable(op.encoding)].append((result, op))
        self.readers = {
            result: group for group in readers.values() for result, _ in group if len(group) > 1
        }
        self.results = {}

    def value(self, expr: Any) -> Any:
        """What ``expr`` is bound to, further down in the function too."""
        found = self.known.resolve(expr) if self.known is not None else expr
        return super().value(expr) if isinstance(found, relax.Var) else found

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        op = dialect.Dense.of(call)
        if op is None or self.bound not in self.readers:
            return None
        if self.bound not in self.results:
            mine = self._alike(op)
            if len(mine) < 2:
                return None
            self._join(op, mine)
        return self.results[self.bound]

    def _alike(self, op: dialect.Dense) -> list[tuple[Any, dialect.Dense]]:
        """The readers of the same encoding that the op may run with, itself among them."""
        form = self._form(op)
        group = [(result, other) for result, other in self.readers[self.bound]]
        if form is None:
            self.skip(
                f"relax.sparqle.{op.NAME}",
                op.label,
                "its weights, scales or offset are no constants, so it does not run as one with "
                "the ops that read the same encoding",
            )
            return []
        return [pair for pair in group if self._form(pair[1]) == form and self._shares(op, pair[1])]

    def _form(self, op: dialect.Dense) -> tuple[Any, ...] | None:
        """What ops have to agree in; None if what belongs to channels is not constant."""
        if op.row_order is not None:
            return None
        own = [getattr(op, name, None) for name in PER_CHANNEL]
        declared = self._is_declared(op)
        if not declared and any(self.constants.value(x) is None for x in own if x is not None):
            return None
        try:
            offset = remaining_offset(self, op, -op.digits.bias) is not None
        except CompileError:
            return None
        if declared and offset:
            return None
        attributes = {name: v for name, v in op.attributes.items() if name != "label"}
        # Scales of groups may be of several types.
        types = tuple(x is not None and dtype_of(x) for x in own)
        return op.NAME, attributes, types, weight_format(self, op), offset

    def _shares(self, op: dialect.Dense, other: dialect.Dense) -> bool:
        """Whether scales and group sums of the activations are the same."""
        pairs = ((getattr(x, name, None) for x in (op, other)) for name in _PER_ROW)
        return all(a is b or (a is not None and self.same(a, b)) for a, b in pairs)

    def _join(self, op: dialect.Dense, members: list[tuple[Any, dialect.Dense]]) -> None:
        ops = [member for _, member in members]
        declared = self._is_declared(op)
        channels = {
            name: self._side_by_side([getattr(member, name) for member in ops], name)
            for name in PER_CHANNEL
            if getattr(op, name, None) is not None and not (declared and name == "offset")
        }
        if declared:
            # All of it is what the window asks for: sums of the weights, here of all of them.
            scale = channels.get("w_scale") if group_scale(op) is not None else None
            own = weight_sums(self, channels["weight"], scale, -op.digits.bias)
            channels["offset"] = own
        label = SEPARATOR.join(member.label for member in ops)
        joint = self.emit(op.changed(**channels, label=label), "joint")
        ends = np.cumsum([member.out_features for member in ops])[:-1].tolist()
        parts = self.emit(relax.op.split(joint, ends, axis=-1), "parts")
        for i, (result, _) in enumerate(members):
            self.count()
            self.results[result] = relax.TupleGetItem(parts, i)

    def _is_declared(self, op: dialect.Dense) -> bool:
        """Whether weights, scales and minima are declared weights."""
        own = (getattr(op, name, None) for name in PER_CHANNEL if name != "offset")
        return all(self.declared(x) for x in own if x is not None)

    def _side_by_side(self, operands: list[Any], name: str) -> relax.Expr:
        if all(map(self.declared, operands)):
            return self.emit(relax.op.concat(operands, axis=0), name)
        values = [v for v in map(self.constants.value, operands) if v is not None]
        key = (*map(self.constants.source, operands), "joint", name)
        return self.constants.once(key, lambda: np.concatenate(values))


# Operands that belong to rows.
_PER_ROW = ("act_scale", "group_sums")


@tvm.transform.module_pass(opt_level=0)
class JoinDense(RewritePass):
    """Let dense ops that read one encoding (q, k and v; gate and up) run as one.

    Their output channels lie side by side: weights, scales, minima and offsets one after another,
    so that activations are loaded once for all. Every result is what it was, as columns of that of
    the joint op, whose label is those of its parts with ``+`` between them (`target.joint_op`).

    Precondition: ops of one kind with the same attributes, weight format, activation scale and
    group sums; what belongs to channels is constant, or declared to be weights; outputs are not
    encoded. Others stay alone.

    Before::

        q = R.sparqle.split_dense_scaled(enc, s, wq, dq, oq, k=4, label="q", ...)
        k = R.sparqle.split_dense_scaled(enc, s, wk, dk, ok, k=4, label="k", ...)

    After::

        joint = R.sparqle.split_dense_scaled(enc, s, wqk, dqk, oqk, k=4, label="q+k", ...)
        parts = R.split(joint, [n_q], axis=-1)
        q, k = parts[0], parts[1]
    """

    rewriter = _Join
