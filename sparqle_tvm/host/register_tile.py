"""Sizes of the host kernels' register tiles, and how long integer sums stay exact in float32.

A float32 holds every integer up to 2^24. Sums of small integer products that stay below it are
therefore exact in float32, multiply-add fused or not, in any order, on any processor. So one
float32 micro-kernel serves the float model, the int8 model and the split-precision form; K is cut
into chunks where the bound would be passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tvm
from tvm.target import codegen

from sparqle_tvm.errors import CompileError

EXACT_FLOAT32 = 2**24
# Rows of decoded activations that the kernels work on at a time: about a core's share of L2/L3.
BLOCK_BYTES = 1 << 20
# Waking the thread pool costs as much as encoding or decoding about this many rows.
SERIAL_ROWS = 16


@dataclass(frozen=True)
class HostTile:
    """Register tile of the micro-kernel: `rows` x `cols` float32 accumulators.

    Attributes
    ----------
    lanes : int
        float32 elements of a vector register.
    rows : int
        Accumulator rows; a multiple of 2, because a split-precision row takes two (LSB, MSB).
    """

    lanes: int = 4
    rows: int = 6

    @property
    def cols(self) -> int:
        """Output columns of a tile, and of a panel of weights: two vectors."""
        return 2 * self.lanes


def host_tile(target: tvm.target.Target | None = None) -> HostTile:
    """Choose the register tile for an ``llvm`` target.

    Parameters
    ----------
    target : tvm.target.Target, optional
        Default: the current target; without one, a tile that suits every processor.
    """
    target = target or tvm.target.Target.current(allow_none=True)
    if target is None or target.kind.name != "llvm":
        return HostTile()
    return _tile_of(target)


@cache
def _tile_of(target: tvm.target.Target) -> HostTile:
    if codegen.target_has_features("avx512f", target):
        return HostTile(lanes=16, rows=12)
    if codegen.target_has_features("avx", target):
        return HostTile(lanes=8)
    return HostTile()


def largest_weight(weight_bits: int) -> int:
    """Largest magnitude of a weight of 2, 4 or 8 bits in an int8 container, signed or unsigned."""
    return 128 if weight_bits == 8 else 2**weight_bits - 1


def exact_columns(largest_a: int, largest_b: int) -> int:
    """Products of magnitude ``largest_a * largest_b`` that may be summed exactly in float32."""
    return EXACT_FLOAT32 // (largest_a * largest_b)


def plane_chunk(k: int, weight_bits: int, largest_digit: int) -> tuple[int, bool]:
    """Columns that an LSB and an MSB accumulator hold exactly, and whether they may be added.

    The MSB digits come multiplied by 2^k, which does not cost exactness in float32, but both
    accumulators, and their sum if they are added there, have to convert to int32. The high digits
    have a magnitude of at most `largest_digit`.

    Returns
    -------
    columns : int
    merge : bool
        True if the two accumulators may be added in float32.
    """
    weight = largest_weight(weight_bits)
    lsb, msb = 2**k - 1, largest_digit << k
    if k <= 4:
        return exact_columns(lsb + msb, weight), True
    return min(exact_columns(lsb, weight), (2**31 - 1) // (msb * weight)), False


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def block_rows(bytes_per_row: int, multiple: int) -> int:
    """Rows to work on at a time so that their scratch stays in cache; a multiple of `multiple`."""
    fitting = BLOCK_BYTES // max(bytes_per_row, 1)
    return max(min(fitting, 256) // multiple, 8) * multiple


def static_int(value: object, what: str) -> int:
    """A shape's dimension as an int.

    Raises
    ------
    CompileError
        If it is symbolic.
    """
    if isinstance(value, int):
        return value
    if isinstance(value, tvm.tirx.IntImm):
        return int(value.value)
    raise CompileError(
        f"{what} is symbolic ({value}); bind it with relax.transform.BindSymbolicVars"
    )
