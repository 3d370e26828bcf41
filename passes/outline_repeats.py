"""Make functions of what a function does again and again, so that it is compiled once."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr import _update_type
from tvm.relax.utils import copy_with_new_vars

from sparqle_tvm import dialect
from sparqle_tvm.dialect.weights import WEIGHTS, Bounds, declare_weights, declared_weights
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._match import dtype_of, op_name
from sparqle_tvm.passes._rewrite import (
    ReportingPass,
    count_uses,
    has_mark,
    relax_functions,
    remove_unused,
)
from sparqle_tvm.passes._segments import (
    SEGMENTS,
    Calls,
    Segment,
    function_variable,
    label_text,
    layers_of,
    segments_of,
    with_segments,
)

Told = Callable[[str], Hashable]
"""What options say of an op, by its label."""

REPEAT = "sparqle_repeat"
"""Attribute of a function that was made of repeated bindings."""

LEAST_SAVED = 32
"""Bindings that a new function has to save; below that it is not worth its calls."""

LITERAL_SIZE = 16
"""Constants of so many elements belong to what is done, larger ones to what it is done with."""

_CANDIDATES = 4
_MODULUS, _BASE = (1 << 61) - 1, 1_000_003


@dataclass
class _Step:
    """A binding of a block, as far as it can be compared with others.

    Attributes
    ----------
    binding : relax.Binding
    kind : int
        Equal for bindings that do the same with operands of the same types; unlike any other if
        it can be no part of a function.
    operands : list of relax.Expr
        The variables, large constants and texts that it reads, in a fixed order.
    """

    binding: Any
    kind: int
    operands: list[Any] = field(default_factory=list)


class _Kinds:
    """Numbers for things to compare, equal ones have the same."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._objects: dict[int, list[tuple[Any, int]]] = defaultdict(list)
        self._count = 0

    def new(self) -> int:
        """A number that nothing else has."""
        self._count += 1
        return self._count

    def of(self, key: Hashable) -> int:
        """The number of a plain value."""
        if key not in self._known:
            self._known[key] = self.new()
        return self._known[key]

    def of_object(self, value: Any) -> int:
        """The number of a type, an expression or attributes; symbols of shapes are themselves."""
        known = self._objects[tvm_ffi.structural_hash(value)]
        for other, number in known:
            if tvm_ffi.structural_equal(other, value):
                return number
        known.append((value, self.new()))
        return known[-1][1]


