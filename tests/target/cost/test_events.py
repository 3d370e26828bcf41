"""Events: sums, and an op counted by hand. That the simulator counts the same: `test_tie`."""

from __future__ import annotations

import numpy as np

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import dense_op_cost
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES, Scheme
from sparqle_tvm.target.cost.events import NAMES, Events
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import DenseOp


def test_sums_and_multiples() -> None:
    a, b = Events(cycles=2, lsb_products=3), Events(lsb_products=5, dram_read_bytes=7)
    assert a + b == Events(cycles=2, lsb_products=8, dram_read_bytes=7)
    assert 3 * a == a * 3 == a + a + a
    assert sum([a, b], Events()) == a + b
    assert (a + b).dram_bytes == 7
    assert tuple(vars(a)) == NAMES


# 3 x 4 x 16 on 2 x 2 PEs of 4 lanes, in row tiles of 2 and column tiles of 2, K at once. The
# stored digits are 4, 5 and 0.
SHAPE = DenseOp(3, 4, 16)
SCHEDULE = Decisions(m=2, n=2, k=16, keep_outer=True)
NNZ = RowNnz(np.array([[4, 0], [2, 3], [0, 0]]), 8, 16)


def counted(scheme: Scheme, tiny: Accelerator) -> Events:
    return dense_op_cost(SHAPE, NNZ, SCHEDULE, tiny, scheme).events


def test_by_hand(tiny: Accelerator) -> None:
    got = counted("sparqle", tiny)
    assert got.lsb_products == 3 * 4 * 16
    assert got.msb_products == got.selected_products == 9 * 4
    # 16 / 4 steps per row and output; then 1, 2 and 0.
    assert got.accumulator_updates == 3 * 4 * 4 + (1 + 2) * 4
    # Two blocks of columns.
    assert got.find_first_steps == 9 * 2
    assert (got.scale_operations, got.wide_products, got.drained_elements) == (0, 0, 12)
    # A row has 8 bytes of LSB digits and 2 of bitmap; MSB digits: 2, 3 and 0 bytes; scales 4.
    planes = 3 * (8 + 2) + 5
    assert got.activation_write_bytes == planes + 3 * 4
    assert got.activation_read_bytes == 2 * planes + 2 * 3 * 4
    # 4 channels of 8 bytes are read in both passes by two row groups; their scales by two tiles.
    assert got.weight_write_bytes == 2 * 4 * 8 + 2 * 4 * 4
    assert got.weight_read_bytes == 2 * 2 * 4 * 8 + 2 * 4 * 4
    # Two passes write; the second and the drain read; the drain writes, the store reads.
    assert got.accumulator_write_bytes == 2 * 12 * 4 + 12 * 4
    assert got.accumulator_read_bytes == 12 * 4 + 12 * 4 + 12 * 4
    # Pointers (two for each of two row tiles) are read, but not kept.
    assert got.dram_read_bytes == got.activation_write_bytes + 2 * 8 + got.weight_write_bytes
    assert got.dram_write_bytes == 12 * tiny.float_bytes


def test_baselines_by_hand(tiny: Accelerator) -> None:
    dense, native, a4 = (counted(scheme, tiny) for scheme in ("dense", "native", "a4"))
    assert dense.lsb_products == dense.msb_products == native.wide_products == a4.lsb_products
    assert native.lsb_products == native.msb_products == a4.msb_products == 0
    assert dense.selected_products == dense.find_first_steps == 0
    # Two lanes: twice the steps in one pass.
    assert dense.accumulator_updates == native.accumulator_updates == 2 * a4.accumulator_updates
    assert dense.weight_read_bytes - 32 == 2 * (native.weight_read_bytes - 32)
    scales = 3 * 4
    for events, row_bytes in ((dense, 16), (native, 16), (a4, 8)):
        assert events.activation_write_bytes == 3 * row_bytes + scales
        assert events.activation_read_bytes == 2 * (3 * row_bytes + scales)
    assert a4.accumulator_write_bytes == 12 * 4 + 12 * 4


def test_costs_carry_their_cycles_and_bytes(tiny: Accelerator) -> None:
    for scheme in ALL_SCHEMES:
        cost = dense_op_cost(SHAPE, NNZ, SCHEDULE, tiny, scheme)
        assert cost.events.cycles == cost.total_cycles
        assert cost.events.dram_bytes == cost.dram_bytes
