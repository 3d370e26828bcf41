"""Shared ground of the rewriting passes: counting uses and rebuilding functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, PyExprVisitor, visitor

from sparqle_tvm import dialect
from sparqle_tvm.dialect.weights import Bounds, declared_weights
from sparqle_tvm.passes._constants import ConstantEvaluator
from sparqle_tvm.passes._encodings import Encodings
from sparqle_tvm.passes._match import op_name
from sparqle_tvm.passes._report import PassReport, Skipped
from sparqle_tvm.passes._segments import Outside, Segment, in_program_order, segments_of
from sparqle_tvm.passes._value_range import LAYOUT_OPS


@visitor
class _UseCounter(PyExprVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[Any] = Counter()

    def visit_var_(self, op: Any) -> None:
        self.uses[op] += 1

    def visit_dataflow_var_(self, op: Any) -> None:
        self.uses[op] += 1


def count_uses(func: relax.Function) -> Counter[Any]:
    """How often each variable is read in ``func``."""
    counter = _UseCounter()
    counter.visit_expr(func.body)
    return counter.uses


def _reads(expr: relax.Expr) -> list[Any]:
    """Variables that what a binding holds reads, as often as it does.

    For single bindings: a visitor is made in more time than it takes to look at one.
    """
    kind = type(expr)
    if kind is relax.Var or kind is relax.DataflowVar:
        return [expr]
    if kind is relax.TupleGetItem:
        return _reads(expr.tuple_value)
    if kind is relax.Tuple:
        return [var for each in expr.fields for var in _reads(each)]
    if kind is relax.Call:
        callee = [] if isinstance(expr.op, tvm.ir.Op) else _reads(expr.op)
        return [*callee, *(var for each in expr.args for var in _reads(each))]
    if isinstance(expr, tvm.ir.Constant | tvm.ir.GlobalVar | relax.ExternFunc):
        return []
    counter = _UseCounter()
    counter.visit_expr(expr)
    return list(counter.uses.elements())


def count_field_readers(func: relax.Function, first_field: int = 0) -> Counter[Any]:
    """How often each variable is read as an encoding: by a dense, or for a field from there on."""
    bound = Encodings(func)
    items = [value for value in bound.values.values() if isinstance(value, relax.TupleGetItem)]
    drained = dialect.SplitDenseEncoded
    return Counter(
        [item.tuple_value for item in items if item.index >= first_field]
        + [op.encoding for op in bound.dense.values() if not isinstance(op, drained)]
    )


_NESTED = frozenset({relax.Call, relax.TupleGetItem, relax.Function, relax.If})
"""Expressions that hold others, besides tuples; types as they are, instance checks take long."""


class Rewriter(PyExprMutator):
    """Visits every call after its arguments; ``rewrite`` may replace it.

    A pass derives from it, decorates the derived class with ``mutator``, and
    matches upwards from the call through :meth:`value`. What a match makes unused is removed by
    :func:`apply_rewriter`.

    Parameters
    ----------
    mod : tvm.IRModule
        The module that is rewritten; it is not changed.
    owner : RewritePass
        The pass, with its parameters and its report.

    Attributes
    ----------
    segments : list of Segment
        What the function stands for, if it is one of equal layers.
    weight_bounds : dict of relax.Var to (float, float)
        The parameters of the function that are weights, and their bounds.
    roots : tuple of str
        What the names of ops begin with that `rewrite` may replace; all others are passed over as
        long as nothing that they read was replaced, which takes a tenth of the time. ``("",)``,
        the default, is every op.
    """

    roots: ClassVar[tuple[str, ...]] = ("",)

    def __init__(self, mod: tvm.IRModule, owner: Any) -> None:
        super().__init__(mod)
        self._mod, self.owner = mod, owner
        self.label = self.function = ""
        self.bound: Any = None
        self.replacements: dict[Any, Any] = {}
        self._moved: set[Any] = set()
        self.parameters: frozenset[Any] = frozenset()
        self.weight_bounds: dict[relax.Var, Bounds] = {}
        self.segments: list[Segment] = []
        self.constants = ConstantEvaluator(self.value)
        self._function: relax.Function | None = None
        self._outside: Outside | None = None
        # Counted when somebody asks: on a model's functions that takes long.
        self._uses: Counter[Any] | None = None
        self._field_readers: dict[int, Counter[Any]] = {}

    def begin(self, name: str, func: relax.Function) -> None:
        """Look at the next function of the module before it is visited."""
        self.function = name
        self._function, self._uses, self._field_readers = func, None, {}
        self.weight_bounds, self.segments = declared_weights(func), segments_of(func)
        # What a layer is called with is computed, but for its weights.
        self.parameters = frozenset(self.weight_bounds if self.segments else func.params)
        self.replacements, self._moved = {}, set()
        self._outside = None

    @property
    def outside(self) -> Outside:
        """What is known of the function's parameters if it is one of equal layers."""
        if self._outside is None:
            self._outside = Outside(self._mod, self._function)
        return self._outside

    @property
    def uses(self) -> Counter[Any]:
        """How often each variable is read in the function, as it was before."""
        if self._uses is None:
            self._uses = count_uses(self._function)
        return self._uses

    def value(self, expr: Any) -> Any:
        """What ``expr`` is bound to, followed through variables; itself if nothing is known."""
        while isinstance(expr, relax.Var):
            bound = self.lookup_binding(expr)
            if bound is None:
                return expr
            expr = bound
        return expr

    def match(self, expr: Any, name: str) -> relax.Call | None:
        """The call of Relax op ``name`` that ``expr`` is bound to, else ``None``."""
        value = self.value(expr)
        return value if op_name(value) == f"relax.{name}" else None

    def chain(self, expr: Any, *names: str) -> list[relax.Call] | None:
        """The calls of ``names``, each the first argument of the one before, or ``None``."""
        calls = []
        for name in names:
            call = self.match(expr, name)
            if call is None:
                return None
            calls.append(call)
            expr = call.args[0]
        return calls

    def same(self, one: Any, other: Any) -> bool:
        """Whether two expressions are known to have the same value: equal calls of equal things."""
        one, other = self.value(one), self.value(other)
        if isinstance(one, relax.Call) and isinstance(other, relax.Call):
            alike = op_name(one) and op_name(one) == op_name(other)
            alike = alike and tvm_ffi.structural_equal(one.attrs, other.attrs)
            pairs = zip(one.args, other.args, strict=False)
            return (
                bool(alike)
                and len(one.args) == len(other.args)
                and all(self.same(mine, theirs) for mine, theirs in pairs)
            )
        return bool(tvm_ffi.structural_equal(one, other))

    def declared(self, expr: Any) -> bool:
        """Whether ``expr`` is a declared weight, or several side by side, maybe moved."""
        value = self.value(expr)
        if isinstance(value, relax.Tuple):
            return all(map(self.declared, value.fields))
        if op_name(value) in LAYOUT_OPS:
            return self.declared(value.args[0])
        return isinstance(value, relax.Var) and value in self.weight_bounds

    def used_once(self, *variables: Any) -> bool:
        """Whether each of the variables is read exactly once in the function."""
        return all(isinstance(v, relax.Var) and self.uses[v] == 1 for v in variables)

    def passed_on(self, encoding: Any, first_field: int = 0) -> bool:
        """Whether an encoding has other readers than dense ops and readers of single fields.

        Such an encoding (it is returned, or passed on) has to keep its fields. Readers of fields
        before the first one count as others, too.
        """
        if first_field not in self._field_readers:
            self._field_readers[first_field] = count_field_readers(self._function, first_field)
        return self.uses[encoding] != self._field_readers[first_field][encoding]

    def emit(self, expr: relax.Expr, hint: str = "") -> relax.Var:
        """Bind ``expr`` in the block under construction."""
        return self.builder_.emit(expr, hint)

    def rewrite(self, call: relax.Call, original: relax.Call) -> relax.Expr | None:
        """The replacement of ``call`` (arguments already visited), or ``None`` to keep it."""
        raise AssertionError(f"{type(self).__name__} does not say what it rewrites")

    def count(self) -> None:
        """Note one rewrite in the report, of all layers that a function stands for."""
        self.owner.report.rewrite(self.owner.name, max(len(self.segments), 1))

    @property
    def stands_for(self) -> list[Segment]:
        """The parts of functions that the function stands for: itself if it is one of its own."""
        return self.segments or [Segment(self.function, {})]

    def labels(self, label: str) -> list[str]:
        """What an op of that label is called in all that the function stands for."""
        return [each.name(label) for each in self.stands_for]

    def skip(self, op: str, label: str, reason: str) -> None:
        """Note in the report that an op is left alone."""
        for each in self.stands_for:
            own = each.name(label)
            self.owner.report.skip(Skipped(self.owner.name, each.caller, op, own, reason))

    def end(self) -> None:
        """All functions are visited."""
        self.function, self.segments = "", []
        self.finish()

    def finish(self) -> None:
        """What is to be done (reported) after all functions are visited."""

    def added_functions(self) -> list[tuple[relax.GlobalVar, tvm.ir.BaseFunc]]:
        """Functions that the rewritten module needs besides those it has."""
        return []

    def in_block(self, block: relax.BindingBlock, visit: Callable[..., Any]) -> Any:
        """Visit a block by `visit`; a pass that keeps state per scope overrides this."""
        return visit(block)

    def visit_binding_block_(self, block: relax.BindingBlock) -> relax.BindingBlock:
        """Visit a block through :meth:`in_block`."""
        return self.in_block(block, super().visit_binding_block_)

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.BindingBlock:
        """Visit a dataflow block through :meth:`in_block`."""
        return self.in_block(block, super().visit_dataflow_block_)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Remember the variable, and its name as the label for reports."""
        self.label, self.bound = str(binding.var.name), binding.var
        if self._stays(binding.value):
            self.builder_.emit_normalized(binding)
            return
        super().visit_var_binding_(binding)
        if not self.visit_expr(binding.var).same_as(binding.var):
            self._moved.add(binding.var)

    def _stays(self, value: relax.Expr) -> bool:
        """Whether a binding is none to rewrite, and reads nothing that was replaced."""
        if isinstance(value, relax.Call):
            name = op_name(value)
            return (
                bool(name) and not name.startswith(self.roots) and all(map(self._same, value.args))
            )
        # A pass that is offered every op may replace fields of what stays, too.
        field = isinstance(value, relax.TupleGetItem) and "" not in self.roots
        return field and self._same(value.tuple_value)

    def _same(self, operand: relax.Expr) -> bool:
        """Whether an operand is what it was; expressions within others may hold anything."""
        kind = type(operand)
        if kind is relax.Tuple:
            return all(map(self._same, operand.fields))
        if kind in _NESTED:
            return False
        return operand not in self._moved and operand not in self.replacements

    def visit_var_(self, op: relax.Var) -> relax.Expr:
        """Read a variable, or what a pass put in its place."""
        seen = self.replacements.get(op)
        return super().visit_var_(op) if seen is None else seen

    def visit_dataflow_var_(self, op: relax.DataflowVar) -> relax.Expr:
        """Read a dataflow variable, or what a pass put in its place."""
        seen = self.replacements.get(op)
        return super().visit_dataflow_var_(op) if seen is None else seen

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Visit the arguments, then offer the call to :meth:`rewrite`."""
        label = self.label
        visited = self.visit_expr_post_order(call)
        if not isinstance(visited, relax.Call):
            return visited
        self.label = label
        replaced = self.rewrite(visited, call)
        return visited if replaced is None else replaced


