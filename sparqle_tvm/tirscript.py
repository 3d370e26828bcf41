"""A thin layer over TVM's IRBuilder, so that kernels read like the loops they are.

TVMScript would need its parser for every kernel, and its parser takes seconds for code that is
composed of shared pieces. Here the pieces are Python functions, what is known when a kernel is
built is plain Python (``for`` over ``range`` unrolls), and the rest is written with
:class:`Array`, :func:`loop`, :func:`parallel` and :func:`when`. Loop variables and indices are
int64. An expression is computed where it is used, from what memory holds then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T


class Array:
    """A TIR buffer that is read and written with brackets.

    Parameters
    ----------
    buffer : tvm.tirx.Buffer
        What it stands for.
    """

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def __getitem__(self, index: Any) -> Any:
        """Read an element, or a vector of them (see :func:`vector`)."""
        return self.buffer[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write an element or a vector; a Python number gets the array's type."""
        if isinstance(value, bool | int | float):
            value = tirx.const(value, self.dtype)
        T.buffer_store(self.buffer, value, index if isinstance(index, tuple) else [index])

    @property
    def dtype(self) -> str:
        """Element type."""
        return str(self.buffer.dtype)

    def reshape(self, *shape: Any) -> Array:
        """The same memory with another shape."""
        return self.view(self.dtype, *shape)

    def view(self, dtype: str, *shape: Any) -> Array:
        """The same memory as another type and shape."""
        return Array(T.decl_buffer(shape, dtype, data=self.buffer.data))

    def at(self, *index: Any) -> Any:
        """Address of an element."""
        return T.address_of(self.buffer[index])


class Scalar:
    """A variable of one element; LLVM keeps it in a register.

    Parameters
    ----------
    dtype : str
        Its type.
    value : int, float or PrimExpr
        Its first value.
    """

    def __init__(self, dtype: str, value: Any) -> None:
        self._array = scratch(dtype, 1)
        self._array[0] = value

    @property
    def value(self) -> Any:
        """Read the variable."""
        return self._array[0]

    def set(self, value: Any) -> None:
        """Write the variable."""
        self._array[0] = value

    def add(self, value: Any) -> None:
        """Add to the variable."""
        self._array[0] = self._array[0] + value


def scratch(dtype: str, *shape: Any) -> Array:
    """Allocate memory for the current scope; small constant sizes lie on the stack."""
    return Array(T.alloc_buffer(shape, dtype))


def size(name: str) -> Any:
    """A dimension that is known at run time."""
    return tirx.Var(name, "int64")


def int64(value: Any) -> Any:
    """An index: Python integers become int64, expressions stay what they are."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def loop(count: Any) -> Any:
    """Context manager of a serial loop; gives the loop variable."""
    return T.serial(int64(count))


def parallel(count: Any) -> Any:
    """Context manager of a loop over threads; gives the loop variable."""
    return T.parallel(int64(count))


def repeat(*conditions: Any) -> Any:
    """Context manager of a loop that goes on while all conditions hold."""
    return T.While(all_of(*conditions))


def all_of(*conditions: Any) -> Any:
    """All of the conditions. Every one is computed, also behind the first that fails."""
    return tirx.all(*conditions) if len(conditions) > 1 else conditions[0]


def any_of(*conditions: Any) -> Any:
    """Any of the conditions; every one is computed."""
    return tirx.any(*conditions) if len(conditions) > 1 else conditions[0]


@contextmanager
def when(*conditions: Any) -> Iterator[None]:
    """Do what is written inside only if all conditions hold at run time."""
    with T.If(all_of(*conditions)), T.Then():
        yield


def either(condition: Any, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Do `then` if `condition` holds at run time, `otherwise` if not."""
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


def spread(count: Any, threads: Any, work: Callable[[Any], None]) -> None:
    """Call ``work(i)`` for i < `count`, over the threads if the condition `threads` holds."""

    def run(kind: Callable[[Any], Any]) -> None:
        with kind(count) as i:
            work(i)

    either(threads, lambda: run(parallel), lambda: run(loop))


def vector(start: Any, lanes: int) -> Any:
    """Index of `lanes` consecutive elements."""
    return T.ramp(int64(start), int64(1), lanes)


def cast(dtype: str, value: Any, lanes: int = 1) -> Any:
    """Convert, to a vector of `lanes` elements if there is more than one."""
    return T.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def ceil_div(a: Any, b: Any) -> Any:
    """``ceil(a / b)`` for a >= 0, b > 0."""
    return T.truncdiv(a + (b - 1), int64(b))


def copy_bytes(destination: Any, source: Any, nbytes: Any) -> None:
    """``memcpy``."""
    T.evaluate(T.call_extern("handle", "memcpy", destination, source, nbytes))


def function(name: str, body: Callable[[], None]) -> Any:
    """Build a PrimFunc: `body` declares its parameters with :func:`parameter`, then its work."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            body()
        return builder.get()


def parameter(name: str, dtype: str, *shape: Any, align: int = 64) -> Array:
    """Declare the next parameter: an array that begins at a multiple of `align` bytes.

    0: of its elements' size, which every array of NumPy does.
    """
    return Array(T.arg(name, T.buffer(shape, dtype, align=align or np.dtype(dtype).itemsize)))


# PrimFuncs that Relax takes, for the kernels of the host.

# The attribute by which Relax knows that a PrimFunc must not be fused with its neighbours.
OPAQUE_PATTERN = 8


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
            T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE_PATTERN})
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
