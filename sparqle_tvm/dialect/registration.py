"""Registration of the ops with TVM."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import _ffi_api as _ir_ffi

from sparqle_tvm import errors
from sparqle_tvm.dialect.infer import RULES
from sparqle_tvm.dialect.ops import OPS, PREFIX, Op

# Of attributes that are set once; TVM takes the highest.
_LEVEL = 10


def register() -> None:
    """Make the dialect known to TVM and to its TVMScript parser. Idempotent."""
    from tvm.relax.script import parser as relax_parser
    from tvm.script import relax as relax_script

    # Type inference runs inside C++: without this its errors would come out as RuntimeError.
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.SparqleError):
            tvm_ffi.register_error(f"sparqle_tvm.{error.__name__}", error)
    # And Ctrl-C while it calls back into Python, as MetaSchedule's search does.
    tvm_ffi.register_error("KeyboardInterrupt", KeyboardInterrupt)
    known = set(tvm.ir.Op.list_op_names())
    for name, declared in OPS.items():
        if PREFIX + name in known:
            continue
        _ir_ffi.RegisterOp(PREFIX + name, (declared.__doc__ or "").split("\n")[0])
        op = tvm.ir.Op.get(PREFIX + name)
        op.set_num_inputs(declared.operand_count())
        _ir_ffi.OpSetAttr(op, "FInferType", _inference(declared), _LEVEL)
        _ir_ffi.OpSetAttr(op, "FPurity", True, _LEVEL)
    namespace = types.SimpleNamespace(**{name: op.build for name, op in OPS.items()})
    for module in (relax_script, relax_parser):
        if not hasattr(module, "sparqle"):
            module.sparqle = namespace


def register_legalization(
    name: str, legalize: Callable[[relax.BlockBuilder, relax.Call], relax.Expr]
) -> None:
    """Let ``relax.transform.LegalizeOps`` lower an op by a function. Idempotent: the first stays.

    Parameters
    ----------
    name : str
        Of the op, without prefix.
    legalize : callable
        Given a builder and a call, returns what stands for the call.
    """
    op = tvm.ir.Op.get(PREFIX + name)
    if op.get_attr("FLegalize") is None:
        _ir_ffi.OpSetAttr(op, "FLegalize", legalize, _LEVEL)


def _inference(declared: type[Op]) -> Callable[[relax.Call, Any], relax.Type]:
    rule = RULES[declared]
    return lambda call, _builder: rule(declared.of(call))