def _is_removable(binding: relax.Binding) -> bool:
    """Whether a binding that nothing reads may go: a MatchCast may define symbols of shapes."""
    if not isinstance(binding, relax.VarBinding):
        return False
    if isinstance(binding.var, relax.DataflowVar):
        return True
    is_branch = isinstance(binding.value, relax.If)
    return not is_branch and not relax.analysis.contains_impure_call(binding.value)


def remove_unused(func: relax.Function) -> relax.Function:
    """``func`` without the bindings that nothing reads, directly or through others.

    Branches keep theirs. One sweep from the end: DeadCodeElimination goes over the function once
    for every link of a chain of dead bindings, which takes seconds on a model's.
    """
    uses = count_uses(func)
    blocks = []
    for block in reversed(func.body.blocks):
        kept = []
        for binding in reversed(block.bindings):
            if not uses[binding.var] and _is_removable(binding):
                uses.subtract(_reads(binding.value))
            else:
                kept.append(binding)
        blocks.append(type(block)(kept[::-1]))
    body = relax.SeqExpr(blocks[::-1], func.body.body)
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)


def relax_functions(mod: tvm.IRModule) -> list[tuple[relax.GlobalVar, relax.Function]]:
    """The Relax functions of a module, in the order of their names."""
    return [(gv, f) for gv, f in mod.functions_items() if isinstance(f, relax.Function)]