class _Comparison:
    """Says of bindings what they do, apart from what they do it with."""

    def __init__(self) -> None:
        self._kinds = _Kinds()
        self.weights: dict[relax.Var, Bounds] = {}
        self.repeats: set[tvm.ir.GlobalVar] = set()

    def step(self, binding: relax.Binding) -> _Step:
        """One binding."""
        step = _Step(binding, self._kinds.new())
        parts = self._value(binding.value, step.operands)
        if isinstance(binding, relax.VarBinding) and parts is not None:
            local = isinstance(binding.var, relax.DataflowVar)
            step.kind = self._kinds.of((parts, self._kinds.of_object(binding.var.ty), local))
        return step

    def _value(self, value: Any, operands: list[Any]) -> Hashable | None:
        """What a binding computes, None if that can be no part of a function."""
        if isinstance(value, relax.TupleGetItem):
            return ("item", int(value.index), self._operand(value.tuple_value, operands))
        if isinstance(value, relax.Call):
            return self._call(value, operands)
        if isinstance(value, relax.Tuple | relax.ShapeExpr | relax.Var):
            return ("value", self._operand(value, operands))
        return None

    def _call(self, call: relax.Call, operands: list[Any]) -> Hashable | None:
        op = call.op
        if relax.analysis.contains_impure_call(call):
            return None
        if isinstance(op, tvm.ir.Op):
            name = str(op.name)
        elif isinstance(op, tvm.ir.GlobalVar) and op not in self.repeats:
            name = f"@{op.name_hint}"
        else:
            return None
        loose = name in ("relax.call_dps_packed", "relax.call_pure_packed")
        args = tuple(self._operand(arg, operands, loose=loose) for arg in call.args)
        types = tuple(map(self._kinds.of_object, call.ty_args))
        return ("call", name, self._attrs(call), args, types)

    def _attrs(self, call: relax.Call) -> Hashable:
        """The attributes; labels of our ops are names, which nothing below depends on."""
        if call.attrs is None:
            return None
        if dialect.op_name(call):
            return tuple(
                (str(name), str(value))
                for name, value in call.attrs.items()
                if not str(name).endswith("label")
            )
        return self._kinds.of_object(call.attrs)

    def _operand(self, expr: Any, operands: list[Any], *, loose: bool = False) -> Hashable:
        """One argument; variables, tensors and texts are what something is done with.

        Packed functions take constants of any shape (`loose`): programs have several lengths.
        """
        if isinstance(expr, relax.Tuple):
            return tuple(self._operand(each, operands, loose=loose) for each in expr.fields)
        if isinstance(expr, tvm.ir.StringImm):
            operands.append(expr)
            return "text"
        if isinstance(expr, Constant):
            dtype, shape = str(expr.value.dtype), tuple(expr.value.shape)
            if math.prod(shape) <= LITERAL_SIZE:
                return ("literal", dtype, shape, expr.value.numpy().tobytes())
            operands.append(expr)
            known = (dtype, len(shape)) if loose else self._kinds.of_object(expr.ty)
            return ("constant", known)
        if isinstance(expr, relax.Var) and not tvm.ir.is_prim_expr(expr):
            operands.append(expr)
            # Integers of as many bits; of floats, all are within the largest bounds.
            integer = expr in self.weights and dtype_of(expr).startswith("int")
            bounds = self.weights[expr] if integer else None
            return ("variable", self._kinds.of_object(expr.ty), bounds)
        if tvm.ir.is_prim_expr(expr) and not _is_known(expr):
            return ("computed", self._kinds.new())
        return ("as it is", self._kinds.of_object(expr))


@dataclass
class _Repeat:
    """Equal segments of a block.

    Attributes
    ----------
    length : int
        Steps of each.
    begins : list of int
        Their first steps.
    inputs : list of list of relax.Expr
        For each, what it reads that is made elsewhere; the same place means the same input.
    outputs : list of int
        Steps in a segment whose results are read outside of it, in any of them.
    """

    length: int
    begins: list[int] = field(default_factory=list)
    inputs: list[list[Any]] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    @property
    def saved(self) -> int:
        """Bindings that are not there any more, less those that calls and their results take."""
        return (len(self.begins) - 1) * self.length - len(self.begins) * (len(self.outputs) + 1)


def _identity(operand: Any) -> Hashable:
    return ("text", operand.value) if isinstance(operand, tvm.ir.StringImm) else operand


