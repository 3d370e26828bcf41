"""Let encodings sort their rows by their digits, where an accelerator gains by it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, mutator, visitor

from sparqle_tvm import dialect
from sparqle_tvm.errors import TargetError
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import (
    Rewriter,
    apply_rewriter,
    count_field_readers,
    count_uses,
    dims_of,
    int_shape,
)
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.buckets import buckets
from sparqle_tvm.target.cost.block_rows import Balance, choose_block_rows
from sparqle_tvm.target.op import DenseOp


@visitor
class _Readers(PyExprVisitor):
    """The dense ops that read each encoding."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, list[relax.Call]] = defaultdict(list)

    def visit_call_(self, op: relax.Call) -> None:
        if dialect.is_op(op, "split_dense", "split_dense_scaled", "split_dense_encoded"):
            self.found[op.args[0]].append(op)


@mutator
class _Balance(Rewriter):
    def __init__(self, mod: tvm.IRModule, report: PassReport, owner: BalanceRows) -> None:
        super().__init__(mod, report)
        self.owner = owner
        self.readers: dict[Any, list[relax.Call]] = {}
        self.read: Counter[Any] = Counter()
        self.all_uses: Counter[Any] = Counter()
        self.chosen: dict[Any, tuple[int, int] | None] = {}
        self.orders: dict[Any, relax.Var] = {}

    def visit_function_(self, func: relax.Function) -> relax.Expr:
        readers = _Readers()
        readers.visit_expr(func.body)
        self.readers, self.orders, self.chosen = readers.found, {}, {}
        self.read, self.all_uses = count_field_readers(func), count_uses(func)
        return super().visit_function_(func)

    def visit_binding_block_(self, block: relax.BindingBlock) -> relax.BindingBlock:
        return self._scoped(block, super().visit_binding_block_)

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.BindingBlock:
        return self._scoped(block, super().visit_dataflow_block_)

    def _scoped(self, block: relax.BindingBlock, visit: Callable[..., Any]) -> relax.BindingBlock:
        # A block reads the orders that blocks around it made, but not those of another branch.
        outer, self.orders = self.orders, dict(self.orders)
        rebuilt = visit(block)
        self.orders = outer
        return rebuilt

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if not dialect.is_op(call, "split_dense_scaled"):
            return None
        if dialect.scaled_operands(call)[1] is not None:
            return None
        encoding = original.args[0]
        if encoding not in self.chosen:
            self.chosen[encoding] = self._choose(encoding)
        chosen = self.chosen[encoding]
        if chosen is None:
            return None
        if encoding not in self.orders:
            self.orders[encoding] = self._order(call, *chosen)
        return dialect.with_attributes(call, [*call.args, self.orders[encoding]])

    def _order(self, call: relax.Call, block_rows: int, min_rows: int) -> relax.Var:
        """The list of rows, made at the first dense that needs it."""
        self.report.rewrite("BalanceRows")
        pbm = self.emit(relax.TupleGetItem(call.args[0], dialect.PBM_FIELD), "bitmap")
        sorting = dialect.balance_rows(
            pbm,
            in_features=dialect.attributes(call)["in_features"],
            block_rows=block_rows,
            lanes=self.owner.accelerator.lanes,
            min_rows=min_rows,
            label=dialect.attributes(self.value(call.args[0])).get("label", ""),
        )
        return self.emit(sorting, "row_order")

    def _choose(self, encoding: relax.Var) -> tuple[int, int] | None:
        """Rows of a block, and from how many rows in all it pays; None: sort no rows."""
        made = self.value(encoding)
        if not dialect.is_op(made, "encode", "quantize_encode"):
            return None
        label = dialect.attributes(made)["label"]
        readers = self.readers[encoding]
        reason = ""
        if any(dialect.is_op(reader, "split_dense_encoded") for reader in readers):
            reason = "an encoded result is stored in the order in which its rows come"
        elif self.all_uses[encoding] != self.read[encoding]:
            reason = "the encoding is passed on as a whole"
        elif any(dialect.is_op(reader, "split_dense") for reader in readers):
            reason = "an int32 result is stored without parameters per row, so without their order"
        if not reason:
            try:
                chosen = self._best(readers)
            except TargetError as error:
                chosen, reason = None, str(error)
            if chosen is not None:
                return chosen
        reason = reason or "it costs more cycles than it saves"
        self.report.skip("BalanceRows", str(made.op.name), label, reason)
        return None

    def _best(self, readers: list[relax.Call]) -> tuple[int, int] | None:
        best = None
        for rows in self._row_counts(readers[0]):
            shapes = [_shape(reader, rows) for reader in readers]
            block = choose_block_rows(shapes, self.owner.accelerator, self.owner.goal)
            if block:
                best = (block, best[1] if best else rows)
            elif best:
                # Programs for more rows would have to leave them in order.
                return None
        return best

    def _row_counts(self, reader: relax.Call) -> list[int]:
        lead = dims_of(reader)[:-1]
        if all(hasattr(d, "value") for d in lead):
            return [max(1, int(np.prod([int(d) for d in lead])))]
        return buckets(self.owner.accelerator.rows)


def _shape(call: relax.Call, rows: int) -> DenseOp:
    attrs = dialect.attributes(call)
    outputs, columns = int_shape(call.args[2])
    return DenseOp(
        m=rows,
        n=outputs,
        k=columns,
        weight_bits=attrs["weight_bits"],
        group_size=attrs["group_size"],
        has_min=dialect.scaled_operands(call)[0] is not None,
        digit_bits=attrs["k"],
    )


@tvm.transform.module_pass(opt_level=0, name="BalanceRows")
class BalanceRows:
    """Sort the rows of encodings by the steps of their MSB digits, where that pays.

    In the MSB pass, the rows of a group wait for the slowest of them. Sorted, rows of a group are
    alike. The dense ops that read the encoding get the order as an operand; what they compute does
    not depend on it, and on a host it is dropped. How many rows are sorted together, and whether
    at all, is chosen for the number of rows (`target.cost.block_rows`); if that is symbolic, for
    the row counts that programs are made for.

    Precondition: the encoding is read by ``split_dense_scaled`` only, or field by field.

    Before::

        y = R.sparqle.split_dense_scaled(enc, s, w, d, offset, k=4, in_features=576, ...)

    After::

        pbm = enc[1]
        order = R.sparqle.balance_rows(pbm, in_features=576, block_rows=64, lanes=16, min_rows=512)
        y = R.sparqle.split_dense_scaled(enc, s, w, d, offset, order, k=4, in_features=576, ...)

    Parameters
    ----------
    accelerator : Accelerator
        The machine.
    goal : {"array", "time", "none"}
        What should be least, see `target.cost.block_rows`.
    report : PassReport, optional
        Takes the number of orders made, and why others were not.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        goal: Balance = "array",
        *,
        report: PassReport | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.goal = goal
        self.report = report if report is not None else PassReport()

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        if self.goal == "none":
            return mod
        return apply_rewriter(mod, self.report, lambda m: _Balance(m, self.report, self))
