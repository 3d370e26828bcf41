"""Return the encodings' bitmaps beside a function's result, for counting and reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.passes._encodings import EncodingInfo, describe_encodings, in_bands
from sparqle_tvm.passes._report import PassReport, Skipped
from sparqle_tvm.passes._rewrite import (
    ReportingPass,
    also_returning,
    called_functions,
    has_mark,
    relax_functions,
)
from sparqle_tvm.passes._segments import Calls, Segment, function_variable, layers_of

# Attribute of a function that returns its encodings already.
COLLECTED = "sparqle_collected"


class _Observer:
    """A block under construction, with what is to be returned of its encodings."""

    def __init__(self, block: relax.BindingBlock) -> None:
        self.block = block
        self.bindings: list[relax.Binding] = []
        self.outputs: list[relax.Var] = []
        self.builder = relax.BlockBuilder()

    def bind(self, expr: relax.Expr, *, output: bool = False) -> relax.Var:
        inner = isinstance(self.block, relax.DataflowBlock) and not output
        value = self.builder.normalize(expr)
        var = (relax.DataflowVar if inner else relax.Var)("observed", value.ty)
        self.bindings.append(relax.VarBinding(var, value))
        if output:
            self.outputs.append(var)
        return var

    def observe(self, encoding: relax.Var, op: dialect.Encoder, info: EncodingInfo) -> None:
        """Return PBM, scales, and how many elements were clipped to the window."""
        self.bind(dialect.plane(encoding, "pbm"), output=True)
        if not info.quantizes:
            return
        scale = self.bind(op.field(encoding, "scale"), output=True)
        if op.bands is not None:
            q = self.bind(relax.op.clip(self._rounded(op, scale), -op.qmax, op.qmax))
            self._count(relax.op.logical_or(*in_bands(self.bind, q, op)))

    def _rounded(self, op: dialect.Encoder, scale: relax.Var) -> relax.Var:
        """``round(x / step)`` in float32, not limited yet."""
        step = scale
        if op.factors is not None:
            step = self.bind(relax.op.multiply(scale, op.factors))
        return self.bind(relax.op.round(self.bind(relax.op.divide(op.x, step))))

    def _count(self, condition: relax.Expr) -> None:
        """Return how many elements meet a condition."""
        met = self.bind(relax.op.astype(self.bind(condition), "int32"))
        self.bind(relax.op.sum(met), output=True)

    def pass_on(self, binding: relax.VarBinding, variable: Any) -> None:
        """Call a function that returns more than before, and return that as well."""
        whole = self.bind(relax.Call(variable, binding.value.args))
        self.bindings.append(relax.VarBinding(binding.var, self._item(whole, 0)))
        more = self.bind(relax.TupleGetItem(whole, 1))
        for at in range(len(more.ty.fields)):
            self.bind(relax.TupleGetItem(more, at), output=True)

    def _item(self, whole: relax.Var, at: int) -> relax.Expr:
        return self.builder.normalize(relax.TupleGetItem(whole, at))


class _Collector:
    """Goes over the functions of a module, those first that stand for parts of others.

    Attributes
    ----------
    layers : dict of relax.GlobalVar to (relax.GlobalVar, list of EncodingInfo)
        Of such a function that has encodings: its name now, and what it returns besides.
    """

    def __init__(self, layers: dict[Any, relax.Function]) -> None:
        self.layers: dict[Any, tuple[Any, list[EncodingInfo]]] = {}
        self.calls = Calls(layers)

    def returning(self, func: relax.Function) -> tuple[relax.Function, list[EncodingInfo]]:
        """The function with ``(result, (pbm, [scale], [clipped], pbm, ..))``, and what these are.

        Itself if there is nothing to return.
        """
        own, _ = describe_encodings(func)
        remaining, infos = iter(own), []
        outputs: list[relax.Var] = []
        blocks = []
        for block in func.body.blocks:
            observer = _Observer(block)
            for binding in block.bindings:
                segment = self.calls.segment(binding.value)
                if segment is not None and binding.value.op in self.layers:
                    variable, known = self.layers[binding.value.op]
                    infos += [_named(each, segment) for each in known]
                    observer.pass_on(binding, variable)
                    continue
                observer.bindings.append(binding)
                encoder = dialect.Encoder.of(binding.value)
                if encoder is not None:
                    infos.append(next(remaining))
                    observer.observe(binding.var, encoder, infos[-1])
            outputs += observer.outputs
            blocks.append(type(block)(observer.bindings))
        return also_returning(func, blocks, outputs, COLLECTED) if infos else func, infos


def _named(info: EncodingInfo, segment: Segment) -> EncodingInfo:
    """An encoding with the labels that it has in a part of a function."""
    consumers = [replace(each, label=segment.name(each.label)) for each in info.consumers]
    return replace(info, label=segment.name(info.label), consumers=consumers)


@tvm.transform.module_pass(opt_level=0)
class CollectEncodings(ReportingPass):
    """Make functions return the precision bitmaps (and scales) of their encodings as well.

    Precondition: the encodings stand in the outermost blocks of a function that no other function
    calls. With bands, the number of elements that they clip is returned, too.

    Before::

        enc = R.sparqle.quantize_encode(x, label="up", ...)
        return y

    After::

        enc = R.sparqle.quantize_encode(x, label="up", ...)
        observed_0 = enc[1]  # the PBM
        observed_1 = enc[4]  # the scales
        return (y, (observed_0, observed_1))

    Attributes
    ----------
    collected : dict of str to list of EncodingInfo
        After the pass: for each function that has encodings, what it returns, in order.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        super().__init__(report=report)
        self.collected: dict[str, list[EncodingInfo]] = {}

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        functions, called = dict(mod.functions_items()), called_functions(mod)
        layers = layers_of(mod)
        collector = _Collector(layers)
        for gv, func in layers.items():
            wider, infos = collector.returning(func)
            if infos:
                name = str(gv.name_hint)
                collector.layers[gv] = function_variable(name, wider), infos
                del functions[gv]
                functions[collector.layers[gv][0]] = wider
        for gv, func in relax_functions(mod):
            if gv in layers:
                continue
            name = str(gv.name_hint)
            own, hidden = describe_encodings(func)
            for label in hidden:
                self._skip(name, label, "stands in a branch")
            if name in called:
                for info in own:
                    self._skip(name, info.label, f"its function {name} is called by another one")
                continue
            if has_mark(func, COLLECTED):
                self.collected[name] = own
                continue
            wider, infos = collector.returning(func)
            if infos:
                self.collected[name] = infos
                functions[gv] = wider
                self.report.rewrite(self.name)
        return tvm.IRModule(functions, mod.attrs, mod.global_infos)

    def _skip(self, function: str, label: str, reason: str) -> None:
        self.report.skip(Skipped(self.name, function, "encode", label, reason))
