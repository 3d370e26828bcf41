"""Return the encodings' bitmaps beside a function's result, for counting and reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, visitor

from sparqle_tvm import dialect
from sparqle_tvm.numerics import max_exact
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import relax_functions

PBM_FIELD, SCALE_FIELD = 1, 4


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
        Whether elements outside the window's exact range can come in.
    consumers : list of DenseInfo
        In program order.
    """

    label: str
    digit_bits: int
    window: str
    columns: int
    quantizes: bool
    may_saturate: bool
    consumers: list[DenseInfo] = field(default_factory=list)


@visitor
class _Describe(PyExprVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.encodings: dict[Any, EncodingInfo] = {}

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


def _describe_encoding(call: relax.Call) -> EncodingInfo:
    attrs = dialect.attributes(call)
    return EncodingInfo(
        label=attrs["label"],
        digit_bits=attrs["k"],
        window=attrs["window"],
        columns=int(call.args[0].ty.shape.values[-1]),
        quantizes="qmax" in attrs,
        may_saturate="qmax" not in attrs and attrs["window"] == "signed",
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
        has_min=len(call.args) == 7,
    )


def describe_encodings(func: relax.Function) -> list[EncodingInfo]:
    """The encodings of a function in program order, with the dense ops that read each."""
    describe = _Describe()
    describe.visit_expr(func.body)
    unique: list[EncodingInfo] = []
    for info in describe.encodings.values():
        if not any(info is seen for seen in unique):
            unique.append(info)
    return unique


def _observed(var: relax.Var, call: relax.Call, info: EncodingInfo) -> list[relax.Expr]:
    """What is returned for one encoding: its PBM, its scales, its count of saturated elements."""
    fields = [relax.TupleGetItem(var, PBM_FIELD)]
    if info.quantizes:
        fields.append(relax.TupleGetItem(var, SCALE_FIELD))
    if info.may_saturate:
        limit = max_exact(info.digit_bits, "signed")
        over = relax.op.greater(call.args[0], relax.const(limit, call.args[0].ty.dtype.dtype))
        fields.append(relax.op.sum(relax.op.astype(over, "int32")))
    return fields


def _with_observations(func: relax.Function, infos: list[EncodingInfo]) -> relax.Function:
    """``func`` returning ``(result, (pbm, [scale], [saturated], pbm, ..))``."""
    remaining = iter(infos)
    outputs: list[relax.Var] = []
    builder = relax.BlockBuilder()
    blocks = []
    for block in func.body.blocks:
        bindings = list(block.bindings)
        found: list[relax.Expr] = []
        for binding in bindings:
            if dialect.is_op(binding.value, "encode", "quantize_encode"):
                found += _observed(binding.var, binding.value, next(remaining))
        for expr in found:
            # Nested operands of the count get variables of their own by Normalize, below.
            value = builder.normalize(expr) if isinstance(expr, relax.TupleGetItem) else expr
            if not isinstance(expr, relax.TupleGetItem):
                value, extra = _flatten(builder, expr)
                bindings += extra
            var = relax.Var(f"observed_{len(outputs)}", value.ty)
            bindings.append(relax.VarBinding(var, value))
            outputs.append(var)
        blocks.append(type(block)(bindings))
    body = relax.Tuple([func.body.body, relax.Tuple(outputs)])
    seq = builder.normalize(relax.SeqExpr(blocks, body))
    return relax.Function(func.params, seq, None, func.is_pure, func.attrs)


def _flatten(builder: relax.BlockBuilder, expr: relax.Call) -> tuple[relax.Expr, list[Any]]:
    """A call whose nested call operands are bound to dataflow variables first."""
    extra: list[Any] = []
    args = []
    for arg in expr.args:
        if isinstance(arg, relax.Call):
            value, inner = _flatten(builder, arg)
            var = relax.DataflowVar("count", value.ty)
            extra += [*inner, relax.VarBinding(var, value)]
            args.append(var)
        else:
            args.append(arg)
    return builder.normalize(relax.Call(expr.op, args, expr.attrs, expr.ty_args)), extra


@tvm.transform.module_pass(opt_level=0, name="CollectEncodings")
class CollectEncodings:
    """Make functions return the precision bitmaps (and scales) of their encodings as well.

    Precondition: the encodings stand in the outermost blocks of a function.

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
        changed = mod.clone()
        for gv, func in relax_functions(mod):
            infos = describe_encodings(func)
            if not infos:
                continue
            self.collected[str(gv.name_hint)] = infos
            changed.update_func(gv, _with_observations(func, infos))
            self.report.rewrite("CollectEncodings")
        return changed
