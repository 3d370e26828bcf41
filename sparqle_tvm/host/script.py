"""What the host kernels are written with: `tirscript`, and PrimFuncs that Relax takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx
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
    spread,
    vector,
    when,
)

__all__ = [
    "Array",
    "Scalar",
    "build",
    "cast",
    "either",
    "fixed",
    "for_rows",
    "int64",
    "lead_dims",
    "loop",
    "parallel",
    "scratch",
    "vector",
    "when",
]

# The attribute by which Relax knows that a PrimFunc must not be fused with its neighbours.
_OPAQUE_PATTERN = 8


def build(
    name: str, parameters: Mapping[str, tuple[Any, ...] | None], body: Callable[..., None]
) -> tirx.PrimFunc:
    """Build a PrimFunc.

    Parameters
    ----------
    name : str
        Its name.
    parameters : mapping
        Name to (dtype, dimension, ...) of each parameter, in order; None if there is none.
    body : callable
        Writes the function's work. Called with an :class:`Array` (or None) for each parameter, by
        keyword.
    """
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE_PATTERN})
            arrays = {
                key: Array(T.arg(key, T.buffer(what[1:], what[0]))) if what else None
                for key, what in parameters.items()
            }
            # Passes of Relax expect a root block; what it reads and writes is of no use to them.
            with T.sblock("root"):
                T.reads()
                T.writes()
                body(**arrays)
        return builder.get()


def fixed(value: Any) -> Any:
    """An index computed once, here.

    Besides saving repeated work, it keeps divisions and conditions out of the expressions that
    TVM's lowering passes analyse at every access, which takes them seconds.
    """
    return Scalar("int64", int64(value)).value


def for_rows(rows: Any, threshold: int, work: Callable[[Any], None]) -> None:
    """Call ``work(row)`` in parallel, or serially if there are fewer rows than `threshold`."""
    spread(rows, rows >= threshold, work)


def lead_dims(count: int) -> tuple[list[tirx.Var], Any]:
    """Symbolic leading dimensions of an activation, and their product M (1 without any)."""
    dims = [tirx.Var(f"d{i}", "int64") for i in range(count)]
    rows: Any = int64(1)
    for i, dim in enumerate(dims):
        rows = dim if i == 0 else rows * dim
    return dims, rows
