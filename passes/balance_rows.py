"""Let encodings sort their rows by their digits, where an accelerator gains by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.errors import TargetError
from sparqle_tvm.passes._dense_specs import dense_op, row_counts
from sparqle_tvm.passes._encodings import Encodings
from sparqle_tvm.passes._match import dims_of
from sparqle_tvm.passes._report import LOG, PassReport
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.block_rows import Balance, choose_block_rows, sorting_questions
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY, rounded_density
from sparqle_tvm.target.cost.tiling import choose_together
from sparqle_tvm.target.op import DenseOp

# A dense op that reads an encoding, and the variable of its result.
Reader = tuple[dialect.Dense, relax.Var]


@mutator
class _Balance(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: BalanceRows) -> None:
        super().__init__(mod, owner)
        self.readers: dict[Any, list[Reader]] = defaultdict(list)
        self.chosen: dict[Any, tuple[int, int] | None] = {}
        self.best: dict[Any, tuple[int, int] | None] = {}
        self.orders: dict[Any, relax.Var] = {}

    def begin(self, name: str, func: relax.Function) -> None:
        super().begin(name, func)
        found = Encodings(func)
        for result, dense in found.dense.items():
            self.readers[dense.encoding].append((dense, result))
        # All schedules at once takes hardly longer than those of one encoding.
        machine, densities = self.owner.accelerator, self.owner.densities
        choose_together(
            question
            for encoding, made in found.encoders.items()
            if all(isinstance(d, dialect.SplitDenseScaled) for d, _ in self.readers[encoding])
            for group in self._groups(self.readers[encoding])
            for question in sorting_questions(
                group, machine, densities.get(made.label, TYPICAL_DENSITY)
            )
        )

    def _groups(self, readers: list[Reader]) -> tuple[tuple[DenseOp, ...], ...]:
        """What reads an encoding, for each number of rows, the fewest first."""
        if not readers:
            return ()
        counts = row_counts(dims_of(readers[0][1])[:-1], self.owner.accelerator)
        return tuple(tuple(dense_op(dense, rows) for dense, _ in readers) for rows in counts)

    def in_block(self, block: relax.BindingBlock, visit: Callable[..., Any]) -> relax.BindingBlock:
        # A block reads the orders that blocks around it made, but not those of another branch.
        outer, self.orders = self.orders, dict(self.orders)
        rebuilt = visit(block)
        self.orders = outer
        return rebuilt

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        dense, before = (dialect.SplitDenseScaled.of(c) for c in (call, original))
        if dense is None or before is None or dense.row_order is not None:
            return None
        encoding = before.encoding
        if encoding not in self.chosen:
            self.chosen[encoding] = self._choose(encoding)
        chosen = self.chosen[encoding]
        if chosen is None:
            return None
        if encoding not in self.orders:
            self.orders[encoding] = self._order(dense, *chosen)
        return dense.changed(row_order=self.orders[encoding])

    def _order(self, dense: dialect.Dense, block_rows: int, min_rows: int) -> relax.Var:
        """The list of rows, made at the first dense that needs it."""
        self.count()
        made = dialect.Encoder.of(self.value(dense.encoding))
        sorting = dialect.balance_rows(
            self.emit(dialect.plane(dense.encoding, "pbm"), "bitmap"),
            in_features=dense.in_features,
            block_rows=block_rows,
            lanes=self.owner.accelerator.lanes,
            min_rows=min_rows,
            label=made.label if made is not None else "",
        )
        return self.emit(sorting, "row_order")

    def _choose(self, encoding: relax.Var) -> tuple[int, int] | None:
        """Rows of a block, and from how many rows in all it pays; None: sort no rows."""
        made = dialect.Encoder.of(self.value(encoding))
        if made is None:
            return None
        readers = self.readers[encoding]
        reason = ""
        if any(isinstance(dense, dialect.SplitDenseEncoded) for dense, _ in readers):
            reason = "an encoded result is stored in the order in which its rows come"
        elif self.passed_on(encoding):
            reason = "the encoding is passed on as a whole"
        elif any(isinstance(dense, dialect.SplitDense) for dense, _ in readers):
            reason = "an int32 result is stored without parameters per row, so without their order"
        if not reason:
            try:
                chosen = self._best(readers, self.owner.densities.get(made.label, TYPICAL_DENSITY))
            except TargetError as error:
                reason = str(error)
            else:
                if chosen is None:
                    LOG.info("%s: sorting rows costs more cycles than it saves", made.label)
                return chosen
        self.skip(f"relax.sparqle.{made.NAME}", made.label, reason)
        return None

    def _best(self, readers: list[Reader], density: float) -> tuple[int, int] | None:
        groups = self._groups(readers)
        key = groups, rounded_density(density)
        if key not in self.best:
            self.best[key] = self._best_of(groups, density)
        return self.best[key]

    def _best_of(
        self, groups: tuple[tuple[DenseOp, ...], ...], density: float
    ) -> tuple[int, int] | None:
        """The same of the ops for each number of rows, the fewest first."""
        best, machine = None, self.owner.accelerator
        for group in groups:
            block, rows = choose_block_rows(group, machine, self.owner.goal, density), group[0].m
            if block:
                best = (block, best[1] if best else rows)
            elif best:
                # Programs for more rows would have to leave them in order.
                return None
        return best


@tvm.transform.module_pass(opt_level=0)
class BalanceRows(RewritePass):
    """Sort the rows of encodings by the steps of their MSB digits, where that pays.

    In the MSB pass, the rows of a group wait for the slowest of them. Sorted, rows of a group are
    alike. The dense ops that read the encoding get the order as an operand; what they compute does
    not depend on it, and on a host it is dropped. How many rows are sorted together, and whether
    at all, is chosen for the number of rows (`target.cost.block_rows`); if that is symbolic, for
    the row counts that programs are made for.

    Where it does not pay, nothing is left undone, and the report has no entry.

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
    densities : mapping of str to float, optional
        Share of stored digits to expect of encodings, by label; of others that is typical.
    """

    rewriter = _Balance

    def __init__(
        self,
        accelerator: Accelerator,
        goal: Balance = "array",
        *,
        densities: Mapping[str, float] | None = None,
        report: PassReport | None = None,
    ) -> None:
        super().__init__(report=report)
        self.accelerator = accelerator
        self.goal, self.densities = goal, dict(densities or {})

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        return mod if self.goal == "none" else super().transform_module(mod, _ctx)