def _repeats(
    steps: Sequence[_Step], uses: Counter[Any], cut_at: str = "", told: Told | None = None
) -> list[_Repeat]:
    """The segments to make functions of: those between steps of the kind that saves most.

    With the name of an op in `cut_at`, the steps are those like the first one that calls it.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for at, step in enumerate(steps):
        places[step.kind].append(at)
    # Hashes of all prefixes give that of any segment at once.
    prefixes, powers = [0], [1]
    for step in steps:
        prefixes.append((prefixes[-1] * _BASE + step.kind) % _MODULUS)
        powers.append(powers[-1] * _BASE % _MODULUS)

    def hashed(segment: tuple[int, int]) -> tuple[int, int]:
        begin, end = segment
        length = end - begin
        return length, (prefixes[end] - prefixes[begin] * powers[length]) % _MODULUS

    alone = [at for (at, *others) in places.values() if not others]
    borders = {0, *alone, *(at + 1 for at in alone)}

    def cut(begins: Sequence[int]) -> list[tuple[int, int]]:
        """At these places, and around steps that nothing is like; the last as long as others."""
        *others, last = sorted(each for each in borders.union(begins) if each < len(steps))
        segments = list(itertools.pairwise([*others, last]))
        known = Counter(map(hashed, segments))
        ends = [last + length for (length, _), _ in known.most_common()]
        same = [end for end in ends if end <= len(steps) and hashed((last, end)) in known]
        return [*segments, (last, same[0] if same else len(steps))]

    def promised(segments: list[tuple[int, int]]) -> int:
        counts = Counter(map(hashed, segments))
        return sum((count - 1) * length for (length, _), count in counts.items())

    kinds = [[], *places.values()]
    if cut_at:
        kinds = [places[s.kind] for s in steps if op_name(s.binding.value) == cut_at][:1]
    cuts = [cut(each) for each in kinds if steps and len(each) != 1]
    best: list[_Repeat] = []
    for segments in sorted(cuts, key=promised, reverse=True)[:_CANDIDATES]:
        found = _grouped(steps, segments, uses, told)
        if sum(each.saved for each in found) > sum(each.saved for each in best):
            best = found
    return best


def _grouped(
    steps: Sequence[_Step],
    segments: Sequence[tuple[int, int]],
    uses: Counter[Any],
    told: Told | None = None,
) -> list[_Repeat]:
    """Those of the segments that are equal, where a function of them is worth it."""
    groups: dict[Hashable, _Repeat] = {}
    for begin, end in segments:
        made = {step.binding.var: at for at, step in enumerate(steps[begin:end])}
        inputs: dict[Hashable, tuple[int, Any]] = {}
        reads: Counter[Any] = Counter()
        key = []
        for step in steps[begin:end]:
            sources = []
            for operand in step.operands:
                name = _identity(operand)
                if name in made:
                    reads[name] += 1
                    sources.append((0, made[name]))
                else:
                    sources.append((1, inputs.setdefault(name, (len(inputs), operand))[0]))
            own = None if told is None else told(_label(step.binding) or str(step.binding.var.name))
            key.append((step.kind, own, *sources))
        found = groups.setdefault(tuple(key), _Repeat(end - begin))
        found.begins.append(begin)
        found.inputs.append([operand for _, operand in inputs.values()])
        outside = {at for var, at in made.items() if uses[var] > reads[var]}
        found.outputs = sorted(outside.union(found.outputs))
    return [each for each in groups.values() if each.outputs and each.saved >= LEAST_SAVED]


def with_operands(expr: Any, replaced: dict[Hashable, Any]) -> Any:
    """The expression with other variables, constants and texts."""
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([with_operands(each, replaced) for each in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(with_operands(expr.tuple_value, replaced), expr.index)
    if isinstance(expr, relax.Call):
        args = [with_operands(each, replaced) for each in expr.args]
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
    if isinstance(expr, relax.Var | Constant | tvm.ir.StringImm):
        return replaced.get(_identity(expr), expr)
    return expr


def _parameter(at: int, given: Sequence[Any]) -> relax.Var | None:
    """The parameter for what segments read in one place; None if that is the same constant."""
    first = given[0]
    if isinstance(first, relax.Var):
        return relax.Var(str(first.name), first.ty)
    if all(_identity(each) == _identity(first) for each in given[1:]):
        return None
    if isinstance(first, tvm.ir.StringImm):
        return relax.Var(f"text{at}", relax.AnyType())
    ty, dtype = first.ty, str(first.value.dtype)
    if any(not tvm_ffi.structural_equal(each.ty, ty) for each in given[1:]):
        ty = relax.TensorType(dtype=dtype, ndim=len(first.value.shape))
    return relax.Var(f"constant{at}", ty)


class _Outliner:
    """Puts calls in place of segments, and keeps the functions that they call."""

    def __init__(self, mod: tvm.IRModule, cut_at: str = "", told: Told | None = None) -> None:
        self._cut_at, self._told = cut_at, told
        self.functions: list[tuple[relax.GlobalVar, relax.Function]] = []
        self._taken = {str(gv.name_hint) for gv in mod.get_global_vars()}
        self._comparison = _Comparison()
        self._comparison.repeats = {gv for gv, f in relax_functions(mod) if has_mark(f, REPEAT)}

    def function(self, name: str, func: relax.Function) -> relax.Function:
        """One function of the module, itself if nothing in it repeats."""
        uses, known = count_uses(func), len(self.functions)
        self._attrs = func.attrs
        self._comparison.weights = declared_weights(func)
        ready = set(func.params)
        blocks = [self._block(name, block, uses, ready) for block in func.body.blocks]
        if len(self.functions) == known:
            return func
        body = relax.BlockBuilder().normalize(relax.SeqExpr(blocks, func.body.body))
        return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)

    def _block(
        self, name: str, block: relax.BindingBlock, uses: Counter[Any], ready: set[Any]
    ) -> relax.BindingBlock:
        first, steps = [], []
        for binding in block.bindings:
            if _is_slice(binding, ready):
                ready.add(binding.var)
                first.append(binding)
            else:
                steps.append(self._comparison.step(binding))
        bindings, at = first, 0
        calls = {}
        for repeat in _repeats(steps, uses, self._cut_at, self._told):
            called = self._called(name, steps, repeat)
            for begin, inputs in zip(repeat.begins, repeat.inputs, strict=True):
                arguments = [inputs[i] for i in called.inputs]
                results = [steps[begin + offset].binding.var for offset in repeat.outputs]
                calls[begin] = (repeat.length, called.bindings(arguments, results))
        if not calls:
            return block
        while at < len(steps):
            length, made = calls.get(at, (1, [steps[at].binding]))
            bindings += made
            at += length
        return type(block)(bindings)

    def _called(self, name: str, steps: Sequence[_Step], repeat: _Repeat) -> _Called:
        """Make the function of equal segments, from the first of them."""
        begin = repeat.begins[0]
        replaced: dict[Hashable, Any] = {}
        inputs, params = [], []
        for at, given in enumerate(zip(*repeat.inputs, strict=True)):
            param = _parameter(at, given)
            if param is not None:
                inputs.append(at)
                params.append(param)
                replaced[_identity(given[0])] = param
        mine = steps[begin : begin + repeat.length]
        symbols = _symbols(params, [step.binding for step in mine])
        if symbols:
            params.append(relax.Var("symbols", relax.ShapeType(symbols)))
        unique = self._unique(f"{name}_repeat")
        builder = relax.BlockBuilder()
        with builder.function(unique, params, private=True):
            with builder.dataflow():
                for step in mine:
                    value, var = with_operands(step.binding.value, replaced), step.binding.var
                    replaced[var] = builder.emit(value, str(var.name))
                results = [replaced[mine[offset].binding.var] for offset in repeat.outputs]
                output = builder.emit_output(
                    results[0] if len(results) == 1 else relax.Tuple(results)
                )
            builder.emit_func_output(output)
        ((variable, function),) = builder.get().functions_items()
        function = copy_with_new_vars(function).with_attr(REPEAT, True)
        if self._cut_at:
            function = self._declared(name, function, steps, repeat, inputs)
        self.functions.append((variable, function))
        return _Called(variable, inputs, symbols)

    def _declared(
        self,
        caller: str,
        function: relax.Function,
        steps: Sequence[_Step],
        repeat: _Repeat,
        inputs: Sequence[int],
    ) -> relax.Function:
        """The function with what is known of its weights, and how its callers name what it does."""
        known = self._comparison.weights
        bounds = {}
        for param, at in zip(function.params, inputs, strict=False):
            given = [known[each[at]] for each in repeat.inputs if each[at] in known]
            if len(given) == len(repeat.inputs):
                lows, highs = zip(*given, strict=True)
                bounds[str(param.name)] = min(lows), max(highs)
        segments = []
        for begin in repeat.begins:
            names = {}
            for offset in range(repeat.length):
                pair = [steps[at + offset].binding for at in (repeat.begins[0], begin)]
                for mine, theirs in (map(_label, pair), (str(each.var.name) for each in pair)):
                    names[mine] = theirs
            segments.append(Segment(caller, names))
        for name, value in self._attrs.items():
            if str(name).startswith("sparqle."):  # what users say of it
                function = function.with_attr(str(name), value)
        return with_segments(declare_weights(function, bounds) if bounds else function, segments)

    def _unique(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._taken:
            count += 1
            unique = f"{name}{count}"
        self._taken.add(unique)
        return unique


@dataclass(frozen=True)
class _Called:
    """A function that was made, the inputs of a segment that it takes, symbols of shapes."""

    function: relax.GlobalVar
    inputs: list[int]
    symbols: list[Any]

    def bindings(self, arguments: list[Any], results: list[relax.Var]) -> list[relax.VarBinding]:
        """Call it, and bind what it returns to the variables that readers know."""
        given = [*arguments, relax.ShapeExpr(self.symbols)] if self.symbols else arguments
        call = relax.BlockBuilder().normalize(relax.Call(self.function, given))
        if len(results) == 1:
            return [relax.VarBinding(results[0], call)]
        local = all(isinstance(each, relax.DataflowVar) for each in results)
        whole = (relax.DataflowVar if local else relax.Var)("results", call.ty)
        items = [
            relax.VarBinding(var, relax.BlockBuilder().normalize(relax.TupleGetItem(whole, at)))
            for at, var in enumerate(results)
        ]
        return [relax.VarBinding(whole, call), *items]


def _is_slice(binding: relax.Binding, ready: set[Any]) -> bool:
    """Whether a binding takes a part of a parameter: which part differs, so it is taken before."""
    value = binding.value
    return op_name(value) in ("relax.strided_slice", "relax.astype") and value.args[0] in ready


def _is_known(number: Any) -> bool:
    """Whether a function can know a number: it is written down, or made of symbols of shapes."""
    return isinstance(number, tvm.ir.Constant) or str(number.ty.dtype) == "int64"


def _label(binding: relax.VarBinding) -> str:
    """The label of an op of the dialect, empty of anything else."""
    op = dialect.Op.of(binding.value) if dialect.op_name(binding.value) else None
    return op.label if op is not None else ""


def _symbols(params: Sequence[relax.Var], bindings: Sequence[relax.VarBinding]) -> list[Any]:
    """All symbols of shapes that a function mentions, in their order."""
    types = [each.ty for each in params]
    for binding in bindings:
        types += [*_shapes(binding.value), binding.var.ty]
    found = (symbol for ty in types for symbol in relax.analysis.tir_vars_in_type(ty))
    return list(dict.fromkeys(found))


def _shapes(expr: Any) -> list[Any]:
    """Types of the shapes and integers that an expression is given."""
    if isinstance(expr, relax.Call):
        return [*(ty for each in expr.args for ty in _shapes(each)), *expr.ty_args]
    if isinstance(expr, relax.Tuple):
        return [ty for each in expr.fields for ty in _shapes(each)]
    if isinstance(expr, relax.ShapeExpr):
        return [expr.ty]
    if tvm.ir.is_prim_expr(expr) and not isinstance(expr, tvm.ir.Constant):
        return [relax.ShapeType([expr])]
    return []


@tvm.transform.module_pass(opt_level=0)
class OutlineRepeats(ReportingPass):
    """Make one function of bindings that a function repeats, and call it.

    A model of 30 equal layers becomes one that calls the function of a layer 30 times: whatever
    comes after works on one layer, and kernels, plans of memory and instructions are those of one.
    Layers are found by what they do; tensors of weights, variables and texts (as the labels of
    launched programs) that differ become parameters. What is done differently, in some layers or
    by chance of the order of bindings, stays where it is.

    The function is cut before each binding of one kind, the one that saves most (in a decoder,
    the norms before attention and MLP), and equal segments become one function.

    The functions of `OutlineLayers` are what it would find there: they get the labels of programs
    as arguments, like the functions that it makes.

    Precondition: nothing behind it reads labels in the attributes of the dialect's ops: calls
    share those of the first layer.

    Before::

        a = R.nn.relu(R.add(x, w0))
        b = R.nn.relu(R.add(a, w1))

    After::

        a = cls.main_repeat(x, w0)
        b = cls.main_repeat(a, w1)
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        return outlined_in(self, _with_labels_given(mod))


