"""Prepare weights that come as parameters: once, when the module is compiled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from sparqle_tvm.dialect.weights import PACK_WEIGHTS, WEIGHT_SUMS, WEIGHTS, declared_weights
from sparqle_tvm.errors import CompileError
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._match import call_operands, op_name, static_shape
from sparqle_tvm.passes._rewrite import ReportingPass, count_uses, has_mark, relax_functions
from sparqle_tvm.passes.fold_constants import compiled_functions
from sparqle_tvm.threads import give_back_memory

_LARGE = 1 << 20


class WeightSource(Protocol):
    """Where the tensors are, by the names of the parameters that take them.

    Attributes
    ----------
    content : str
        Tells them from any others.
    """

    content: str

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read a tensor."""
        ...

    def forget(self) -> None:
        """Give back the memory of what was read."""
        ...


def prepares(value: Any, known: Any) -> bool:
    """Whether a value is made of known tensors (variables) and constants alone, by a kernel.

    At least one of them is a variable.
    """
    if static_shape(value) is None or len(getattr(value, "args", ())) != 2:
        return False
    name = op_name(value)
    packed = name == "relax.call_dps_packed" and isinstance(value.args[0], relax.ExternFunc)
    if packed:
        packed = str(value.args[0].global_symbol) in (PACK_WEIGHTS, WEIGHT_SUMS)
    if name != "relax.call_tir" and not packed:
        return False
    fields = call_operands(value)
    known_fields = [each for each in fields if isinstance(each, relax.Var) and each in known]
    others = (each for each in fields if not isinstance(each, relax.Var))
    plain = all(isinstance(each, Constant | tvm.tirx.IntImm) for each in others)
    variables = sum(isinstance(each, relax.Var) for each in fields)
    return bool(known_fields) and plain and len(known_fields) == variables


class _Preparation:
    """Tensors made of weights; equal ones are made once, whatever function takes them."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.made: dict[Hashable, Any] = {}
        self.callees: dict[Any, Any] = {}

    def key(self, expr: Any, known: dict[Any, Any]) -> Hashable:
        """What identifies an expression among all functions."""
        value = known.get(expr, expr) if isinstance(expr, relax.Var) else expr
        if isinstance(value, relax.Call):
            callee = value.args[0]
            name = callee if isinstance(callee, tvm.ir.GlobalVar) else str(callee.global_symbol)
            return (name, *(self.key(each, known) for each in call_operands(value)))
        if isinstance(value, relax.Var):
            return ("weight", str(value.name))
        return ("number", int(value)) if isinstance(value, tvm.tirx.IntImm) else value

    def tensor(self, expr: Any, known: dict[Any, Any], key: Hashable) -> Any:
        """The value of an expression that a function takes."""
        if key not in self.made:
            made = self.made[key] = self._value(expr, known)
            if math.prod(made.shape) >= _LARGE:
                give_back_memory()
        return self.made[key]

    def _value(self, expr: Any, known: dict[Any, Any]) -> Any:
        value = known.get(expr, expr) if isinstance(expr, relax.Var) else expr
        if isinstance(value, relax.Call):
            arguments = [self._value(each, known) for each in call_operands(value)]
            shape = [int(d) for d in value.ty.shape.values]
            out = tvm.runtime.empty(shape, str(value.ty.dtype))
            callee = value.args[0]
            if isinstance(callee, tvm.ir.GlobalVar):
                function = self.callees[callee]
            else:
                function = tvm.get_global_func(str(callee.global_symbol))
            function(*arguments, out)
            return out
        if isinstance(value, relax.Var):
            array = np.ascontiguousarray(self._source[str(value.name)])
            return tvm.runtime.tensor(array)
        return int(value) if isinstance(value, tvm.tirx.IntImm) else value.value


@tvm.transform.module_pass(opt_level=0)
class FoldWeights(ReportingPass):
    """Give functions prepared weights, instead of preparing those that they are given.

    Like `FoldConstants`, for weights that are parameters (`dialect.weights`): tensors are read and
    prepared one after the other, so that few are in memory besides the results, and these are no
    constants of the module but arguments of its calls. What nothing reads is not read either.

    Precondition: ops are legalized; the shape of weights is static.

    Before::

        def main(x, w):                                  # sparqle_weights: w
            p = R.call_tir(cls.panels, (w,))
            return R.call_tir(cls.dense, (x, p))

    After::

        def main(x, p):
            return R.call_tir(cls.dense, (x, p))

    Parameters
    ----------
    source : WeightSource, optional
        Has the tensors; by default there are none, and nothing is done.

    Attributes
    ----------
    weights : dict of str to list of tensors
        After the pass: what functions take behind their other arguments.
    """

    def __init__(self, source: WeightSource | None = None, **report: Any) -> None:
        super().__init__(**report)
        self.source = source
        self.weights: dict[str, list[Any]] = {}

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every function that takes weights, in a copy of ``mod``."""
        if self.source is None:
            return mod
        taking = [(gv, f) for gv, f in relax_functions(mod) if has_mark(f, WEIGHTS)]
        if not taking:
            return mod
        changed, ready = mod.clone(), _Preparation(self.source)
        split = {gv: _split(func) for gv, func in taking}
        callees = {
            call.args[0]: None
            for known, _, _ in split.values()
            for call in known.values()
            if isinstance(call, relax.Call) and isinstance(call.args[0], tvm.ir.GlobalVar)
        }
        ready.callees = compiled_functions(mod, list(callees))
        if len(ready.callees) < len(callees):
            raise CompileError("a kernel that prepares weights cannot be compiled here")
        for gv, func in taking:
            known, kept, wanted = split[gv]
            weights: dict[Hashable, Any] = {}
            params: dict[Hashable, relax.Var] = {}
            again = []
            for var in wanted:
                key = ready.key(var, known)
                weights[key] = ready.tensor(var, known, key)
                if isinstance(known[var], relax.Call):
                    param = params.setdefault(key, relax.Var(str(var.name), var.ty))
                    again.append(relax.VarBinding(var, param))
                else:
                    params[key] = var
            first, *rest = kept
            blocks = [type(first)([*again, *first.bindings]), *rest]
            body = relax.SeqExpr(blocks, func.body.body)
            others = [param for param in func.params if param not in known]
            made = relax.Function(
                [*others, *params.values()], body, func.ret_ty, func.is_pure, func.attrs
            )
            changed.update_func(gv, made.without_attr(WEIGHTS))
            self.weights[str(gv.name_hint)] = list(weights.values())
            self.report.rewrite(self.name)
        self.source.forget()
        return relax.transform.CanonicalizeBindings()(changed)


def _split(func: relax.Function) -> tuple[dict[Any, Any], list[Any], list[relax.Var]]:
    """Weights and what is made of them alone; blocks of the rest; what the rest reads of it."""
    known: dict[Any, Any] = {param: param for param in declared_weights(func)}
    blocks = []
    for block in func.body.blocks:
        kept = []
        for binding in block.bindings:
            if prepares(binding.value, known):
                known[binding.var] = binding.value
            else:
                kept.append(binding)
        blocks.append(type(block)(kept))
    body = relax.SeqExpr(blocks, func.body.body)
    uses: Counter[Any] = count_uses(
        relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)
    )
    return known, blocks, [var for var in known if uses[var]]