def has_mark(func: relax.Function, name: str) -> bool:
    """Whether a pass has left this attribute at a function."""
    return func.attrs is not None and name in func.attrs


def also_returning(
    func: relax.Function, blocks: list[relax.BindingBlock], outputs: list[relax.Var], mark: str
) -> relax.Function:
    """``func`` with other blocks, returning ``(result, outputs)``, with an attribute as a mark."""
    body = relax.Tuple([func.body.body, relax.Tuple(outputs)])
    seq = relax.BlockBuilder().normalize(relax.SeqExpr(blocks, body))
    changed = relax.Function(func.params, seq, None, func.is_pure, func.attrs)
    return changed.with_attr(mark, True)


def called_functions(mod: tvm.IRModule) -> set[str]:
    """Names of the functions that other functions call: their signatures cannot be changed."""
    called = (relax.analysis.all_global_vars(func) for _, func in relax_functions(mod))
    return {str(gv.name_hint) for variables in called for gv in variables}


class ReportingPass:
    """A pass that says what it did and what it left alone; decorate it with ``module_pass``.

    Parameters
    ----------
    report : PassReport, optional
        Takes the number of rewrites, and what was left alone and why.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        self.report = report if report is not None else PassReport()

    @property
    def name(self) -> str:
        """Name of the pass in reports."""
        return type(self).__name__


class RewritePass(ReportingPass):
    """A pass that lets its rewriter visit every function."""

    rewriter: ClassVar[type[Rewriter]]

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        return apply_rewriter(mod, self.rewriter(mod, self))


def apply_rewriter(mod: tvm.IRModule, rewriter: Rewriter) -> tvm.IRModule:
    """Run a rewriter over a copy of ``mod``; a function without rewrites stays as it is."""
    rewrites = rewriter.owner.report.rewritten
    before = rewrites.total()
    # Not through the builder: its table of functions hashes every constant of each.
    rewritten = mod.clone()
    with in_program_order(rewriter.owner.report, mod):
        for gv, func in relax_functions(mod):
            rewriter.begin(str(gv.name_hint), func)
            known, visited = rewrites.total(), rewriter.visit_expr(func)
            if rewrites.total() > known:
                rewritten.update_func(gv, remove_unused(visited))
        rewriter.end()
    if rewrites.total() == before:
        return mod
    for gv, added in rewriter.added_functions():
        rewritten.update_func(gv, added)
    return relax.transform.CanonicalizeBindings()(rewritten)