@dataclass(frozen=True)
class _Labelled:
    """A function of `OutlineLayers` that gets the labels of programs as arguments.

    Attributes
    ----------
    variable : tvm.ir.GlobalVar
        Its name.
    kept : list of int
        The places of the parameters that it still has.
    labels : list of str
        What those behind them are in the first of its calls.
    """

    variable: tvm.ir.GlobalVar
    kept: list[int]
    labels: list[str]

    def call(self, call: relax.Call, segment: Segment) -> relax.Call:
        """Call it for a part of its caller."""
        texts = [tvm.ir.StringImm(segment.name(label)) for label in self.labels]
        made = relax.Call(self.variable, [*(call.args[at] for at in self.kept), *texts])
        _update_type(made, call.ty)
        return made


def _labelled(gv: tvm.ir.GlobalVar, func: relax.Function) -> tuple[_Labelled, relax.Function]:
    """The function, which stands for nothing any more and takes only what it reads."""
    segments, given = segments_of(func), dict[str, relax.Var]()

    def changed(binding: relax.VarBinding) -> relax.VarBinding:
        text = label_text(binding.value)
        label = "" if text is None else str(text.value)
        if all(each.name(label) == label for each in segments):
            return binding
        param = given.setdefault(label, relax.Var(f"label{len(given)}", relax.AnyType()))
        return relax.VarBinding(binding.var, with_label(binding.value, param))

    whole = _with_bindings(func, changed)
    uses = count_uses(whole)
    shapes = [isinstance(param.ty, relax.ShapeType) for param in func.params]
    kept = [at for at, param in enumerate(func.params) if uses[param] or shapes[at]]
    params = [*(func.params[at] for at in kept), *given.values()]
    made = relax.Function(params, whole.body, func.ret_ty, func.is_pure, func.attrs)
    made = made.without_attr(SEGMENTS).without_attr(WEIGHTS)
    return _Labelled(function_variable(str(gv.name_hint), made), kept, list(given)), made


