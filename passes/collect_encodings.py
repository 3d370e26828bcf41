"""Return the encodings' bitmaps beside a function's result, for counting and reports."""

from __future__ import annotations

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

# Attribute of a function that returns its encodings already.
COLLECTED = "sparqle_collected"


class _Observer:
    """A block under construction, with what is to be returned of its encodings."""

    def __init__(self, block: relax.BindingBlock) -> None:
        self.block = block
        self.bindings = list(block.bindings)
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


def _with_observations(func: relax.Function, infos: list[EncodingInfo]) -> relax.Function:
    """``func`` returning ``(result, (pbm, [scale], [clipped], pbm, ..))``."""
    remaining = iter(infos)
    outputs: list[relax.Var] = []
    blocks = []
    for block in func.body.blocks:
        observer = _Observer(block)
        for binding in block.bindings:
            encoder = dialect.Encoder.of(binding.value)
            if encoder is not None:
                observer.observe(binding.var, encoder, next(remaining))
        outputs += observer.outputs
        blocks.append(type(block)(observer.bindings))
    return also_returning(func, blocks, outputs, COLLECTED)


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
        changed, called = mod.clone(), called_functions(mod)
        for gv, func in relax_functions(mod):
            name = str(gv.name_hint)
            infos, hidden = describe_encodings(func)
            for label in hidden:
                self._skip(name, label, "stands in a branch")
            if not infos:
                continue
            if name in called:
                for info in infos:
                    self._skip(name, info.label, f"its function {name} is called by another one")
                continue
            self.collected[name] = infos
            if not has_mark(func, COLLECTED):
                changed.update_func(gv, _with_observations(func, infos))
                self.report.rewrite(self.name)
        return changed

    def _skip(self, function: str, label: str, reason: str) -> None:
        self.report.skip(Skipped(self.name, function, "encode", label, reason))
