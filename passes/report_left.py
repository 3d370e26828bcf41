"""Say of every quantized matmul that is left why: nothing stays as it is in silence."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, mutator, visitor

from sparqle_tvm import dialect
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._match import call_operands, dims_of, dtype_of, op_name
from sparqle_tvm.passes._report import LOG, Split
from sparqle_tvm.passes._rewrite import RewritePass, Rewriter, relax_functions
from sparqle_tvm.passes._segments import in_program_order
from sparqle_tvm.passes._value_range import LAYOUT_OPS

# What counts as quantized, for operands of a product.
_NARROW = frozenset({"int4", "uint4", "int8", "uint8", "int16", "uint16"})
_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
# Ops that turn integers into what is multiplied, without making other values of other tensors.
_ELEMENTWISE = LAYOUT_OPS | {
    f"relax.{name}" for name in ("astype", "dequantize", "multiply", "divide", "add", "subtract")
}
# How AnnotateTIROpPattern calls functions that sum products.
_PRODUCT = 4
# In the place of a dtype: made of a product, to which narrow integers were added at most.
_MADE_OF_PRODUCT = "product"


@mutator
class _Look(Rewriter):
    def __init__(self, mod: tvm.IRModule, owner: Any) -> None:
        super().__init__(mod, owner)
        self.module = mod
        self.products = self.split = self.legalized = 0
        self.times = 1
        self.sources: dict[Any, str] = {}
        self.known = {(entry.function, entry.label) for entry in owner.report.skipped}

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        kind = dialect.op_name(call) or op_name(call)
        if (dense := dialect.Dense.of(call)) is not None:
            self.products += self.times
            self.split += self.times
            for each in self.stands_for:
                noted = Split(each.caller, each.name(dense.label), _form(dense), dense.window)
                self.owner.report.note_split(noted)
        elif kind == "relax.matmul":
            self._report("matmul", "its form is not one that is split", call.args)
        elif kind == "relax.call_tir" and self._is_product(call.args[0]):
            arguments = call.args[1]
            fields = arguments.fields if isinstance(arguments, relax.Tuple) else [arguments]
            if len(fields) > 1:
                reason = "ops are legalized already: split them before that"
                before = self.products
                self._report("call_tir", reason, fields)
                self.legalized += self.products - before
        return None

    def finish(self) -> None:
        """One entry, and a warning, if nothing of the whole module is split."""
        if self.split:
            return
        count = f"0 of {self.products} matmuls rewritten: "
        if not self.products:
            reason = "no matmul multiplies integers of 16 bits or less: is the model quantized?"
        elif self.legalized == self.products:
            reason = f"{count}they were legalized to call_tir before SplitPrecision"
        elif self.legalized:
            reason = f"{count}{self.legalized} were legalized to call_tir before SplitPrecision"
        else:
            reason = f"{count}none has a form that is split, each has an entry of its own"
        self.skip("module", "", reason)
        LOG.warning("%s", reason)

    @cached_property
    def _annotated(self) -> tvm.IRModule:
        return relax.transform.AnnotateTIROpPattern()(self.module)

    def _is_product(self, callee: Any) -> bool:
        """Whether a function of ``call_tir`` sums products."""
        func = self._annotated[callee]
        attributes = func.attrs if isinstance(func, tvm.tirx.PrimFunc) else None
        return attributes is not None and int(attributes.get("op_pattern", 0)) == _PRODUCT

    def _report(self, op: str, reason: str, operands: Any) -> None:
        activation, weight = operands[:2]
        sources = [self._source(activation), self._source(weight)]
        if not sources[1]:
            if op == "matmul" and self._multiplies_floats(activation, weight):
                self._name(op, f"multiplies {dtype_of(activation)} values: not quantized")
            return
        if not sources[0]:
            # A matrix with weights of few bits alone; a cache of few bits has more dimensions.
            if len(dims_of(weight)) != 2 or dtype_of(activation) not in _FLOATS:
                return
            reason = f"its activations are {dtype_of(activation)}, only the weights are quantized"
        self.products += self.times
        self._name(op, f"{reason} ({' x '.join(filter(None, sources))})")

    def _name(self, op: str, reason: str) -> None:
        named = {(each.caller, each.name(self.label)) for each in self.stands_for}
        if not named <= self.known:
            self.skip(op, self.label, reason)

    def _multiplies_floats(self, activation: Any, weight: Any) -> bool:
        """Whether it is a dense layer in floats: attention has no matrix of weights."""
        # What corrects the integers of other products is float64.
        if len(dims_of(weight)) != 2 or dtype_of(activation) not in _FLOATS - {"float64"}:
            return False
        source = self.value(weight)
        while op_name(source) in LAYOUT_OPS | {"relax.astype"}:
            source = self.value(source.args[0])
        return isinstance(source, Constant) or source in self.parameters

    def _source(self, expr: Any) -> str:
        """Dtype of the narrow integers that a tensor is made of by moves, casts and scales."""
        found = self._traced(expr)
        return "" if found == _MADE_OF_PRODUCT else found

    def _traced(self, expr: Any) -> str:
        if expr not in self.sources:
            self.sources[expr] = self._found(self.value(expr))
        return self.sources[expr]

    def _found(self, value: Any) -> str:
        if dtype_of(value) in _NARROW:
            return dtype_of(value)
        if not isinstance(value, relax.Call):
            return ""
        arguments = list(value.args[:2])
        if op_name(value) == "relax.call_tir":
            arguments = call_operands(value)
            if self._is_product(value.args[0]):
                return _MADE_OF_PRODUCT
        elif op_name(value) == "relax.matmul" or dialect.Dense.of(value) is not None:
            return _MADE_OF_PRODUCT
        elif op_name(value) not in _ELEMENTWISE:
            return ""
        found = [self._traced(each) for each in arguments if dtype_of(self.value(each))]
        if _MADE_OF_PRODUCT in found:
            return _MADE_OF_PRODUCT
        return next((dtype for dtype in found if dtype), "")


@tvm.transform.module_pass(opt_level=0)
class ReportLeft(RewritePass):
    """Report every dense op that is split, and every product of narrow integers that is not.

    The module stays as it is. A ``matmul``, or a ``call_tir`` that sums products, whose second
    operand is made of integers of 4 to 16 bits has an entry in the report, whether a pass looked at
    it or not; so has a ``matmul`` of floats with a matrix of weights (constant, or a parameter).
    If nothing of the module is split, one entry, and a warning in the log, says why: there is no
    such product, all were legalized too early, or each has its reason. Entries of other passes are
    not repeated.

    Precondition: the passes that split have run.
    """

    rewriter = _Look

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return ``mod`` itself."""
        look, calls = _Look(mod, self), _CallCounter()
        for _, func in relax_functions(mod):
            calls.visit_expr(func)
        with in_program_order(self.report, mod):
            for gv, func in relax_functions(mod):
                # Equal fused functions are one.
                look.times = max(1, calls.found[gv])
                look.begin(str(gv.name_hint), func)
                look.visit_expr(func)
            look.end()
        return mod


@visitor
class _CallCounter(PyExprVisitor):
    """How often each function of a module is called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Any] = Counter()

    def visit_call_(self, op: relax.Call) -> None:
        self.found[op.op] += isinstance(op.op, tvm.ir.GlobalVar)


def _form(dense: dialect.Dense) -> str:
    """What is multiplied: ``uint8 (zero point 3) x int4, groups of 32``."""
    sign = "" if dense.act_signed else "u"
    zero = " (zero point of run time)" if dense.zero_points is not None else ""
    if dense.zero_point:
        zero = f" (zero point {dense.zero_point})"
    groups = f", groups of {dense.group_size}" if dense.group_size else ""
    return f"{sign}int{2 * dense.k}{zero} x int{dense.weight_bits}{groups}"
