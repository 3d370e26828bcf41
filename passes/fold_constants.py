"""Evaluate at compile time what is made of constants only, and share the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._match import call_operands, op_name, static_shape
from sparqle_tvm.passes._report import LOG
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter, apply_rewriter, relax_functions

# The result of a PrimFunc (its GlobalVar) for constants, of a type; None if there is none.
Evaluate = Callable[[Any, list[Any], Any], Any | None]


@mutator
class _Fold(Rewriter):
    roots = ("relax.call_tir",)

    """Replaces ``call_tir`` of constants by what ``evaluate`` makes of it.

    A call that ``evaluate`` has no result for stays, and so does what depends on it.
    """

    def __init__(self, mod: tvm.IRModule, owner: Any, evaluate: Evaluate) -> None:
        super().__init__(mod, owner)
        self.evaluate = evaluate
        self.made: dict[Any, relax.Expr] = {}

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        # Several results, symbolic ones, and scalars besides the tensors stay as they are.
        if op_name(call) != "relax.call_tir" or static_shape(call) is None or len(call.args) > 2:
            return None
        callee, fields = call.args[0], [self.value(field) for field in call_operands(call)]
        if not fields or not all(isinstance(field, Constant) for field in fields):
            return None
        key = (callee, *fields)
        if key not in self.made:
            found = self.evaluate(callee, fields, call.ty)
            if found is None:
                return None
            self.made[key] = Constant(found, call.ty)
        # Readers take the constant itself, so that nothing reads this binding any more.
        self.replacements[self.bound] = self.made[key]
        self.count()
        return self.made[key]


def _callees(mod: tvm.IRModule) -> list[Any]:
    """The PrimFuncs that folding calls: found by folding, with results that have no values."""
    found: dict[Any, None] = {}

    def note(callee: Any, _: list[Any], ty: Any) -> Any:
        found[callee] = None
        return _empty(ty)

    plan = _Fold(mod, FoldConstants(), note)
    for gv, func in relax_functions(mod):
        plan.begin(str(gv.name_hint), func)
        plan.visit_expr(func)
    return list(found)


def _empty(ty: Any) -> Any:
    return tvm.runtime.empty([int(d) for d in ty.shape.values], str(ty.dtype))


def compiled_functions(mod: tvm.IRModule, callees: list[Any]) -> dict[Any, Any]:
    """The functions as callables; without those that cannot be compiled for this processor."""
    named = {
        str(gv.name_hint): mod[gv].with_attr("global_symbol", str(gv.name_hint)) for gv in callees
    }
    # These run once: optimising their strided copies takes LLVM seconds and saves milliseconds.
    target = tvm.target.Target({"kind": "llvm", "opt-level": 1})
    try:
        library = tvm.tirx.build(tvm.IRModule(named), target=target)
    except Exception as error:  # whatever a pass or LLVM makes of a function of somebody else
        if len(callees) > 1:
            return {gv: f for each in callees for gv, f in compiled_functions(mod, [each]).items()}
        LOG.info("FoldConstants left calls of %s alone: %s", callees[0].name_hint, error)
        return {}
    return {gv: library[str(gv.name_hint)] for gv in callees}


@tvm.transform.module_pass(opt_level=0)
class FoldConstants(RewritePass):
    """Replace ``call_tir`` of constants by its result, once for the whole module.

    Relax's own FoldConstant compiles every function anew for each caller and keeps a result per
    call, so that ``prefill`` and ``decode`` would each hold their own copy of the weights. Here
    all the PrimFuncs concerned are compiled together and equal calls share one constant.

    Precondition: ops are legalized; the shape of the result is static.

    Before::

        w = R.call_tir(cls.arrange_weight, (R.const(...),), out_ty=R.Tensor((96, 576, 16)))

    After::

        w = metadata["ir.GenericConst"][0]
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        callees = [gv for gv in _callees(mod) if isinstance(mod[gv], tvm.tirx.PrimFunc)]
        if not callees:
            return mod
        functions = compiled_functions(mod, callees)

        def evaluate(callee: Any, fields: list[Any], ty: Any) -> Any | None:
            if callee not in functions:
                return None
            out = _empty(ty)
            try:
                functions[callee](*[field.value for field in fields], out)
            except Exception as error:  # it says so when it is called: there may be no such call
                LOG.info("FoldConstants left a call of %s alone: %s", callee.name_hint, error)
                return None
            return out

        return apply_rewriter(mod, _Fold(mod, self, evaluate))
