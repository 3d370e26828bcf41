"""What sorting rows costs, and where it is chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.block_rows import choose_block_rows
from sparqle_tvm.target.cost.expected import (
    TYPICAL_DENSITY,
    rounded_density,
    typical_digits,
)
from sparqle_tvm.target.cost.model import EncodedActivation, pass_cost
from sparqle_tvm.target.cost.sorting import block_waits, max_block_rows, sort_work
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
WIDE = DenseOp(512, 4096, 576)


def test_a_block_is_half_the_memory_of_activations() -> None:
    apart = replace(EDGE, scratchpad=False)
    # A row of 576: digits 576 bytes, bitmap 72, scale 4, number 2: 654; 256 KiB hold 400.8 of it.
    assert max_block_rows(576, 0, apart) == 400
    # 18 group sums of 2 bytes: 690 bytes, 379.9 rows, 368 in whole groups.
    assert max_block_rows(576, 32, apart) == 368
    assert max_block_rows(200_000, 0, apart) == 0
    # 1 MiB of a scratchpad of 2 MiB: 1603.3.
    assert max_block_rows(576, 0, EDGE) == 1600


@pytest.mark.parametrize(
    ("rows", "block", "cycles", "operations"),
    [
        # 100 rows of 9 bitmap bytes on 64 lanes: 15 cycles. 4 blocks of 32: 64 to count and place
        # rows and 72 / 16 counters and one, 70 in all; by comparison 2 * 32 * 32 / 64 = 32.
        (100, 32, 15 + 4 * 32, 900 + 4 * 2048),
        # 2 blocks of 64: 128 + 6 = 134 against 2 * 64 * 64 / 64 = 128.
        (100, 64, 15 + 2 * 128, 900 + 2 * 8192),
        # One block of the 100 rows there are: 206 against 313.
        (100, 128, 15 + 206, 900 + 206),
    ],
)
def test_a_block_is_sorted_the_shorter_way(
    rows: int, block: int, cycles: int, operations: int
) -> None:
    assert sort_work(rows, 72, block, EDGE) == (cycles, operations)


def test_blocks_pass_vector_unit_and_store_one_after_the_other() -> None:
    assert block_waits(100, 0, 700, 300) == 0
    # One block: stored when all of it is made.
    assert block_waits(100, 128, 700, 300) == 300
    # Four blocks of 175 and 75 cycles: 4 * 175 + 75, and the other way round 175 + 4 * 75 ...
    assert block_waits(100, 25, 700, 300) == 75
    assert block_waits(100, 25, 300, 700) == 75
    # 60 and 40 rows: 420, then 280 beside 180, then 120.
    assert block_waits(100, 60, 700, 300) == 420 + 280 + 120 - 700


@pytest.mark.parametrize("block", [32, 128])
def test_costs_of_a_sorted_encoding(block: int) -> None:
    # The digits that choices are made by.
    nnz = typical_digits(512, 576, 576, rounded_density(TYPICAL_DENSITY))
    before, (waiting,) = encoding_costs("x", nnz, [WIDE], EDGE, "sparqle")
    after, (ordered,) = encoding_costs("x", nnz, [WIDE], EDGE, "sparqle", block)
    assert (before.block_rows, before.waiting_cycles, after.block_rows) == (0, 0, block)
    cycles, operations = sort_work(512, 576, block, EDGE)
    assert after.vector_cycles == before.vector_cycles + cycles
    extra = after.events.vector_operations - before.events.vector_operations
    assert extra == operations
    # A number of 2 bytes per row, written once, and read for every time that scales are.
    assert after.metadata_bytes == before.metadata_bytes + 2 * 512
    loads = ordered.tiling.row_loads
    assert ordered.metadata_bytes == waiting.metadata_bytes + loads * 2 * 512
    assert after.total_cycles == max(after.vector_cycles, after.dma_cycles) + after.waiting_cycles
    assert ordered.lsb_cycles == waiting.lsb_cycles
    # By hand: the steps of the slowest row of each group, the rows of a block sorted.
    steps = -(-nnz.counts[:, 0] // 16)
    keys = np.concatenate([np.sort(part)[::-1] for part in steps.reshape(-1, block)])
    assert ordered.msb_cycles == keys.reshape(-1, 16).max(axis=1).sum() * (4096 // 16)
    assert ordered.msb_cycles < waiting.msb_cycles


def test_a_row_of_outputs_on_its_own_moves_whole_bursts() -> None:
    # 20 channels of 2 bytes: 40 bytes, two bursts of 32.
    nnz = typical_digits(64, 64, 64)
    shape = DenseOp(64, 20, 64)
    (waiting,), (ordered,) = (
        encoding_costs("x", nnz, [shape], EDGE, "sparqle", block)[1] for block in (0, 32)
    )
    assert (waiting.output_bytes, ordered.output_bytes) == (64 * 40, 64 * 64)


def test_where_sorting_is_chosen() -> None:
    assert choose_block_rows([WIDE], EDGE) > EDGE.rows
    assert choose_block_rows([WIDE], EDGE, "none") == 0
    # One row group, and next to nothing to multiply.
    assert choose_block_rows([replace(WIDE, m=16)], EDGE) == 0
    assert choose_block_rows([replace(WIDE, n=16)], EDGE) == 0
    with pytest.raises(InvalidArgumentError, match="'speed' is unknown; known: array, time, none"):
        choose_block_rows([WIDE], EDGE, "speed")  # type: ignore[arg-type]


@pytest.mark.parametrize("goal", ["array", "time"])
def test_of_all_blocks_the_best_is_chosen(goal: str) -> None:
    # The digits that choices are made by.
    nnz = typical_digits(512, 576, 576, rounded_density(TYPICAL_DENSITY))

    def cycles(block: int) -> int:
        encode, (op,) = encoding_costs("x", nnz, [WIDE], EDGE, "sparqle", block)
        return encode.total_cycles + (op.mma_cycles if goal == "array" else op.total_cycles)

    blocks = [0, 32, 64, 128, 256]
    assert choose_block_rows([WIDE], EDGE, goal) == min(blocks, key=cycles)  # type: ignore[arg-type]


def test_typical_digits() -> None:
    nnz = typical_digits(1000, 100, 32)
    assert (nnz.rows, nnz.unit, nnz.in_features) == (1000, 32, 100)
    share = nnz.per_chunk(100)[:, 0] / 100
    assert share.mean() == pytest.approx(0.31, abs=0.02)
    assert share.std() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(nnz.counts, typical_digits(1000, 100, 32).counts)


def test_a_pass_sorts_where_it_is_asked_to() -> None:
    shape = TransformerShape(layers=1, embed=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=9)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (200, 1)) * np.ones((1, 72), dtype=np.int32)
    encodings = [EncodedActivation("x", RowNnz(counts, 8, 576), "signed", (replace(WIDE, m=200),))]

    def cost(scheme: str, balance: str) -> tuple[int, int]:
        found = pass_cost(
            encodings,
            shape,
            tokens=200,
            past=0,
            accelerator=EDGE,
            scheme=scheme,  # type: ignore[arg-type]
            balance=balance,  # type: ignore[arg-type]
        )
        (encode,) = found.encodes
        return found.mma_cycles, encode.block_rows

    (ordered, block), (waiting, none) = (cost("sparqle", goal) for goal in ("array", "none"))
    assert ordered < waiting
    assert (block > 0, none) == (True, 0)
    dense = 2 * math.ceil(200 / 16) * 36 * 256
    assert cost("dense", "array") == (dense, 0)
