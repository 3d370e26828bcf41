"""A thin layer over TVM's IRBuilder, so that kernels read like the loops they are.

A kernel is a Python function that emits loops and stores; what is known when it is built is plain
Python (``for`` over ``range`` unrolls). Loop variables are int64. An expression is computed where
it is used, from what memory holds then: `once` fixes it where it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        """Take the buffer."""
        self.buffer = buffer

    def __getitem__(self, index: Any) -> Any:
        """Read an element."""
        return self.buffer[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write an element; numbers are converted to its type."""
        if isinstance(value, bool | int | float):
            value = tirx.const(value, self.buffer.dtype)
        T.buffer_store(self.buffer, value, index if isinstance(index, tuple) else [index])


class Scalar:
    """A local variable; LLVM keeps it in a register.

    Parameters
    ----------
    dtype : str
        Its type.
    value : int, float or expression
        Its first value.
    """

    def __init__(self, dtype: str, value: Any) -> None:
        """Declare it."""
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


def scratch(dtype: str, *shape: Any) -> Array:
    """Allocate memory for the current scope."""
    return Array(T.alloc_buffer(shape, dtype))


def size(name: str) -> Any:
    """A dimension that is known at run time."""
    return tirx.Var(name, "int64")


def loop(count: Any) -> Any:
    """Context manager of a serial loop; gives the loop variable."""
    return T.serial(tirx.IntImm("int64", count) if isinstance(count, int) else count)


def repeat(*conditions: Any) -> Any:
    """Context manager of a loop that goes on while all conditions hold."""
    return T.While(all_of(*conditions))


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


def all_of(*conditions: Any) -> Any:
    """All of the conditions. Every one is computed, also behind the first that fails."""
    return tirx.all(*conditions) if len(conditions) > 1 else conditions[0]


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
