"""Return what encodings quantize, and what their dense ops give, beside a function's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.passes._encodings import Encodings
from sparqle_tvm.passes._report import PassReport, Skipped
from sparqle_tvm.passes._rewrite import (
    ReportingPass,
    also_returning,
    has_mark,
    relax_functions,
)

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
    scale_bytes : int
        Bytes of a scale of a group.
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
    scale_bytes: int
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
        Largest quantized magnitude; 0 if the input is quantized already.
    digit_bits : int
        k, bits of a digit.
    window : str
        ``"signed"`` or ``"unsigned"``.
    dense : list of ObservedDense
        In program order.
    dtype : str
        Of the input: float32, or of the integers that it is.
    zero_point : int
        The integer that stands for 0.
    """

    label: str
    columns: int
    qmax: int
    digit_bits: int
    window: str
    dense: list[ObservedDense]
    dtype: str = "float32"
    zero_point: int = 0


Observation = tuple[ActivationInfo, ObservedDense | None, str]
"""What one returned tensor is: ``"input"`` of an encoding, ``"output"`` of a dense op that reads
it, or the ``"stream"`` that output was added to."""


_ADD, _RESHAPE = tvm.ir.Op.get("relax.add"), tvm.ir.Op.get("relax.reshape")


class _Find:
    """The encodings of a function and their dense ops, with what is returned of them.

    Attributes
    ----------
    infos : dict of relax.Var to ActivationInfo
        By the variables of the encodings.
    returned : dict of relax.Var to tuple of relax.Expr and Observation
        By the variable whose binding it follows: what is returned, and what that is.
    hidden : list of str
        Labels of encodings with zero points of run time, of which nothing is returned.
    """

    def __init__(self, func: relax.Function) -> None:
        self.infos: dict[Any, ActivationInfo] = {}
        self.returned: dict[Any, tuple[relax.Expr, Observation]] = {}
        self.hidden: list[str] = []
        self.bound = Encodings(func)
        for var, value in self.bound.values.items():
            if var in self.bound.inner:
                continue
            if var in self.bound.encoders:
                self._add_encoding(var, self.bound.encoders[var])
            elif var in self.bound.dense:
                self._add_dense(var, self.bound.dense[var])
            elif isinstance(value, relax.Call) and value.op == _ADD:
                self._add_stream(var, value)

    def _add_encoding(self, var: Any, op: dialect.Encoder) -> None:
        if op.zero_points is not None:
            self.hidden.append(op.label)
            return
        dtype = str(op.x.ty.dtype)
        facts = (op.label, op.columns, op.qmax, op.k, op.window)
        info = ActivationInfo(*facts, [], dtype, op.zero_point)
        self.infos[var], self.returned[var] = info, (op.x, (info, None, "input"))

    def _add_dense(self, var: Any, op: dialect.Dense) -> None:
        info = self.infos.get(self.bound.variable(op.encoding))
        if info is None or isinstance(op, dialect.SplitDenseEncoded):
            return
        dense = self._dense(op)
        info.dense.append(dense)
        if dense.returned:
            self.returned[var] = var, (info, dense, "output")

    def _add_stream(self, var: Any, call: relax.Call) -> None:
        """Note a sum of a dense op's output and another tensor of the same shape."""
        for operand, other in (call.args, call.args[::-1]):
            source = self._source(operand)
            if source not in self.returned:
                continue
            info, dense, kind = self.returned[source][1]
            same = tvm_ffi.structural_equal(operand.ty, other.ty)
            if dense is None or kind != "output" or dense.stream:
                continue
            if same and self._constant(other) is None:
                dense.stream = True
                self.returned[var] = var, (info, dense, "stream")
                return

    def _source(self, expr: Any) -> Any:
        """The variable that `expr` holds, perhaps in another shape."""
        while True:
            expr = self.bound.variable(expr)
            value = self.bound.values.get(expr)
            if not isinstance(value, relax.Call) or value.op != _RESHAPE:
                return expr
            expr = value.args[0]

    def _dense(self, op: dialect.Dense) -> ObservedDense:
        return ObservedDense(
            label=op.label,
            out_features=op.out_features,
            weight_bits=op.weight_bits,
            group_size=op.group_size,
            scale_bytes=op.scale_bytes,
            weight=self._constant(op.weight),
            scale=self._constant(op.w_scale) if isinstance(op, dialect.ScaledDense) else None,
            minimum=self._constant(op.w_min),
            returned=isinstance(op, dialect.ScaledDense),
        )

    def _constant(self, expr: relax.Expr | None) -> Any:
        value = self.bound.resolve(expr)
        return value if isinstance(value, Constant) else None


def _observed(func: relax.Function, found: _Find) -> relax.Function:
    """``func`` returning ``(result, (x, y, .., x, ..))``."""
    order: list[relax.Var] = []
    blocks = []
    for block in func.body.blocks:
        bindings = []
        for binding in block.bindings:
            bindings.append(binding)
            if binding.var in found.returned:
                source, _ = found.returned[binding.var]
                order.append(relax.Var("observed", source.ty))
                bindings.append(relax.VarBinding(order[-1], source))
        blocks.append(type(block)(bindings))
    return also_returning(func, blocks, order, OBSERVED)


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
            found = _Find(func)
            for label in found.hidden:
                reason = "its zero point comes at run time, so its window is not measured"
                self.report.skip(Skipped(self.name, str(gv.name_hint), "encode", label, reason))
            if not found.infos:
                continue
            self.collected[str(gv.name_hint)] = [what for _, what in found.returned.values()]
            if not has_mark(func, OBSERVED):
                changed.update_func(gv, _observed(func, found))
                self.report.rewrite(self.name)
        return changed
