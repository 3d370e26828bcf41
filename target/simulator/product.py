"""Products of digits and int8 on the thread that asks, for the many small ones of attention.

BLAS would give each to threads of its own, whose handing over takes hundreds of times as long as
the product where other threads wait actively for work, as those of compiled kernels do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T

from sparqle_tvm.target.attention_op import DIGIT_BITS
from sparqle_tvm.target.simulator.native import aligned, compile_kernel
from sparqle_tvm.tirscript import ceil_div, loop, parameter, scratch, size, vector

_LANES, _VECTORS, _ROWS = 8, 2, 4
_COLUMNS = _LANES * _VECTORS
_KEPT = 8
_DEPTH = 2 ** (24 - DIGIT_BITS - 7)
"""So many products of a digit and an int8 add up to a whole number that float32 holds."""


def multiply(digits: NDArray[Any], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """Exact ``digits @ weights``.

    Parameters
    ----------
    digits : integers (M, K)
        Digits, of magnitude 2^k at most.
    weights : int8 (K, N)
        Keys or values.

    Returns
    -------
    int32 (M, N)
    """
    (rows, depth), columns = digits.shape, weights.shape[1]
    wide = -(-columns // _COLUMNS) * _COLUMNS
    total = np.zeros((rows, columns), np.int32)
    if not total.size:
        return total
    for begin in range(0, depth, _DEPTH):
        part = slice(begin, min(begin + _DEPTH, depth))
        a, b, found = _STATE.operands(-(-rows // _ROWS) * _ROWS, part.stop - begin, wide)
        a[:rows], a[rows:] = digits[:, part], 0
        b[:, :columns], b[:, columns:] = weights[part], 0
        _kernel()(a, b, found)
        if begin == 0:
            total[...] = found[:rows, :columns]
        else:
            total += found[:rows, :columns].astype(np.int32)
    return total


def _operands(rows: int, depth: int, columns: int) -> tuple[NDArray[np.float32], ...]:
    """Memory for (M, K), (K, N) and (M, N)."""
    shapes = ((rows, depth), (depth, columns), (rows, columns))
    return tuple(aligned(shape, np.float32) for shape in shapes)


class _State(threading.local):
    """Per thread: memory of the operands of its last products, which are of few sizes."""

    def __init__(self) -> None:
        self.operands = lru_cache(maxsize=_KEPT)(_operands)


_STATE = _State()


@cache
def _kernel() -> Callable[..., None]:
    """Compile the product of float32 (M, K) and (K, N) into (M, N), of whole tiles."""
    return compile_kernel("product", _body)


def _body() -> None:
    rows, depth, columns = size("rows"), size("depth"), size("columns")
    a = parameter("a", "float32", rows, depth)
    b = parameter("b", "float32", depth, columns)
    out = parameter("out", "float32", rows, columns)
    with loop(ceil_div(columns, _COLUMNS)) as panel, loop(ceil_div(rows, _ROWS)) as group:
        sums = scratch("float32", _ROWS * _VECTORS * _LANES)
        tiles = [(r, v) for r in range(_ROWS) for v in range(_VECTORS)]
        for r, v in tiles:
            sums[_sum(r, v)] = T.broadcast(T.float32(0), _LANES)
        with loop(depth) as k:
            for r, v in tiles:
                digit = T.broadcast(a[group * _ROWS + r, k], _LANES)
                at = vector(panel * _COLUMNS + v * _LANES, _LANES)
                sums[_sum(r, v)] = sums[_sum(r, v)] + digit * b[k, at]
        for r, v in tiles:
            out[group * _ROWS + r, vector(panel * _COLUMNS + v * _LANES, _LANES)] = sums[_sum(r, v)]


def _sum(row: int, part: int) -> Any:
    return vector((row * _VECTORS + part) * _LANES, _LANES)
