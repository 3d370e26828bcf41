"""Evaluate at compile time what is made of constants only, and share the results."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._match import int_shape, op_name, static_shape
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter, apply_rewriter, relax_functions


def _constant_args(call: Any) -> tuple[Any, list[Any]] | None:
    """The PrimFunc's GlobalVar and the arguments of a ``call_tir`` of constants alone."""
    if op_name(call) != "relax.call_tir" or static_shape(call) is None:
        return None
    callee, arguments = call.args[0], call.args[1]
    fields = list(arguments.fields) if isinstance(arguments, relax.Tuple) else [arguments]
    if not fields or len(call.args) > 2:
        return None
    return callee, fields


def _callees(mod: tvm.IRModule) -> set[Any]:
    """PrimFuncs that may be evaluated: some call has no variable among its arguments."""
    found: set[Any] = set()
    constants: set[Any] = set()
    blocks = [block for _, func in relax_functions(mod) for block in func.body.blocks]
    for binding in (binding for block in blocks for binding in block.bindings):
        candidate = _constant_args(binding.value)
        if candidate is None:
            continue
        callee, fields = candidate
        if all(isinstance(f, Constant) or f in constants for f in fields):
            found.add(callee)
            constants.add(binding.var)
    return found


@mutator
class _Fold(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: FoldConstants, functions: dict[Any, Any]) -> None:
        super().__init__(mod, owner)
        self.functions = functions
        self.made: dict[Any, relax.Expr] = {}

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        candidate = _constant_args(call)
        if candidate is None:
            return None
        callee, fields = candidate
        fields = [self.value(field) for field in fields]
        if not all(isinstance(field, Constant) for field in fields):
            return None
        key = (callee, *fields)
        if key not in self.made:
            shape, dtype = int_shape(call), str(call.ty.dtype)
            out = tvm.runtime.empty(shape, dtype)
            self.functions[callee](*[field.value for field in fields], out)
            self.made[key] = Constant(out, call.ty)
        # Readers take the constant itself, so that nothing reads this binding any more.
        self.replacements[self.bound] = self.made[key]
        self.count()
        return self.made[key]


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
        callees = _callees(mod)
        if not callees:
            return mod
        named = {
            str(gv.name_hint): mod[gv].with_attr("global_symbol", str(gv.name_hint))
            for gv in callees
        }
        # These run once: optimising their strided copies takes LLVM seconds and saves milliseconds.
        target = tvm.target.Target({"kind": "llvm", "opt-level": 1})
        library = tvm.tirx.build(tvm.IRModule(named), target=target)
        functions = {gv: library[str(gv.name_hint)] for gv in callees}
        return apply_rewriter(mod, _Fold(mod, self, functions))
