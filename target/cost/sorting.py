"""Sorting rows in the encode step: what the hardware does, and its cost.

The encode step quantizes and encodes a block of rows into the activation buffer, which is idle
then, counts each row's stored digits in its bitmap, and sorts the rows of the block by the steps
that they take, most steps first. It writes the block to DRAM in that order, behind it the list of
row numbers. Two blocks share the buffer:
while one is written, the next is made. Rows are sorted within blocks only, so a smaller block is
written earlier and a larger one sorted better; `block_rows` chooses.
"""

from __future__ import annotations

import math

from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.isa.header import row_number_bytes

POPCOUNT_OPS = 1
"""Vector operations per byte of the bitmap: count its bits and add them up."""

COUNT_CYCLES = 2
"""Cycles per row of a counting sort, one row at a time: count a key, later place the row."""

RANK_OPS = 2
"""Vector operations per pair of rows of a block to find the place of each: compare, and add."""


def max_block_rows(k: int, sum_group_size: int, accelerator: Accelerator) -> int:
    """Most rows that can be sorted together: half the memory of activations, every MSB present.

    Parameters
    ----------
    k : int
        Columns.
    sum_group_size : int
        Weights per group if the readers need group sums, else 0.
    accelerator : Accelerator
        Its buffer; a block is a multiple of its rows, 0 if not even a row group fits.
    """
    row = storage.worst_plane_bytes(k, accelerator, "sparqle")
    row += storage.row_metadata_bytes(1, k, sum_group_size, accelerator.digit_bits)
    row += row_number_bytes(1)
    rows = accelerator.memory_bytes("activation") // (2 * row)
    return rows // accelerator.rows * accelerator.rows


def sort_work(rows: int, k: int, block_rows: int, accelerator: Accelerator) -> tuple[int, int]:
    """Cycles and operations of the vector unit to sort `rows` rows of `k` columns in blocks.

    A block is sorted with a counter per number of steps, or, where that is shorter, by comparing
    each row with each.
    """
    popcounts = rows * math.ceil(k / 8) * POPCOUNT_OPS
    block, lanes = min(block_rows, rows), accelerator.vector_lanes
    counted = COUNT_CYCLES * block + math.ceil(k / accelerator.lanes) + 1
    ranked = RANK_OPS * block * block
    cycles, operations = min((counted, counted), (math.ceil(ranked / lanes), ranked))
    blocks = math.ceil(rows / block)
    return math.ceil(popcounts / lanes) + blocks * cycles, popcounts + blocks * operations


def block_waits(rows: int, block_rows: int, vector_cycles: int, dma_cycles: int) -> int:
    """Cycles of an encoding beyond those of the busier of vector unit and stores.

    Blocks pass both, one after the other: the first is made while nothing is stored, the last is
    stored while nothing is made.

    Parameters
    ----------
    rows : int
        All rows.
    block_rows : int
        Rows of a block; 0: every row is stored as soon as it is made, and nothing waits.
    vector_cycles, dma_cycles : int
        Of all rows.
    """
    if not block_rows:
        return 0
    whole = min(block_rows / rows, 1.0)
    blocks = math.ceil(rows / block_rows)
    last = 1.0 - (blocks - 1) * whole
    made, stored = whole * vector_cycles, whole * dma_cycles
    total = made + max(blocks - 2, 0) * max(made, stored)
    if blocks > 1:
        total += max(last * vector_cycles, stored)
    total += last * dma_cycles
    return max(0, math.ceil(total - max(vector_cycles, dma_cycles)))
