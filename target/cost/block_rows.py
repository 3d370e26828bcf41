"""Where it pays to sort rows, and how many at a time: decided at compile time.

Sorting makes the MSB pass shorter and the encoding longer (`sorting`). Goal ``array``: what counts
is the array's cycles and the time of the encoding. An op that memory limits does not get faster by
it, its array rests longer. Goal ``time``: what counts is the time of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, get_args

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.analytical import dense_op_cost, encode_cost
from sparqle_tvm.target.cost.array import lsb_pass_cycles, msb_pass_cycles
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY, rounded_density, typical_digits
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.cost.sorting import max_block_rows
from sparqle_tvm.target.cost.tiling import Question, choose_schedules
from sparqle_tvm.target.op import DenseOp

Balance = Literal["array", "time", "none"]
BALANCES: tuple[Balance, ...] = get_args(Balance)


def choose_block_rows(
    consumers: Sequence[DenseOp],
    accelerator: Accelerator,
    goal: Balance = "array",
    density: float = TYPICAL_DENSITY,
) -> int:
    """Choose how many rows an encoding sorts together.

    Of all blocks of 2, 4, 8, .. row groups that fit half the activation buffer, the one with which
    encoding and dense ops take the least; none if that is not less than without.

    Parameters
    ----------
    consumers : sequence of DenseOp
        The dense ops that read the encoding; their `m` and `k` are the same.
    accelerator : Accelerator
        Where they run.
    goal : {"array", "time", "none"}
        What should be least, see the module; ``none``: rows stay in their own order.
    density : float
        Share of stored digits to expect, 0 to 1.

    Returns
    -------
    int
        Rows of a block, a multiple of `accelerator.rows`; 0: it does not pay.

    Raises
    ------
    TargetError
        If no tile fits the buffers.
    InvalidArgumentError
        If the goal is unknown.
    """
    if goal not in BALANCES:
        raise InvalidArgumentError(
            f"row balance for {goal!r} is unknown; known: {', '.join(BALANCES)}"
        )
    if goal == "none":
        return 0
    return _choose(tuple(consumers), accelerator, goal, rounded_density(density))


@lru_cache(maxsize=1024)
def _choose(
    consumers: tuple[DenseOp, ...], accelerator: Accelerator, goal: Balance, density: float
) -> int:
    rows, k = consumers[0].m, consumers[0].k
    blocks = list(_blocks(consumers, accelerator))
    if not blocks:
        return 0
    sums = storage.sum_group_size(consumers)

    def cycles(block: int) -> int:
        ops = [replace(op, block_rows=block) for op in consumers]
        schedules = choose_schedules(ops, accelerator, "sparqle", density)
        nnz = typical_digits(rows, k, min(schedules[0].k, k), density)
        encode = encode_cost(
            *("", nnz, schedules[0], sums, accelerator, "sparqle", block),
            zero_bytes=consumers[0].zero_bytes,
        )
        pairs = list(zip(consumers, schedules, strict=True))
        cost = _array_cycles if goal == "array" else _time
        distinct = {pair: cost(*pair, nnz, accelerator, block) for pair in pairs}
        return encode.total_cycles + sum(distinct[pair] for pair in pairs)

    return min((0, *blocks), key=cycles)


def _array_cycles(
    op: DenseOp, schedule: Decisions, nnz: RowNnz, accelerator: Accelerator, block: int
) -> int:
    if block:
        nnz = nnz.sorted(block, accelerator.lanes)
    lsb = lsb_pass_cycles(op, schedule.k, accelerator, schedule.row_split)
    return lsb + msb_pass_cycles(op, nnz, schedule.k, accelerator, schedule.row_split)


def _time(
    op: DenseOp, schedule: Decisions, nnz: RowNnz, accelerator: Accelerator, block: int
) -> int:
    return dense_op_cost(op, nnz, schedule, accelerator, "sparqle", block).total_cycles


def sorting_questions(
    consumers: Sequence[DenseOp], accelerator: Accelerator, density: float = TYPICAL_DENSITY
) -> tuple[Question, Question]:
    """What schedules `choose_block_rows` asks for: `tiling.choose_together` takes many of them."""
    plain = tuple(replace(op, block_rows=0) for op in consumers)
    sorted_ = tuple(replace(op, block_rows=2 * accelerator.rows) for op in consumers)
    return (
        Question(plain, accelerator, "sparqle", density),
        Question(sorted_, accelerator, "sparqle", density),
    )


def _blocks(consumers: tuple[DenseOp, ...], accelerator: Accelerator) -> Iterator[int]:
    """Blocks to try, smallest first."""
    op = consumers[0]
    most = max_block_rows(op.k, storage.sum_group_size(consumers), accelerator)
    block = 2 * accelerator.rows
    while op.m > accelerator.rows and block <= most:
        yield block
        if block >= op.m:
            return
        block *= 2
