"""Compiling the simulator's kernels with TVM, and the memory they work on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import tvm
from numpy.typing import DTypeLike, NDArray
from tvm.target import codegen

from sparqle_tvm.host.processor import host_target
from sparqle_tvm.tirscript import function

ALIGNMENT = 64


def aligned(
    shape: int | tuple[int, ...], dtype: DTypeLike, fill: int | None = None
) -> NDArray[Any]:
    """Make an array that begins at a multiple of 64 bytes, as compiled kernels expect.

    As ``numpy.empty``; `fill` is the value of every byte.
    """
    # Not by np.prod, which takes longer than the rest: small arrays are made for every step.
    count = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
    memory = np.empty(count + ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    memory = memory[begin : begin + count]
    if fill is not None:
        memory.fill(fill)
    return memory.view(dtype).reshape(shape)


def aligned_copy(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Copy an array to a multiple of 64 bytes."""
    copy = aligned(array.shape, dtype)
    copy[...] = array
    return copy


@cache
def host_features() -> frozenset[str]:
    """Which of the instruction sets that the kernels know the processor has."""
    known = ("sse2", "avx2", "avx512f", "avx512bw", "avx512vnni")
    return frozenset(f for f in known if codegen.target_has_features(f, host_target()))


def compile_kernel(name: str, body: Callable[[], None]) -> Callable[..., None]:
    """Compile a kernel for this processor; `body` emits it, see `tirscript.function`."""
    module = tvm.compile(tvm.IRModule({name: function(name, body)}), target=host_target())
    compiled: Callable[..., None] = module[name]
    return compiled
