"""Encode each tensor once, for all that read it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import Rewriter, apply_rewriter, count_field_readers

ENCODERS = ("encode", "quantize_encode")


def _key(call: relax.Call) -> tuple[Any, ...]:
    """What two encodings have to agree in to be one; the group size may differ from none."""
    attrs = dialect.attributes(call)
    return (*call.args, str(call.op.name), attrs["k"], attrs["window"], attrs.get("qmax"))


@mutator
class _Share(Rewriter):
    def __init__(self, mod: tvm.IRModule, report: PassReport) -> None:
        super().__init__(mod, report)
        self.made: dict[tuple[Any, ...], dict[int, relax.Var]] = {}
        self.group_sizes: dict[tuple[Any, ...], set[int]] = {}
        self.field_readers: Counter[Any] = Counter()

    def visit_function_(self, func: relax.Function) -> relax.Expr:
        self.field_readers = count_field_readers(func)
        return super().visit_function_(func)

    def visit_binding_block_(self, block: relax.BindingBlock) -> relax.BindingBlock:
        return self._scoped(block, super().visit_binding_block_)

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.BindingBlock:
        return self._scoped(block, super().visit_dataflow_block_)

    def _scoped(self, block: relax.BindingBlock, visit: Callable[..., Any]) -> relax.BindingBlock:
        # A block reads what the blocks around it made, but not what the other branch made.
        outer = self.made, self.group_sizes
        self.made = {key: dict(made) for key, made in self.made.items()}
        self.group_sizes = defaultdict(set)
        for binding in block.bindings:
            if dialect.is_op(binding.value, *ENCODERS):
                size = dialect.attributes(binding.value)["group_size"]
                self.group_sizes[_key(binding.value)].add(size)
        rebuilt = visit(block)
        self.made, self.group_sizes = outer
        return rebuilt

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        if not dialect.is_op(call, *ENCODERS):
            return None
        made = self.made.setdefault(_key(call), {})
        group_size = dialect.attributes(call)["group_size"]
        if group_size == 0 and self.uses[self.bound] == self.field_readers[self.bound]:
            # Nobody minds group sums behind the fields that are read.
            wanted = self.group_sizes[_key(original)] | set(made)
            group_size = min(wanted - {0}, default=0)
        if group_size in made:
            self.report.rewrite("ShareEncodings")
        else:
            widened = dialect.with_attributes(call, group_size=group_size)
            made[group_size] = self.emit(widened, "encoding")
        return made[group_size]


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
