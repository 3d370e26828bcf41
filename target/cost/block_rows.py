"""Where it pays to sort rows, and how many at a time: decided at compile time.

Sorting makes the MSB pass shorter and the encoding longer (`sorting`). Goal ``array``: what counts
is the array's cycles and the time of the encoding. An op that memory limits does not get faster by
it, its array rests longer. Goal ``time``: what counts is the time of both.

Bitmaps are not known at compile time. So the choice is made with digits as uneven as those of a
language model: every row's share of stored digits drawn from a normal distribution of mean
`TYPICAL_DENSITY` and standard deviation `TYPICAL_DEVIATION`, spread evenly over its columns. That
is what SmolLM2-135M has on average over its layer types (512 tokens of prose, signed window:
means 0.09 to 0.53, deviations 0.05 to 0.10). A choice that is wrong for a tensor costs cycles,
never exactness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz, span_widths
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.analytical import dense_op_cost, encode_cost
from sparqle_tvm.target.cost.sorting import max_block_rows
from sparqle_tvm.target.cost.tiling import choose_tilings
from sparqle_tvm.target.op import DenseOp

Balance = Literal["array", "time", "none"]
BALANCES: tuple[Balance, ...] = get_args(Balance)

TYPICAL_DENSITY = 0.31
TYPICAL_DEVIATION = 0.1
_SEED = 0


def choose_block_rows(
    consumers: Sequence[DenseOp],
    accelerator: Accelerator,
    goal: Balance = "array",
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
    return _choose(tuple(consumers), accelerator, goal)


@lru_cache(maxsize=1024)
def _choose(consumers: tuple[DenseOp, ...], accelerator: Accelerator, goal: Balance) -> int:
    rows, k = consumers[0].m, consumers[0].k
    blocks = list(_blocks(consumers, accelerator))
    if not blocks:
        return 0
    tilings = choose_tilings(consumers, accelerator, "sparqle")
    nnz = typical_digits(rows, k, min(tilings[0].k, k))
    sums = storage.sum_group_size(consumers)

    def cycles(block: int) -> int:
        encode = encode_cost(
            *("", nnz, tilings[0], sums, accelerator, "sparqle", block),
            zero_bytes=consumers[0].zero_bytes,
        )
        ops = (
            dense_op_cost(op, nnz, tiling, accelerator, "sparqle", block)
            for op, tiling in zip(consumers, tilings, strict=True)
        )
        work = (op.mma_cycles if goal == "array" else op.total_cycles for op in ops)
        return encode.total_cycles + sum(work)

    return min((0, *blocks), key=cycles)


def typical_digits(rows: int, in_features: int, unit: int) -> RowNnz:
    """Digits to expect before any are seen, see the module; the same at every call.

    Parameters
    ----------
    rows, in_features : int
        M and K.
    unit : int
        Columns counted together.
    """
    rng = np.random.default_rng(_SEED)
    share = np.clip(rng.normal(TYPICAL_DENSITY, TYPICAL_DEVIATION, size=(rows, 1)), 0, 1)
    counts = np.rint(share * span_widths(in_features, unit))
    return RowNnz(counts.astype(np.int32), unit, in_features)


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
