"""Exact dot products of small integers with vector instructions, by what the processor has.

All variants add products of a few consecutive columns to each int32 lane; a lane is an output
channel. They differ in how many columns share a lane, and in the operands they take:

- ``vnni``: 4 columns, activations int8 times weights uint8, straight into int32.
- ``avx2``: 4 columns, the same operands; products of 2 columns are added in int16 for at most
  `SPAN` columns, then widened.
- ``words``: 2 columns, int16 operands (SSE2 is part of every x86-64).
- ``plain``: 1 column, int16 operands, no intrinsic.

Weights as uint8 need a bias where they are signed; `decode` takes the sum of the activations of a
span along, by which the bias is mended. Digits of more than 4 bits do not fit the first two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tvm.tirx.script import builder as T

from sparqle_tvm.tirscript import Array, cast, scratch, vector

SPAN = 256
"""Columns after which partial sums are widened: 64 sums of two 15 * 15 fit int16."""

Variant = Literal["vnni", "avx2", "words", "plain"]


@dataclass(frozen=True)
class Dot:
    """A variant (see the module), and the register tile it works on.

    Attributes
    ----------
    variant : {"vnni", "avx2", "words", "plain"}
        Its name.
    lanes : int
        int32 lanes of a vector.
    depth : int
        Columns per lane.
    rows : int
        Activation rows that are worked on together.
    """

    variant: Variant
    lanes: int
    depth: int
    rows: int

    VECTORS = 2

    @property
    def channels(self) -> int:
        """Output channels of a panel."""
        return self.VECTORS * self.lanes

    @property
    def biased(self) -> bool:
        """Whether signed weights are stored as unsigned."""
        return self.depth == 4

    @property
    def activation(self) -> str:
        """Element type of decoded activations."""
        return "int8" if self.depth == 4 else "int16"

    @property
    def weight(self) -> str:
        """Element type of decoded weights."""
        return "uint8" if self.depth == 4 else "int16"

    @property
    def _sum(self) -> tuple[str, int]:
        """Element type and length of a running partial sum."""
        return ("int16", 2 * self.lanes) if self.variant == "avx2" else ("int32", self.lanes)

    def sums(self) -> list[Array]:
        """Make partial sums for the vectors of a row, cleared."""
        dtype, length = self._sum
        sums = [scratch(dtype, length) for _ in range(self.VECTORS)]
        for total in sums:
            zero = T.int16(0) if dtype == "int16" else T.int32(0)
            total[self.sum_index()] = T.broadcast(zero, length)
        return sums

    def sum_index(self) -> Any:
        """Index of a partial sum in an array that holds one."""
        return vector(0, self._sum[1])

    def broadcast(self, columns: Any) -> Any:
        """Give every lane the same `depth` activations (a vector of them, or one)."""
        if self.depth == 1:
            return T.broadcast(cast("int32", columns), self.lanes)
        lane = T.reinterpret("int32", columns)
        length = self.depth * self.lanes
        return T.reinterpret(f"{self.activation}x{length}", T.broadcast(lane, self.lanes))

    def step(self, total: Any, activations: Any, weights: Any) -> Any:
        """Add the products of one step to a partial sum."""
        if self.variant == "vnni":
            return _llvm("int32x16", "avx512.vpdpbusd.512", total, weights, activations)
        if self.variant == "avx2":
            return total + _llvm("int16x16", "avx2.pmadd.ub.sw", weights, activations)
        if self.variant == "words":
            name = "avx2.pmadd.wd" if self.lanes == 8 else "sse2.pmadd.wd"
            return total + _llvm(f"int32x{self.lanes}", name, weights, activations)
        return total + activations * cast(f"int32x{self.lanes}", weights)

    def widen(self, total: Any) -> Any:
        """Make int32 lanes of a partial sum."""
        if self.variant != "avx2":
            return total
        ones = T.broadcast(T.int16(1), 2 * self.lanes)
        return _llvm(f"int32x{self.lanes}", "avx2.pmadd.wd", total, ones)


def choose_dot(features: Iterable[str], digit_bits: int) -> Dot:
    """Choose a variant by what the processor has (``sse2``, ``avx2``, ``avx512vnni``, ..)."""
    has = frozenset(features)
    if digit_bits <= 4 and {"avx512vnni", "avx512bw"} <= has:
        return Dot("vnni", lanes=16, depth=4, rows=8)
    if digit_bits <= 4 and "avx2" in has:
        return Dot("avx2", lanes=8, depth=4, rows=4)
    if "avx2" in has:
        return Dot("words", lanes=8, depth=2, rows=4)
    if "sse2" in has:
        return Dot("words", lanes=4, depth=2, rows=4)
    return Dot("plain", lanes=4, depth=1, rows=4)


def _llvm(dtype: str, name: str, *operands: Any) -> Any:
    return T.call_llvm_pure_intrin(dtype, f"llvm.x86.{name}", *operands)
