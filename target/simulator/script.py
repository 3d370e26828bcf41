"""What the simulator's kernels are written with: `sparqle_tvm.tirscript`, functions and copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from sparqle_tvm.tirscript import (
    Array,
    Scalar,
    cast,
    either,
    int64,
    loop,
    parallel,
    scratch,
    size,
    spread,
    vector,
    when,
)

__all__ = [
    "Array",
    "Scalar",
    "cast",
    "ceil_div",
    "copy_bytes",
    "either",
    "function",
    "int64",
    "loop",
    "parallel",
    "parameter",
    "scratch",
    "size",
    "spread",
    "vector",
    "when",
]


def function(name: str, body: Callable[[], None]) -> Any:
    """Build a PrimFunc: `body` declares its parameters with :func:`parameter`, then its work."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True})
            body()
        return builder.get()


def parameter(name: str, dtype: str, *shape: Any) -> Array:
    """Declare the next parameter: an array that begins at a multiple of 64 bytes."""
    return Array(T.arg(name, T.buffer(shape, dtype)))


def ceil_div(a: Any, b: Any) -> Any:
    """``ceil(a / b)`` for a >= 0, b > 0."""
    return T.truncdiv(a + (b - 1), int64(b))


def copy_bytes(destination: Any, source: Any, nbytes: Any) -> None:
    """``memcpy``."""
    T.evaluate(T.call_extern("handle", "memcpy", destination, source, nbytes))
