"""Return the encodings' bitmaps beside a function's result, for counting and reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, visitor

from sparqle_tvm import dialect
from sparqle_tvm.numerics import max_exact, window_limits
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import called_functions, relax_functions

# Attribute of a function that returns its encodings already.
COLLECTED = "sparqle_collected"


@dataclass(frozen=True)
class DenseInfo:
    """One dense that reads an encoding; ``n`` and ``k`` are its output and input features."""

    label: str
    n: int
    k: int
    weight_bits: int
    group_size: int
    has_min: bool


@dataclass
class EncodingInfo:
    """One encoding of a function: its static facts and the dense ops that read it.

    Attributes
    ----------
    label : str
        Name of the tensor.
    digit_bits : int
        k, bits of a digit.
    window : str
        ``"signed"`` or ``"unsigned"``.
    columns : int
        K, elements in a row.
    quantizes : bool
        Whether the encoding quantizes too, so that it has scales.
    may_saturate : bool
        Whether elements outside the window's exact range, or through a small factor outside of
        the quantizer's limits, can come in.
    consumers : list of DenseInfo
        In program order.
    has_factors, has_bands : bool
        Whether the quantizer's step has factors, and whether bands are clipped to the window.
    rows : int or None
        M, if that is static.
    """

    label: str
    digit_bits: int
    window: str
    columns: int
    quantizes: bool
    may_saturate: bool
    consumers: list[DenseInfo] = field(default_factory=list)
    has_factors: bool = False
    has_bands: bool = False
    rows: int | None = None


@visitor
class _Describe(PyExprVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.encodings: dict[Any, EncodingInfo] = {}
        self.hidden: list[str] = []

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = binding.value
        if dialect.is_op(value, "encode", "quantize_encode"):
            self.encodings[binding.var] = _describe_encoding(value)
        elif dialect.is_op(value, "split_dense", "split_dense_scaled"):
            read = self.encodings.get(value.args[0])
            if read is not None:
                read.consumers.append(_describe_dense(value))
        elif isinstance(value, relax.Var) and value in self.encodings:
            self.encodings[binding.var] = self.encodings[value]
        elif isinstance(value, relax.If):
            inside = _Describe()
            inside.visit_expr(value)
            self.hidden += [info.label for info in inside.encodings.values()] + inside.hidden


def _describe_encoding(call: relax.Call) -> EncodingInfo:
    attrs = dialect.attributes(call)
    limit = max_exact(attrs["k"], attrs["window"])
    exceeds = attrs["window"] == "signed" and attrs.get("qmax", limit + 1) > limit
    *lead, columns = call.args[0].ty.shape.values
    static = all(hasattr(extent, "value") for extent in lead)
    return EncodingInfo(
        label=attrs["label"],
        digit_bits=attrs["k"],
        window=attrs["window"],
        columns=int(columns),
        quantizes="qmax" in attrs,
        may_saturate=exceeds or len(call.args) > 1,
        has_factors=len(call.args) > 1,
        has_bands=len(call.args) > 2,
        rows=math.prod(int(extent) for extent in lead) if static else None,
    )


def _describe_dense(call: relax.Call) -> DenseInfo:
    attrs = dialect.attributes(call)
    scaled = dialect.is_op(call, "split_dense_scaled")
    outputs, columns = (int(d) for d in call.args[2 if scaled else 1].ty.shape.values)
    return DenseInfo(
        label=attrs["label"],
        n=outputs,
        k=columns,
        weight_bits=attrs["weight_bits"],
        group_size=attrs.get("group_size", 0),
        has_min=scaled and dialect.scaled_operands(call)[0] is not None,
    )


def _describe(func: relax.Function) -> tuple[list[EncodingInfo], list[str]]:
    """The encodings of the outermost blocks in program order, and the labels of all others."""
    describe = _Describe()
    describe.visit_expr(func.body)
    unique: list[EncodingInfo] = []
    for info in describe.encodings.values():
        if not any(info is seen for seen in unique):
            unique.append(info)
    return unique, describe.hidden


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

    def observe(self, encoding: relax.Var, call: relax.Call, info: EncodingInfo) -> None:
        """Return PBM, scales, and how many elements were saturated and clipped to the window."""
        self.bind(relax.TupleGetItem(encoding, dialect.PBM_FIELD), output=True)
        if info.quantizes:
            self.bind(relax.TupleGetItem(encoding, dialect.SCALE_FIELD), output=True)
        if not info.may_saturate:
            return
        q, limit = call.args[0], max_exact(info.digit_bits, info.window)
        if info.quantizes:
            q = self._rounded(call, self.outputs[-1])
        dtype = str(q.ty.dtype)
        if not info.has_factors:
            self._count(relax.op.greater(q, relax.const(limit, dtype)))
            return
        qmax = dialect.attributes(call)["qmax"]
        limit = min(qmax, limit)
        above = self.bind(relax.op.greater(q, relax.const(limit, dtype)))
        below = self.bind(relax.op.less(q, relax.const(-qmax, dtype)))
        self._count(relax.op.logical_or(above, below))
        if info.has_bands:
            self._count_clipped(self.bind(relax.op.clip(q, -qmax, limit)), call.args[2], info)

    def _rounded(self, call: relax.Call, scale: relax.Var) -> relax.Var:
        """``round(x / step)`` in float32, not limited yet."""
        step = scale
        if len(call.args) > 1:
            step = self.bind(relax.op.multiply(scale, call.args[1]))
        return self.bind(relax.op.round(self.bind(relax.op.divide(call.args[0], step))))

    def _count(self, condition: relax.Expr) -> None:
        """Return how many elements meet a condition."""
        met = self.bind(relax.op.astype(self.bind(condition), "int32"))
        self.bind(relax.op.sum(met), output=True)

    def _count_clipped(self, q: relax.Var, bands: relax.Expr, info: EncodingInfo) -> None:
        """Return how many elements lie in the bands."""
        sides = self.bind(relax.op.split(self.bind(relax.op.astype(bands, "float32")), 2, axis=0))
        lo, hi = (
            self.bind(relax.op.reshape(self.bind(relax.TupleGetItem(sides, i)), (info.columns,)))
            for i in (0, 1)
        )
        low, high = (relax.const(v, "float32") for v in window_limits(info.digit_bits, info.window))
        op = relax.op
        below = op.logical_and(self.bind(op.less(q, low)), self.bind(op.greater_equal(q, lo)))
        above = op.logical_and(self.bind(op.greater(q, high)), self.bind(op.less_equal(q, hi)))
        self._count(op.logical_or(self.bind(below), self.bind(above)))


def _with_observations(func: relax.Function, infos: list[EncodingInfo]) -> relax.Function:
    """``func`` returning ``(result, (pbm, [scale], [saturated], [clipped], pbm, ..))``."""
    remaining = iter(infos)
    outputs: list[relax.Var] = []
    blocks = []
    for block in func.body.blocks:
        observer = _Observer(block)
        for binding in block.bindings:
            if dialect.is_op(binding.value, "encode", "quantize_encode"):
                observer.observe(binding.var, binding.value, next(remaining))
        outputs += observer.outputs
        blocks.append(type(block)(observer.bindings))
    body = relax.Tuple([func.body.body, relax.Tuple(outputs)])
    seq = relax.BlockBuilder().normalize(relax.SeqExpr(blocks, body))
    changed = relax.Function(func.params, seq, None, func.is_pure, func.attrs)
    return changed.with_attr(COLLECTED, True)


@tvm.transform.module_pass(opt_level=0, name="CollectEncodings")
class CollectEncodings:
    """Make functions return the precision bitmaps (and scales) of their encodings as well.

    Precondition: the encodings stand in the outermost blocks of a function that no other function
    calls. Where the window may saturate, the number of elements above it is returned, too; with
    bands, so is the number of elements that they clip.

    Before::

        enc = R.sparqle.quantize_encode(x, label="up", ...)
        return y

    After::

        enc = R.sparqle.quantize_encode(x, label="up", ...)
        observed_0 = enc[1]  # the PBM
        observed_1 = enc[4]  # the scales
        return (y, (observed_0, observed_1))

    Parameters
    ----------
    report : PassReport, optional
        Takes the number of functions changed.

    Attributes
    ----------
    collected : dict of str to list of EncodingInfo
        After the pass: for each function that has encodings, what it returns, in order.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        self.report = report if report is not None else PassReport()
        self.collected: dict[str, list[EncodingInfo]] = {}

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        changed, called = mod.clone(), called_functions(mod)
        for gv, func in relax_functions(mod):
            name = str(gv.name_hint)
            infos, hidden = _describe(func)
            for label in hidden:
                self._skip(label, "stands in a branch")
            if not infos:
                continue
            if name in called:
                for info in infos:
                    self._skip(info.label, f"its function {name} is called by another one")
                continue
            self.collected[name] = infos
            if func.attrs is None or COLLECTED not in func.attrs:
                changed.update_func(gv, _with_observations(func, infos))
                self.report.rewrite("CollectEncodings")
        return changed

    def _skip(self, label: str, reason: str) -> None:
        self.report.skip("CollectEncodings", "encode", label, reason)
