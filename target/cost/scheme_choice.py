"""Which encodings are left dense: those whose ops take longer in planes than without.

An encoding is left dense with all ops that read it: its integers are stored whole, and the array
takes two dense passes, as under the baseline ``dense``. Results are the same integers. Compiler and
formulas compare the same two times, encoding included, so that split precision is never slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import EncodeCost, Encoded, OpCost, costs_together
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY, typical_digits
from sparqle_tvm.target.cost.factors import NO_FACTORS, EncodeFactors
from sparqle_tvm.target.cost.tiling import Question
from sparqle_tvm.target.op import DenseOp

Planes = Literal["cost", "always"]
"""Whether encodings are left dense by cost, or never."""
PLANES: tuple[Planes, ...] = get_args(Planes)

EncodingCosts = tuple[EncodeCost, tuple[OpCost, ...]]
"""Of an encoding, and of the dense ops that read it."""


@dataclass(frozen=True)
class LeftDense:
    """Why an encoding is left dense: what it and its ops take either way.

    Attributes
    ----------
    split_cycles, dense_cycles : int
        Time with planes, and without.
    msb_sparsity : float
        Share of zero MSB digits that this was decided with, 0 to 1.
    digit_bits : int
        Bits k of a digit.
    """

    split_cycles: int
    dense_cycles: int
    msb_sparsity: float
    digit_bits: int

    @property
    def reason(self) -> str:
        """In a few words, with the figures."""
        text = f"{self.split_cycles:,} cycles split, {self.dense_cycles:,} dense"
        even = 1 / self.digit_bits
        if self.msb_sparsity < even:
            text += (
                f"; {self.msb_sparsity:.1%} of its MSB digits are zero, planes are smaller from "
                f"{even:.1%} on"
            )
        return text


def cheaper(split: EncodingCosts, dense: EncodingCosts, nnz: RowNnz, k: int) -> LeftDense | None:
    """Whether dense is the better of two ways to compute the same; None: it is not.

    It is if it takes fewer cycles, or as many and planes are larger than integers of 2k bits.
    """
    found = LeftDense(_cycles(split), _cycles(dense), nnz.msb_sparsity, k)
    spare = found.split_cycles - found.dense_cycles
    return found if spare > 0 or (spare == 0 and found.msb_sparsity < 1 / k) else None


def _cycles(costs: EncodingCosts) -> int:
    encode, ops = costs
    return encode.total_cycles + sum(op.total_cycles for op in ops)


def can_be_dense(op: DenseOp) -> bool:
    """Whether an op computes the same on whole integers without another offset.

    It does if its digits are centred on 0 in every row. Outputs that the drain encodes are chosen
    with what reads them.
    """
    return not op.centre and not op.row_zeros and op.output != "encoded"


def left_dense(
    ops: Sequence[DenseOp],
    accelerator: Accelerator,
    factors: EncodeFactors = NO_FACTORS,
    density: float = TYPICAL_DENSITY,
) -> LeftDense | None:
    """Whether the compiler leaves an encoding dense, with the digits that are to be expected.

    Parameters
    ----------
    ops : sequence of DenseOp
        What reads it, joint ops as one (`joint_op.join`), with the rows that it sorts together.
    accelerator : Accelerator
        Where they run.
    factors : EncodeFactors
        Whether it has factors and bands.
    density : float
        Share of stored MSB digits to expect, 0 to 1.

    Raises
    ------
    TargetError
        If no tile fits the buffers.
    """
    return _left_dense(tuple(ops), accelerator, factors, density)


def scheme_questions(
    ops: Sequence[DenseOp], accelerator: Accelerator, density: float = TYPICAL_DENSITY
) -> tuple[Question, ...]:
    """What schedules `left_dense` asks for: `tiling.choose_together` takes many of them."""
    plain = tuple(replace(op, block_rows=0) for op in ops)
    split = Question(tuple(ops), accelerator, "sparqle", density)
    dense = Question(plain, accelerator, "dense")
    return (split, dense) if all(map(can_be_dense, ops)) else (split,)


@lru_cache(maxsize=1024)
def _left_dense(
    ops: tuple[DenseOp, ...], accelerator: Accelerator, factors: EncodeFactors, density: float
) -> LeftDense | None:
    if not all(map(can_be_dense, ops)):
        return None
    unit = math.lcm(8, accelerator.lanes, *(max(op.group_size, 1) for op in ops))
    nnz = typical_digits(ops[0].m, ops[0].k, unit, density)
    block, plain = ops[0].block_rows, tuple(replace(op, block_rows=0) for op in ops)
    asked = [
        Encoded("", nnz, plain, "sparqle", block, factors, density),
        Encoded("", nnz, plain, "dense", factors=factors),
    ]
    split, dense = costs_together(asked, accelerator)
    return cheaper(split, dense, nnz, accelerator.digit_bits)
