"""What the verifier's kernels are written with: `sparqle_tvm.tirscript`, and conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from sparqle_tvm.tirscript import Array, Scalar, all_of, either, loop, scratch, size, when

__all__ = [
    "Array",
    "Scalar",
    "all_of",
    "any_of",
    "either",
    "function",
    "int64",
    "larger",
    "loop",
    "negation",
    "once",
    "parameter",
    "quotient",
    "remainder",
    "repeat",
    "scratch",
    "size",
    "when",
]


def function(name: str, body: Callable[[], None]) -> Any:
    """Build a PrimFunc: `body` declares its parameters with :func:`parameter`, then its work."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            body()
        return builder.get()


def parameter(name: str, dtype: str, *shape: Any) -> Array:
    """Declare the next parameter: an array of any alignment that NumPy gives."""
    return Array(T.arg(name, T.buffer(shape, dtype, align=np.dtype(dtype).itemsize)))


def repeat(*conditions: Any) -> Any:
    """Context manager of a loop that goes on while all conditions hold."""
    return T.While(all_of(*conditions))


def any_of(*conditions: Any) -> Any:
    """Any of the conditions."""
    return tirx.any(*conditions) if len(conditions) > 1 else conditions[0]


def negation(condition: Any) -> Any:
    """Not the condition."""
    return tirx.Not(condition)


def once(condition: Any) -> Any:
    """The condition as it is here, whatever changes after this."""
    return Scalar("int32", T.Cast("int32", condition)).value != 0


def int64(value: Any) -> Any:
    """Convert to int64."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else T.Cast("int64", value)


def quotient(a: Any, b: Any) -> Any:
    """``a // b`` for a >= 0, b > 0."""
    return T.truncdiv(a, b)


def remainder(a: Any, b: Any) -> Any:
    """``a % b`` for a >= 0, b > 0."""
    return T.truncmod(a, b)


def larger(a: Any, b: Any) -> Any:
    """The larger of two."""
    return T.max(a, b)
