"""Quantize keys and values when they are written into a cache, not each time they are read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import tvm
from tvm import relax
from tvm.relax import op as R
from tvm.relax.expr_functor import mutator

from sparqle_tvm import dialect
from sparqle_tvm.numerics.attention import SCALE_BYTES
from sparqle_tvm.numerics.kv_cache import HeadStorage
from sparqle_tvm.passes._match import dims_of, dtype_of
from sparqle_tvm.passes._report import PassReport, Skipped
from sparqle_tvm.passes._rewrite import (
    ReportingPass,
    Rewriter,
    apply_rewriter,
    count_uses,
    relax_functions,
)

_CREATE, _APPEND, _VIEW = (
    f"vm.builtin.attention_kv_cache_{name}" for name in ("create", "append", "view")
)


def _builtin(expr: Any) -> str:
    """Name of the function of the runtime that is called, ``""`` if it is none."""
    if not isinstance(expr, relax.Call):
        return ""
    called = expr.op if isinstance(expr.op, relax.ExternFunc) else (*expr.args, None)[0]
    return str(called.global_symbol) if isinstance(called, relax.ExternFunc) else ""


class _Found:
    """The caches of a module: how each append stores, and what stands against it.

    Attributes
    ----------
    appended : dict of relax.Var to HeadStorage
        By the variable that an append is bound to.
    obstacle : str
        Why the caches cannot hold integers; empty if they can.
    calls : int
        Calls of the runtime's cache that read or write float32.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        self.appended: dict[Any, HeadStorage] = {}
        self.obstacle, self.calls, self.created = "", 0, 0
        for _, func in relax_functions(mod):
            self._read(func)
        if self.calls and not self.created:
            self.obstacle = self.obstacle or "no function of the module creates the caches"

    def _read(self, func: relax.Function) -> None:
        uses = count_uses(func)
        views: dict[Any, Any] = {}
        explained: Counter[Any] = Counter()
        appends = []
        for block in func.body.blocks:
            for binding in block.bindings:
                value, kind = binding.value, _builtin(binding.value)
                if kind == _CREATE:
                    self.created += dtype_of(value.args[-3]) == "float32"
                elif kind == _APPEND and dtype_of(value.args[2]) == "float32":
                    appends.append(binding.var)
                elif kind == _VIEW and str(value.ty.dtype) == "float32":
                    views[binding.var] = value.args[1]
                elif isinstance(binding, relax.MatchCast):
                    explained[value] += 1
                    if value in views:
                        explained[binding.var] = uses[binding.var]
                        if uses[binding.var]:
                            self.obstacle = "the content of a cache is read under another type"
                self._attention(value, views, explained)
        self.calls += len(views) + len(appends)
        if any(uses[var] != explained[var] for var in views):
            self.obstacle = "what a cache holds is read by other ops than attention in integers"
        if any(var not in self.appended for var in appends):
            self.obstacle = self.obstacle or "attention reads a cache that is not written before"

    def _attention(self, value: Any, views: dict[Any, Any], explained: Counter[Any]) -> None:
        """Note the reads of an attention."""
        op = dialect.Attention.of(value)
        if op is None:
            return
        for operand, storage in (
            (op.k, HeadStorage(op.key_levels, op.key_planes)),
            (op.v, HeadStorage(op.value_levels, op.value_planes)),
        ):
            if operand not in views:
                continue
            explained[operand] += 1
            known = self.appended.setdefault(views[operand], storage)
            if known != storage:
                self.obstacle = "attentions that read one cache want it stored in different ways"


@mutator
class _Store(Rewriter):
    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        kind = _builtin(call)
        if kind == _APPEND and dtype_of(call.args[2]) == "float32":
            storage = self.owner.found.appended[self.bound]
            name, cache, x = call.args
            quantized = dialect.quantize_heads(x, levels=storage.levels, planes=storage.planes)
            stored = self.emit(self.builder_.normalize(quantized), "stored")
            self.count()
            return relax.Call(call.op, [name, cache, stored], call.attrs, call.ty_args)
        if kind == _VIEW and str(original.ty.dtype) == "float32":
            name, cache, *shape = call.args
            shape = [_widened(each.values) for each in shape]
            self.count()
            return relax.Call(call.op, [name, cache, *shape], call.attrs, [_stored(original.ty)])
        if kind == _CREATE and dtype_of(original.args[-3]) == "float32":
            *before, initial, shape, filled = call.args
            zeros = self.emit(R.zeros(_widened(dims_of(initial)), "int8"), "zeros")
            self.count()
            arguments = [*before, zeros, _widened(shape.values), filled]
            return relax.Call(call.op, arguments, call.attrs, call.ty_args)
        return None

    def visit_match_cast_(self, binding: relax.MatchCast) -> None:
        """Keep the shape that is read off a cache, with the width that it has now."""
        value = self.visit_expr(binding.value)
        if str(value.ty.dtype) != "int8" or dtype_of(binding.value) != "float32":
            super().visit_match_cast_(binding)
            return
        self.builder_.match_cast(value, _stored(binding.ty))


def _widened(dims: Any) -> relax.ShapeExpr:
    """A shape (.., D) with room for the scale."""
    *lead, channels = dims
    return relax.ShapeExpr([*lead, channels + SCALE_BYTES])


def _stored(ty: relax.TensorType) -> relax.TensorType:
    """The type of quantized heads, of that of heads in float32."""
    if ty.shape is None:
        return relax.TensorType(dtype="int8", ndim=ty.ndim)
    return relax.TensorType(_widened(ty.shape.values), "int8")


@tvm.transform.module_pass(opt_level=0)
class QuantizeCache(ReportingPass):
    """Let the caches of ``relax.frontend.nn`` hold what ``R.sparqle.attention`` reads of them.

    A token is quantized once, when it is appended: exact, since each has scales of its own. All
    caches of a module change, or none.

    Precondition: float32 caches that attention in integers alone reads, created in the module.

    Before::

        c1 = R.call_inplace_packed("vm.builtin.attention_kv_cache_append", c, k)
        keys = R.call_pure_packed("vm.builtin.attention_kv_cache_view", c1, R.shape([n, 2, 64]))
        y = R.sparqle.attention(q, keys, ...)

    After::

        stored = R.sparqle.quantize_heads(k, levels=127)
        c1 = R.call_inplace_packed("vm.builtin.attention_kv_cache_append", c, stored)
        keys = R.call_pure_packed("vm.builtin.attention_kv_cache_view", c1, R.shape([n, 2, 68]))
        y = R.sparqle.attention(q, keys, ...)
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        super().__init__(report=report)
        self.found: Any = None

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        self.found = _Found(mod)
        if not self.found.calls:
            return mod
        if self.found.obstacle:
            self.report.skip(Skipped(self.name, "", "kv_cache", "", self.found.obstacle))
            return mod
        return apply_rewriter(mod, _Store(mod, self))
