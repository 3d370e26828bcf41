"""Encode each tensor once, for all that read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, mutator, visitor

from sparqle_tvm import dialect
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import Rewriter, apply_rewriter


def _key(call: relax.Call) -> tuple[Any, ...]:
    """What two encodings have to agree in to be one; the group size may differ from none."""
    attrs = dialect.attributes(call)
    return (call.args[0], str(call.op.name), attrs["k"], attrs["window"], attrs.get("qmax"))


@visitor
class _Collector(PyExprVisitor):
    """Which group sizes each tensor is encoded with."""

    def __init__(self) -> None:
        super().__init__()
        self.group_sizes: dict[Any, set[int]] = defaultdict(set)

    def visit_call_(self, op: relax.Call) -> None:
        if dialect.is_op(op, "encode", "quantize_encode"):
            size = dialect.attributes(op)["group_size"]
            self.group_sizes[_key(op)].add(size)


@mutator
class _Share(Rewriter):
    def __init__(self, mod: tvm.IRModule, report: PassReport) -> None:
        super().__init__(mod, report)
        self.made: dict[Any, relax.Var] = {}
        self.group_sizes: dict[Any, set[int]] = {}

    def visit_function_(self, func: relax.Function) -> relax.Expr:
        collector = _Collector()
        collector.visit_expr(func.body)
        self.group_sizes = collector.group_sizes
        return super().visit_function_(func)

    def visit_binding_block_(self, block: relax.BindingBlock) -> relax.BindingBlock:
        return self._alone(block, super().visit_binding_block_)

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.BindingBlock:
        return self._alone(block, super().visit_dataflow_block_)

    def _alone(self, block: relax.BindingBlock, visit: Callable[..., Any]) -> relax.BindingBlock:
        # What one branch made is not there for the other.
        outer, self.made = self.made, {}
        rebuilt = visit(block)
        self.made = outer
        return rebuilt

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if not dialect.is_op(call, "encode", "quantize_encode"):
            return None
        key, group_size = _key(call), dialect.attributes(call)["group_size"]
        sizes = self.group_sizes.get(_key(original), set()) - {0}
        if group_size == 0 and len(sizes) == 1:
            (group_size,) = sizes
        seen = self.made.get((key, group_size))
        if seen is not None:
            self.report.rewrite("ShareEncodings")
            return seen
        made = self.emit(dialect.with_attributes(call, group_size=group_size), "encoding")
        self.made[(key, group_size)] = made
        return made


@tvm.transform.module_pass(opt_level=0, name="ShareEncodings")
class ShareEncodings:
    """Let all readers of a tensor (q/k/v, gate/up) share one encoding of it.

    Encodings of the same tensor with the same digits, window and limits become one; one that
    needs group sums serves those that do not. Encodings that nobody reads are removed.

    Before::

        a = R.sparqle.quantize_encode(x, group_size=32, label="q", ...)
        b = R.sparqle.quantize_encode(x, group_size=32, label="k", ...)
        q, k = dense(a, ..), dense(b, ..)

    After::

        a = R.sparqle.quantize_encode(x, group_size=32, label="q", ...)
        q, k = dense(a, ..), dense(a, ..)

    Parameters
    ----------
    report : PassReport, optional
        Takes the number of encodings saved.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        self.report = report if report is not None else PassReport()

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        return apply_rewriter(mod, self.report, lambda m: _Share(m, self.report))
