"""Keep groups that only take tuples apart from what fuses kernels."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from sparqle_tvm.passes._rewrite import ReportingPass, has_mark, relax_functions

PRIMITIVE = "Primitive"


@tvm.transform.module_pass(opt_level=0)
class UnfuseTuples(ReportingPass):
    """Make ordinary functions of the groups of ``FuseOps`` that hold no kernel.

    An item of a tuple that is itself an item of a tuple, as the results of a function of
    `OutlineRepeats` may be, is a group of its own to TVM 0.27's ``FuseOps``; its ``FuseTIR`` fails
    on that.

    Precondition: ``FuseOps`` ran.

    Before::

        @R.function(private=True)
        def fused(t):
            R.func_attr({"Primitive": True})
            return t[0][1]

    After::

        @R.function(private=True)
        def fused(t):
            return t[0][1]
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to a copy of ``mod``."""
        changed = None
        for gv, func in relax_functions(mod):
            if has_mark(func, PRIMITIVE) and not _has_kernel(func):
                changed = changed or mod.clone()
                changed.update_func(gv, func.without_attr(PRIMITIVE))
                self.report.rewrite(self.name)
        return changed or mod


def _has_kernel(func: relax.Function) -> bool:
    """Whether a group calls anything."""
    bindings = (binding for block in func.body.blocks for binding in block.bindings)
    return any(isinstance(binding.value, relax.Call) for binding in bindings)
