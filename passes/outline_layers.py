"""Make functions of the equal layers of a decoder, and put what became of them back."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr import _update_type

from sparqle_tvm import dialect
from sparqle_tvm.dialect.weights import WEIGHTS
from sparqle_tvm.passes._rewrite import ReportingPass, relax_functions, remove_unused
from sparqle_tvm.passes._segments import Calls, Segment, label_text, layers_of
from sparqle_tvm.passes.outline_repeats import Told, outlined_in, with_label, with_operands


@tvm.transform.module_pass(opt_level=0)
class OutlineLayers(ReportingPass):
    """Make one function of equal layers of a decoder, so that passes work on one of them.

    Like `OutlineRepeats`, in functions whose weights are parameters (`dialect.weights`), and cut
    before norms alone: what passes look for begins with a norm's result and ends before the next.
    The functions say what they stand for (`_segments`), so that reports name every layer;
    `InlineLayers` puts what became of them back.

    Parameters
    ----------
    told : callable, optional
        What options say of the op with a label: layers of whose ops they say different things are
        not equal.
    """

    def __init__(self, told: Told | None = None, **report: Any) -> None:
        super().__init__(**report)
        self.told = told

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every function that takes weights, in a copy of ``mod``."""
        return outlined_in(self, mod, mark=WEIGHTS, cut_at="relax.nn.rms_norm", told=self.told)


@tvm.transform.module_pass(opt_level=0)
class InlineLayers(ReportingPass):
    """Put the functions of `OutlineLayers` where they are called, under the names of each layer.

    Variables and labels get the names that they had: ``blk_0_ffn_up`` of the function becomes
    ``blk_7_ffn_up`` in the eighth layer.

    Before::

        def main_repeat(x, w):                     # sparqle_segments: main, {}; main, {up0: up1}
            up0 = R.sparqle.split_dense(x, w, label="up0", ...)
            return up0
        def main(x, w0, w1):
            a = cls.main_repeat(x, w0)
            b = cls.main_repeat(a, w1)

    After::

        def main(x, w0, w1):
            up0 = R.sparqle.split_dense(x, w0, label="up0", ...)
            up1 = R.sparqle.split_dense(up0, w1, label="up1", ...)
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to a copy of ``mod``."""
        layers = layers_of(mod)
        if not layers:
            return mod
        functions = {gv: func for gv, func in mod.functions_items() if gv not in layers}
        changed: list[tvm.ir.GlobalVar] = []
        for gv, func in relax_functions(mod):
            if gv not in layers and not (made := _inlined(func, layers)).same_as(func):
                functions[gv] = made
                changed.append(gv)
                self.report.rewrite(self.name)
        whole = tvm.IRModule(functions, mod.attrs, mod.global_infos)
        whole = relax.transform.CanonicalizeBindings()(whole)
        used = {gv: remove_unused(whole[gv]) for gv in changed}
        return tvm.IRModule({**dict(whole.functions_items()), **used}, mod.attrs, mod.global_infos)


def _inlined(func: relax.Function, layers: dict[Any, relax.Function]) -> relax.Function:
    """The function with the bindings of layers in place of their calls."""
    bodies: dict[Any, relax.Function] = {}
    calls = Calls(layers)
    returned: dict[Any, relax.Tuple] = {}
    blocks = []
    for block in func.body.blocks:
        bindings = []
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.TupleGetItem) and call.tuple_value in returned:
                item = returned[call.tuple_value].fields[call.index]
                bindings.append(relax.VarBinding(binding.var, item))
                continue
            segment = calls.segment(call)
            if segment is None:
                bindings.append(binding)
                continue
            if call.op not in bodies:
                bodies[call.op] = _with_symbols_of(layers[call.op], call)
            copied, result = _copied(bodies[call.op], binding, segment)
            bindings += copied
            if isinstance(result, relax.Tuple):
                returned[binding.var] = result
            else:
                bindings.append(relax.VarBinding(binding.var, result))
        blocks.append(type(block)(bindings))
    if not bodies:
        return func
    body = relax.SeqExpr(blocks, func.body.body)
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)


def _with_symbols_of(layer: relax.Function, call: relax.Call) -> relax.Function:
    """The function with the symbols of shapes that its caller has."""
    last = layer.params[-1].ty
    if not isinstance(last, relax.ShapeType):
        return layer
    symbols = zip(last.values, call.args[-1].values, strict=True)
    return layer.bind_symbolic_vars(dict(symbols))


def _copied(
    layer: relax.Function, binding: relax.VarBinding, segment: Segment
) -> tuple[list[relax.VarBinding], relax.Expr]:
    """The bindings of a function for the arguments of a call, with names of its own; the result."""
    given = binding.value.args
    replaced: dict[Hashable, Any] = dict(zip(layer.params, given, strict=False))
    made = []
    for each in (each for block in layer.body.blocks for each in block.bindings):
        value = _renamed(with_operands(each.value, replaced), segment)
        if isinstance(value, relax.Call) and not value.same_as(each.value):
            _update_type(value, each.value.ty)
        var = type(binding.var)(segment.name(str(each.var.name)), each.var.ty)
        replaced[each.var] = var
        made.append(relax.VarBinding(var, value))
    result = with_operands(layer.body.body, replaced)
    if made and made[-1].var.same_as(result) and isinstance(made[-1].value, relax.Tuple):
        result = made.pop().value
    return made, result


def _renamed(value: Any, segment: Segment) -> Any:
    """A call of the dialect, or one that launches a program, with the label of its layer."""
    if (text := label_text(value)) is not None:
        return with_label(value, tvm.ir.StringImm(segment.name(str(text.value))))
    op = dialect.Op.of(value) if dialect.op_name(value) else None
    label = op.label if op is not None else ""
    return op.changed(label=own) if op and (own := segment.name(label)) != label else value
