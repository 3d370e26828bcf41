"""The few pieces of TVM's IRBuilder that the simulator's kernels are written with.

A kernel is a Python function that emits loops and stores; what is known when it is built is plain
Python (``for`` over ``range`` unrolls). Loop variables, table entries and addresses are int64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
        """Read an element, or a vector (see :func:`vector`)."""
        return self.buffer[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write an element or a vector; a Python number gets the array's type."""
        if isinstance(value, bool | int | float):
            value = tirx.const(value, self.buffer.dtype)
        T.buffer_store(self.buffer, value, index if isinstance(index, tuple) else [index])

    def view(self, dtype: str, *shape: Any) -> Array:
        """The same memory as another type or shape."""
        return Array(T.decl_buffer(shape, dtype, data=self.buffer.data))

    def at(self, *index: Any) -> Any:
        """Address of an element."""
        return T.address_of(self.buffer[index])


class Scalar:
    """A local variable; LLVM keeps it in a register."""

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


def scratch(dtype: str, *shape: Any) -> Array:
    """Allocate memory for the current scope."""
    return Array(T.alloc_buffer(shape, dtype))


def size(name: str) -> Any:
    """A dimension that is known at run time."""
    return tirx.Var(name, "int64")


def int64(value: Any) -> Any:
    """A number as int64; expressions stay what they are."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def loop(count: Any) -> Any:
    """Context manager of a serial loop; gives the loop variable."""
    return T.serial(int64(count))


def parallel(count: Any) -> Any:
    """Context manager of a loop over threads; gives the loop variable."""
    return T.parallel(int64(count))


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """Do what is written inside only if `condition` holds at run time."""
    with T.If(condition), T.Then():
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


def ceil_div(a: Any, b: Any) -> Any:
    """``ceil(a / b)`` for a >= 0, b > 0."""
    return T.truncdiv(a + (b - 1), int64(b))


def cast(dtype: str, value: Any) -> Any:
    """Convert."""
    return T.Cast(dtype, value)


def vector(start: Any, lanes: int) -> Any:
    """Index of `lanes` consecutive elements."""
    return T.ramp(int64(start), int64(1), lanes)


def copy_bytes(destination: Any, source: Any, nbytes: Any) -> None:
    """``memcpy``."""
    T.evaluate(T.call_extern("handle", "memcpy", destination, source, nbytes))