def _with_bindings(func: relax.Function, changed: Callable[[Any], Any]) -> relax.Function:
    """The function with every binding changed."""
    blocks = [type(block)(list(map(changed, block.bindings))) for block in func.body.blocks]
    body = relax.SeqExpr(blocks, func.body.body)
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)


def _with_labels_given(mod: tvm.IRModule) -> tvm.IRModule:
    """The module whose functions of `OutlineLayers` take labels of programs as arguments."""
    layers = layers_of(mod)
    if not layers:
        return mod
    functions, calls = dict(mod.functions_items()), Calls(layers)
    labelled: dict[Any, _Labelled] = {}
    for gv, func in layers.items():
        labelled[gv], made = _labelled(gv, func)
        del functions[gv]
        functions[labelled[gv].variable] = made

    def changed(binding: relax.Binding) -> relax.Binding:
        segment = calls.segment(binding.value)
        if segment is None:
            return binding
        value = labelled[binding.value.op].call(binding.value, segment)
        return relax.VarBinding(binding.var, value)

    for gv, func in relax_functions(mod):
        if gv in layers or not any(each in layers for each in relax.analysis.all_global_vars(func)):
            continue
        functions[gv] = remove_unused(_with_bindings(func, changed))
    return tvm.IRModule(functions, mod.attrs, mod.global_infos)


def with_label(call: relax.Call, label: relax.Expr) -> relax.Call:
    """A call that launches a program, with another label."""
    packed, operands = call.args
    operands = relax.Tuple([label, *operands.fields[1:]])
    made = relax.Call(call.op, [packed, operands], call.attrs, call.ty_args)
    _update_type(made, call.ty)
    return made


def outlined_in(
    owner: ReportingPass,
    mod: tvm.IRModule,
    *,
    mark: str = "",
    cut_at: str = "",
    told: Told | None = None,
) -> tvm.IRModule:
    """The module with what repeats in functions of its own; only in those with a mark, if given.

    Segments are equal only if `told` says the same of their labels.
    """
    outliner = _Outliner(mod, cut_at, told)
    changed = mod.clone()
    for gv, func in relax_functions(mod):
        if has_mark(func, REPEAT) or (mark and not has_mark(func, mark)):
            continue
        outlined = outliner.function(str(gv.name_hint), func)
        if not outlined.same_as(func):
            changed.update_func(gv, outlined)
    for gv, func in outliner.functions:
        owner.report.rewrite(owner.name)
        changed.update_func(gv, func)
    return changed if outliner.functions else mod
