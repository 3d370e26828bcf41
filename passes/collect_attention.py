"""Return what the attention of a function reads, beside the function's result."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import (
    ReportingPass,
    also_returning,
    called_functions,
    has_mark,
    relax_functions,
)

# Attribute of a function that returns the operands of its attention already.
_OBSERVED = "sparqle_attention_observed"


@tvm.transform.module_pass(opt_level=0)
class CollectAttention(ReportingPass):
    """Make functions return queries, keys and values of each ``R.sparqle.attention``.

    Precondition: it stands in the outermost blocks of functions that no other function calls.

    Before::

        y = R.sparqle.attention(q, k, v, causal=1, label="attn", ...)
        return z

    After::

        observed, observed_1, observed_2 = q, k, v
        y = R.sparqle.attention(q, k, v, causal=1, label="attn", ...)
        return (z, (observed, observed_1, observed_2))

    Attributes
    ----------
    collected : dict of str to list of dialect.Attention
        After the pass: the ops of each function, whose operands it returns in order.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        super().__init__(report=report)
        self.collected: dict[str, list[dialect.Attention]] = {}

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        changed, called = mod.clone(), called_functions(mod)
        for gv, func in relax_functions(mod):
            if gv.name_hint in called or has_mark(func, _OBSERVED):
                continue
            found: list[dialect.Attention] = []
            observed = _observed(func, found)
            if found:
                self.collected[str(gv.name_hint)] = found
                self.report.rewrite(self.name, len(found))
                changed.update_func(gv, observed)
        return changed if self.collected else mod


def _observed(func: relax.Function, found: list[dialect.Attention]) -> relax.Function:
    """``func`` returning also the operands of the ops, which are added to `found`."""
    order: list[relax.Var] = []
    blocks = []
    for block in func.body.blocks:
        bindings = []
        for binding in block.bindings:
            op = dialect.Attention.of(getattr(binding, "value", None))
            if op is not None:
                found.append(op)
                for operand in (op.q, op.k, op.v):
                    order.append(relax.Var("observed", operand.ty))
                    bindings.append(relax.VarBinding(order[-1], operand))
            bindings.append(binding)
        blocks.append(type(block)(bindings))
    return also_returning(func, blocks, order, _OBSERVED)
