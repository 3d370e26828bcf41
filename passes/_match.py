"""Reading expressions: ops, constants, shapes and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparqle_tvm.passes._constants import Constant


def op_name(expr: Any) -> str:
    """Name of the op that ``expr`` calls, ``""`` if it is no call of an op."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name)
    return ""


def const_value(expr: Any) -> np.ndarray | None:
    """The value of a Relax constant, ``None`` for anything else."""
    return expr.value.numpy() if isinstance(expr, Constant) else None


def const_scalar(expr: Any) -> float | None:
    """The value of a constant with one element, or of a scalar literal; else ``None``."""
    value = const_value(expr)
    if value is not None:
        return float(value.reshape(-1)[0]) if value.size == 1 else None
    literal = getattr(expr, "value", None)
    return float(literal) if isinstance(literal, int | float) else None


def call_operands(call: relax.Call) -> list[Any]:
    """What a ``call_tir`` or ``call_dps_packed`` is given."""
    given = call.args[1]
    return list(given.fields) if isinstance(given, relax.Tuple) else [given]


def static_shape(expr: Any) -> list[int] | None:
    """The shape of a tensor expression if it is known and free of symbols, else ``None``."""
    dims = _known_dims(expr)
    if dims is None or not all(hasattr(d, "value") for d in dims):
        return None
    return [int(d) for d in dims]


def dims_of(expr: Any) -> list[Any]:
    """The (maybe symbolic) shape of a tensor expression, empty if it is not known."""
    return _known_dims(expr) or []


def _known_dims(expr: Any) -> list[Any] | None:
    ty = expr.ty
    known = isinstance(ty, relax.TensorType) and ty.shape is not None
    return list(ty.shape.values) if known else None


def int_shape(expr: Any) -> list[int]:
    """The shape of a tensor expression that is known to be static."""
    return [int(d) for d in expr.ty.shape.values]


def axes_of(axes: Any) -> list[int]:
    """The axes of an op's attribute, none if it is not set."""
    return [int(axis) for axis in axes] if axes is not None else []


def dtype_of(expr: Any) -> str:
    """Dtype of a tensor expression, ``""`` for anything else."""
    return str(expr.ty.dtype) if isinstance(expr.ty, relax.TensorType) else ""


def same_dims(a: list[Any], b: list[Any]) -> bool:
    """Whether two (maybe symbolic) shapes are provably equal."""
    if len(a) != len(b):
        return False
    analyzer = tvm.sym.Analyzer()
    return all(analyzer.can_prove_equal(x, y) for x, y in zip(a, b, strict=True))
