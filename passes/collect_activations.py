"""Return what encodings quantize, and what their dense ops give, beside a function's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr_functor import PyExprVisitor, visitor

from sparqle_tvm import dialect
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._report import PassReport
from sparqle_tvm.passes._rewrite import ReportingPass, relax_functions

# Attribute of a function that returns its activations already.
OBSERVED = "sparqle_observed"


@dataclass(eq=False)
class ObservedDense:
    """A dense op that reads an observed encoding.

    Attributes
    ----------
    label : str
        Name of the op.
    out_features, weight_bits, group_size : int
        N, bits of a weight, and channels that share a scale (0: all).
    weight, scale, minimum : relax constant or None
        (N, K) int8; (N,) float32 or (N, G) float16; (N, G) float16. None where there is none, or
        where it is no constant.
    returned : bool
        Whether the function returns the op's float32 output.
    stream : bool
        Whether that output is added to another tensor (a residual stream); then the function
        returns their sum, too, right after the output.
    """

    label: str
    out_features: int
    weight_bits: int
    group_size: int
    weight: Any
    scale: Any
    minimum: Any
    returned: bool
    stream: bool = False


@dataclass(frozen=True, eq=False)
class ActivationInfo:
    """One encoding whose input a function returns, and the dense ops that read it.

    Attributes
    ----------
    label : str
        Name of the encoding.
    columns : int
        K.
    qmax : int
        Largest quantized magnitude; 0 if the input is quantized already (then it is int8).
    digit_bits : int
        k, bits of a digit.
    window : str
        ``"signed"`` or ``"unsigned"``.
    dense : list of ObservedDense
        In program order.
    """

    label: str
    columns: int
    qmax: int
    digit_bits: int
    window: str
    dense: list[ObservedDense]


Observation = tuple[ActivationInfo, ObservedDense | None, str]
"""What one returned tensor is: ``"input"`` of an encoding, ``"output"`` of a dense op that reads
it, or the ``"stream"`` that output was added to."""


_ADD, _RESHAPE = tvm.ir.Op.get("relax.add"), tvm.ir.Op.get("relax.reshape")


@visitor
class _Find(PyExprVisitor):
    """Encodings of a function and their dense ops, with the variables that hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[Any, relax.Expr] = {}
        self.infos: dict[Any, ActivationInfo] = {}
        self.wanted: dict[Any, relax.Expr] = {}
        self.owners: dict[Any, Observation] = {}

    def observations(self) -> list[Observation]:
        """What the function returns, in order: encodings and dense ops as they are bound."""
        return [self.owners[var] for var in self.wanted]

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = self.values[binding.var] = binding.value
        op = dialect.Op.of(value)
        if isinstance(op, dialect.Encoder):
            info = ActivationInfo(op.label, op.columns, op.qmax, op.k, op.window, [])
            self.infos[binding.var] = info
            self.wanted[binding.var] = op.x
            self.owners[binding.var] = (info, None, "input")
        elif isinstance(op, dialect.SplitDense | dialect.SplitDenseScaled):
            encoding = op.encoding
            while isinstance(self.values.get(encoding), relax.Var):
                encoding = self.values[encoding]
            if encoding in self.infos:
                dense = self._dense(op)
                self.infos[encoding].dense.append(dense)
                if dense.returned:
                    self.wanted[binding.var] = binding.var
                    self.owners[binding.var] = (self.infos[encoding], dense, "output")
        elif isinstance(value, relax.Call) and value.op == _ADD:
            self._add(binding.var, value)

    def _add(self, var: Any, call: relax.Call) -> None:
        """Note a sum of a dense op's output and another tensor of the same shape."""
        for operand, other in (call.args, call.args[::-1]):
            source = self._source(operand)
            if source not in self.owners:
                continue
            info, dense, kind = self.owners[source]
            same = tvm_ffi.structural_equal(operand.ty, other.ty)
            if dense is None or kind != "output" or dense.stream:
                continue
            if same and self._constant(other) is None:
                dense.stream = True
                self.wanted[var] = var
                self.owners[var] = (info, dense, "stream")
                return

    def _source(self, expr: Any) -> Any:
        """The variable that `expr` holds, perhaps in another shape."""
        while True:
            value = self.values.get(expr)
            if isinstance(value, relax.Var):
                expr = value
            elif isinstance(value, relax.Call) and value.op == _RESHAPE:
                expr = value.args[0]
            else:
                return expr

    def _dense(self, op: dialect.Dense) -> ObservedDense:
        return ObservedDense(
            label=op.label,
            out_features=op.out_features,
            weight_bits=op.weight_bits,
            group_size=op.group_size,
            weight=self._constant(op.weight),
            scale=self._constant(op.w_scale) if isinstance(op, dialect.ScaledDense) else None,
            minimum=self._constant(op.w_min),
            returned=isinstance(op, dialect.ScaledDense),
        )

    def _constant(self, expr: relax.Expr | None) -> Any:
        while expr in self.values:
            expr = self.values[expr]
        return expr if isinstance(expr, Constant) else None


def _observed(func: relax.Function, found: _Find) -> relax.Function:
    """``func`` returning ``(result, (x, y, .., x, ..))``."""
    order: list[relax.Var] = []
    blocks = []
    for block in func.body.blocks:
        bindings = []
        for binding in block.bindings:
            bindings.append(binding)
            source = found.wanted.get(binding.var)
            if source is not None:
                order.append(relax.Var("observed", source.ty))
                bindings.append(relax.VarBinding(order[-1], source))
        blocks.append(type(block)(bindings))
    body = relax.Tuple([func.body.body, relax.Tuple(order)])
    seq = relax.BlockBuilder().normalize(relax.SeqExpr(blocks, body))
    changed = relax.Function(func.params, seq, None, func.is_pure, func.attrs)
    return changed.with_attr(OBSERVED, True)


@tvm.transform.module_pass(opt_level=0)
class CollectActivations(ReportingPass):
    """Make functions return the inputs of their encodings and the outputs of their dense ops.

    An output that is added to another tensor (not to a constant) comes with that sum.

    Precondition: the encodings stand in the outermost blocks of functions that no other function
    calls; run it last, right before the lowering.

    Before::

        enc = R.sparqle.quantize_encode(x, label="up", ...)
        y = R.sparqle.split_dense_scaled(enc, ...)
        return z

    After::

        enc = R.sparqle.quantize_encode(x, label="up", ...)
        observed = x
        y = R.sparqle.split_dense_scaled(enc, ...)
        observed_1 = y
        return (z, (observed, observed_1))

    Attributes
    ----------
    collected : dict of str to list of Observation
        After the pass: what each function returns, in order.
    """

    def __init__(self, *, report: PassReport | None = None) -> None:
        super().__init__(report=report)
        self.collected: dict[str, list[Observation]] = {}

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply the pass to every Relax function of a copy of ``mod``."""
        changed = mod.clone()
        for gv, func in relax_functions(mod):
            found = _Find()
            for block in func.body.blocks:
                for binding in block.bindings:
                    if isinstance(binding, relax.VarBinding):
                        found.visit_var_binding_(binding)
            if not found.infos:
                continue
            self.collected[str(gv.name_hint)] = found.observations()
            if func.attrs is None or OBSERVED not in func.attrs:
                changed.update_func(gv, _observed(func, found))
                self.report.rewrite(self.name)
        return changed
