"""Take what is made of constants alone out of functions that are called with these constants."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from sparqle_tvm.dialect.weights import declared_weights
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._rewrite import ReportingPass, count_uses, has_mark, relax_functions
from sparqle_tvm.passes.fold_weights import prepares
from sparqle_tvm.passes.outline_repeats import REPEAT, with_operands


@dataclass(frozen=True)
class _Hoisted:
    """A function without what callers do for it now.

    Attributes
    ----------
    variable : relax.GlobalVar
        Its name; its type is another one than before.
    function : relax.Function
    before : list of relax.Var
        The parameters that it had.
    kept : list of int
        The places of those that it still has.
    moved : list of relax.VarBinding
        What callers compute, from constants and the parameters before.
    wanted : list of relax.Var
        Results of `moved` that it takes after the parameters that are left.
    """

    variable: relax.GlobalVar
    function: relax.Function
    before: list[relax.Var]
    kept: list[int]
    moved: list[Any]
    wanted: list[Any]

    def call(self, binding: relax.VarBinding) -> list[relax.Binding]:
        """Bindings in place of one that calls the function."""
        given = list(binding.value.args)
        replaced: dict[Any, Any] = dict(zip(self.before, given, strict=True))
        bindings = []
        for each in self.moved:
            value = relax.BlockBuilder().normalize(with_operands(each.value, replaced))
            replaced[each.var] = var = type(binding.var)(str(each.var.name), value.ty)
            bindings.append(relax.VarBinding(var, value))
        arguments = [*(given[at] for at in self.kept), *(replaced[each] for each in self.wanted)]
        call = relax.BlockBuilder().normalize(relax.Call(self.variable, arguments))
        return [*bindings, relax.VarBinding(binding.var, call)]


def _constant_places(mod: tvm.IRModule, marked: set[Any]) -> dict[Any, set[int]]:
    """For each function, the arguments that are constants or weights in all of its calls."""
    found: dict[Any, list[set[int]]] = defaultdict(list)
    for _, func in relax_functions(mod):
        known = set(declared_weights(func))
        for binding in (each for block in func.body.blocks for each in block.bindings):
            value = binding.value
            if prepares(value, known):
                known.add(binding.var)
            if isinstance(value, relax.Call) and value.op in marked:
                found[value.op].append(
                    {
                        at
                        for at, arg in enumerate(value.args)
                        if isinstance(arg, Constant) or arg in known
                    }
                )
    return {variable: set.intersection(*places) for variable, places in found.items()}


def _hoist(variable: relax.GlobalVar, func: relax.Function, places: set[int]) -> _Hoisted | None:
    """Split a function, if there is anything that its constants alone decide."""
    known = {func.params[at] for at in places}
    moved, kept_bindings = [], []
    (block,) = func.body.blocks
    for binding in block.bindings:
        if prepares(binding.value, known):
            known.add(binding.var)
            moved.append(binding)
        else:
            kept_bindings.append(binding)
    if not moved:
        return None
    body = relax.SeqExpr([type(block)(kept_bindings)], func.body.body)
    rest = relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)
    uses = count_uses(rest)
    wanted = [each.var for each in moved if uses[each.var]]
    replaced = {var: relax.Var(str(var.name), var.ty) for var in wanted}
    # Under their own names they are bound again; CanonicalizeBindings makes one of the two.
    again = [relax.VarBinding(var, param) for var, param in replaced.items()]
    body = relax.SeqExpr([type(block)([*again, *kept_bindings])], func.body.body)
    kept = [at for at, param in enumerate(func.params) if at not in places or uses[param]]
    params = [*(func.params[at] for at in kept), *replaced.values()]
    made = relax.Function(params, body, func.ret_ty, func.is_pure, func.attrs)
    name = str(variable.name_hint)
    builder = relax.BlockBuilder()
    return _Hoisted(builder.add_func(made, name), made, list(func.params), kept, moved, wanted)


@tvm.transform.module_pass(opt_level=0)
class HoistConstants(ReportingPass):
    """Move what functions of repeats compute from constants into their callers.

    The callers fold it (`FoldConstants`, `FoldWeights`), once per layer: arranged weights reach the
    function as parameters, and nothing is arranged while the model runs.

    Precondition: ops are legalized; functions are those of `OutlineRepeats`.

    Before::

        def layer(x, w):
            p = R.call_tir(cls.panels, (w,))
            return R.call_tir(cls.dense, (x, p))
        def main(x):
            return cls.layer(x, R.const(...))

    After::

        def layer(x, p):
            return R.call_tir(cls.dense, (x, p))
        def main(x):
            p = R.call_tir(cls.panels, (R.const(...),))
            return cls.layer(x, p)
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to a copy of ``mod``."""
        marked = {gv: func for gv, func in relax_functions(mod) if has_mark(func, REPEAT)}
        found = {
            gv: hoisted
            for gv, places in _constant_places(mod, set(marked)).items()
            if (hoisted := _hoist(gv, marked[gv], places)) is not None
        }
        if not found:
            return mod
        functions = dict(mod.functions_items())
        for gv, func in relax_functions(mod):
            functions[gv] = _calling(func, found)
        for gv, hoisted in found.items():
            del functions[gv]
            functions[hoisted.variable] = hoisted.function
            self.report.rewrite(self.name)
        made = tvm.IRModule(functions, mod.attrs, mod.global_infos)
        return relax.transform.CanonicalizeBindings()(made)


def _calling(func: relax.Function, found: dict[Any, _Hoisted]) -> relax.Function:
    """The function with calls as they are now."""
    blocks, changed = [], False
    for block in func.body.blocks:
        bindings = []
        for binding in block.bindings:
            value = binding.value
            hoisted = found.get(value.op) if isinstance(value, relax.Call) else None
            bindings += [binding] if hoisted is None else hoisted.call(binding)
            changed = changed or hoisted is not None
        blocks.append(type(block)(bindings))
    if not changed:
        return func
    body = relax.BlockBuilder().normalize(relax.SeqExpr(blocks, func.body.body))
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)
