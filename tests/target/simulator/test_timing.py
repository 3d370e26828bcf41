"""Cycles of tiny programs, counted by hand.

The accelerator has 4 x 4 PEs of 8 lanes; a transfer takes 5 cycles and 1 per 8 bytes; DRAIN makes
4 outputs per cycle. Digits and weights have 4 bits, outputs are int32. A tile of 4 rows, 4
channels and 32 columns, 8 stored MSBs per row, takes

    LD.LSB  4 rows x 16 bytes = 64                   5 + 8 = 13
    LD.PBM  4 rows x 4 bytes = 16, the same transfer     2 =  2
    LD.MSB  4 rows x 4 bytes + 2 pointers = 24, too      3 =  3
    LD.WGT  4 channels x 16 bytes = 64               5 + 8 = 13    loads: 31
    MMA.LSB 32 columns / 8 lanes                             4
    MMA.MSB 8 digits / 8 lanes                               1     array: 5
    DRAIN   16 outputs / 4                                   4
    ST.OUT  16 outputs x 4 bytes = 64                5 + 8 = 13
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from simulator_programs import TINY, dense_program, header_for, integer_header

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.simulator import SimResult, simulate_timing

LOAD, MMA, STORE = Engine.LOAD, Engine.MMA, Engine.STORE


def digits(counts: list[list[int]], unit: int = 32) -> RowNnz:
    """Stored digits of each row, `unit` columns at a time."""
    array = np.array(counts)
    return RowNnz(array, unit, array.shape[1] * unit)


def eight_per_row(chunks: int = 1, rows: int = 4) -> RowNnz:
    return digits([[8] * chunks] * rows)


def check_sums(result: SimResult) -> None:
    for time in result.engines.values():
        assert time.busy + time.stalled == result.total_cycles


def test_one_tile():
    # Loads 0..31, array 31..36, sums whole at 38, drain ..42, store ..55: nothing overlaps.
    program = dense_program(integer_header(4, 4, 32, 32), 4, 4)
    result = simulate_timing(program, 4, eight_per_row())
    assert result.total_cycles == 31 + 5 + 2 + 4 + 13
    assert result.engines[LOAD].busy_cycles == {
        "LD.LSB": 13,
        "LD.PBM": 2,
        "LD.MSB": 3,
        "LD.WGT": 13,
    }
    assert result.engines[MMA].busy_cycles == {"MMA.LSB": 4, "MMA.MSB": 1}
    assert result.engines[STORE].busy_cycles == {"DRAIN": 4, "ST.OUT": 13}
    # The activations are there at 18, the weights at 31.
    assert result.engines[LOAD].stalled_cycles == {"END": 55 - 31}
    assert result.engines[MMA].stalled_cycles == {
        "ACT_READY": 18,
        "WGT_READY": 13,
        "END": 55 - 36,
    }
    assert result.engines[STORE].stalled_cycles == {"ACC_READY": 38}
    check_sums(result)


def test_two_tiles_overlap():
    # Two column tiles. LOAD goes on at 31 with the transfer of the activations, until 49. ST.OUT of
    # the first tile is ready at 42 and waits for the channel, for nothing interrupts a transfer; at
    # 49 LD.WGT is ready too, but ST.OUT has waited longer: 49..62. Then LD.WGT 62..75, array
    # 75..80, drain 82..86, store ..99.
    program = dense_program(integer_header(4, 8, 32, 32), 4, 4)
    result = simulate_timing(program, 4, eight_per_row())
    assert result.total_cycles == 99
    assert result.engines[LOAD].stalled_cycles == {"DRAM": 13, "END": 99 - 75}
    assert result.engines[STORE].stalled_cycles["DRAM"] == 49 - 42
    assert result.engines[STORE].busy == 2 * (4 + 13)
    check_sums(result)


def test_bound_by_loads():
    # Three K chunks of one tile: loads 0..93 without a gap, since the array is done with a slot
    # long before it is needed. The last chunk is computed 93..98, drained 100..104, stored ..117.
    program = dense_program(integer_header(4, 4, 96, 32), 4, 4)
    result = simulate_timing(program, 4, eight_per_row(chunks=3))
    assert result.total_cycles == 3 * 31 + 5 + 2 + 4 + 13
    assert result.engines[LOAD].busy == 93
    # ACT_READY: until 18; from 36 to 31 + 18; from 67 to 62 + 18.
    assert result.engines[MMA].stalled_cycles == {
        "ACT_READY": 18 + 13 + 13,
        "WGT_READY": 3 * 13,
        "END": 117 - 98,
    }
    check_sums(result)


def test_bound_by_stores():
    # Memory as fast as can be, but 1 output per cycle: every transfer takes 1 cycle (at most 64
    # bytes), a tile 4 loads; 8 columns are 1 step, without MSBs. Loads of the first tile 0..4,
    # array 4..5, and from 7 on, when sums are whole, the STORE engine is busy: 4 tiles x (16 + 1).
    machine = replace(
        TINY, dram_bytes_per_cycle=64.0, dma_descriptor_cycles=0, drain_elements_per_cycle=1
    )
    program = dense_program(integer_header(4, 16, 8, 8, accelerator=machine), 4, 4)
    result = simulate_timing(program, 4, digits([[0]] * 4, unit=8))
    assert result.total_cycles == 5 + 2 + 4 * 17
    assert result.engines[STORE].busy == 4 * 17
    # Two slots of accumulators: tile 3 begins when tile 1 is stored, at 24, tile 4 at 41. Until
    # then the array has had its operands for long. It waits for the operands of tile 1 until 4.
    # Those of tile 2 arrive at 8 (the array waits from 5 on).
    assert result.engines[MMA].stalled_cycles["ACC_FREE"] == (24 - 9) + (41 - 25)
    check_sums(result)


def test_one_slow_row():
    # 32 digits in one row, none in the others: 4 steps, in which 3 rows x 4 columns x 8 lanes idle.
    program = dense_program(integer_header(4, 4, 32, 32), 4, 4)
    result = simulate_timing(program, 4, digits([[0], [0], [32], [0]]))
    # LD.MSB: 16 bytes and 8 of pointers, as when every row has 8 digits.
    assert result.total_cycles == 31 + (4 + 4) + 2 + 4 + 13
    msb = result.counts.msb
    assert msb.macs == 32 * 4
    assert msb.lane_cycles == 4 * (4 * 4 * 8)
    assert msb.waiting_lane_cycles == 4 * (3 * 4 * 8)
    assert msb.padding_lane_cycles == 0


def test_steps_that_are_not_full():
    # 9 digits are 2 steps, 7 of 16 lanes idle; the rows with 8 wait for a step.
    program = dense_program(integer_header(4, 4, 32, 32), 4, 4)
    result = simulate_timing(program, 4, digits([[8], [9], [8], [8]]))
    msb = result.counts.msb
    assert result.engines[MMA].busy_cycles["MMA.MSB"] == 2
    assert msb.macs == 33 * 4
    assert msb.waiting_lane_cycles == 3 * 8 * 4
    assert msb.padding_lane_cycles == 7 * 4


def test_empty_msb_plane():
    # Only the two pointers are moved, 8 bytes in 1 cycle instead of 3, and MMA.MSB takes none.
    program = dense_program(integer_header(4, 4, 32, 32), 4, 4)
    result = simulate_timing(program, 4, digits([[0]] * 4))
    assert result.total_cycles == (13 + 2 + 1 + 13) + 4 + 2 + 4 + 13
    assert "MMA.MSB" not in result.engines[MMA].busy_cycles
    assert result.counts.msb.lane_cycles == 0


def test_two_weight_slices():
    # 8-bit weights: 128 bytes (5 + 16 = 21 cycles), and every pass twice.
    program = dense_program(integer_header(4, 4, 32, 32, weight_bits=8), 4, 4)
    result = simulate_timing(program, 4, eight_per_row())
    assert result.total_cycles == (13 + 2 + 3 + 21) + 2 * 5 + 2 + 4 + 13
    assert result.counts.lsb.macs == 2 * (4 * 4 * 32)
    assert result.counts.msb.macs == 2 * (4 * 8 * 4)


def test_one_row_is_split_over_the_array():
    # M = 1, 64 columns dealt to 4 PE rows, 16 columns or 2 steps each; 8 channels are 2 column
    # blocks; adding 4 partial sums takes 2 cycles per block.
    # LSB: 2 blocks x 2 steps + 2 x 2 = 8. MSB: segments of 16, 3, 0 and 0 digits, the longest 2
    # steps: 8 again. Loads: 32 bytes 9, 8 bytes 1, 10 + 8 bytes 3, 8 x 32 bytes 37; 50 in all.
    # Drain: 8 outputs 2, store: 32 bytes 9.
    program = dense_program(integer_header(1, 8, 64, 64), 1, 8, row_split=4)
    result = simulate_timing(program, 1, digits([[8, 8, 3, 0, 0, 0, 0, 0]], unit=8))
    assert result.engines[MMA].busy_cycles == {"MMA.LSB": 8, "MMA.MSB": 8}
    assert result.engines[LOAD].busy == 9 + 1 + 3 + 37
    assert result.total_cycles == 50 + 16 + 2 + 2 + 9
    # Of 4 PE rows, those with 3, 0 and 0 digits wait 1, 2 and 2 steps.
    assert result.counts.msb.macs == 19 * 8
    assert result.counts.msb.waiting_lane_cycles == (1 + 2 + 2) * 8 * 8


def test_unsplit_row_leaves_the_array_idle():
    # The same without splitting: 2 blocks x 8 steps, and 2 blocks x ceil(19 / 8) steps.
    program = dense_program(integer_header(1, 8, 64, 64), 1, 8)
    result = simulate_timing(program, 1, digits([[8, 8, 3, 0, 0, 0, 0, 0]], unit=8))
    assert result.engines[MMA].busy_cycles == {"MMA.LSB": 16, "MMA.MSB": 6}


def test_groups_that_share_no_step():
    # Groups of 8 columns and PEs with one partial sum: 5 digits in every group are a step each, 4
    # per row, where 20 digits could be 3 steps.
    options = {"group_size": 8, "output": "float32"}
    for across, steps in ((False, 4), (True, 3)):
        machine = replace(TINY, msb_across_groups=across)
        header = header_for(machine, 4, 4, 32, 32, window="unsigned", **options)
        result = simulate_timing(dense_program(header, 4, 4), 4, digits([[5] * 4] * 4, unit=8))
        assert result.engines[MMA].busy_cycles == {"MMA.LSB": 4, "MMA.MSB": steps}


def test_dense_scheme():
    # 4 rows x 32 bytes 21 cycles, weights 13; two dense passes of 4 cycles.
    program = dense_program(integer_header(4, 4, 32, 32, scheme="dense"), 4, 4)
    result = simulate_timing(program, 4)
    assert result.total_cycles == (21 + 13) + 8 + 2 + 4 + 13
    assert result.engines[MMA].busy_cycles == {"MMA.LSB": 4, "MMA.DNS": 4}
    assert result.counts.msb.macs == 4 * 4 * 32


def test_float_outputs_count_their_bytes():
    # Row scales 16 bytes 7 cycles, channel scales 16 bytes 7 cycles, outputs of 2 bytes: 32 in 9.
    header = integer_header(4, 4, 32, 32, output="float32")
    result = simulate_timing(dense_program(header, 4, 4), 4, eight_per_row())
    assert result.total_cycles == 7 + 7 + 31 + 5 + 2 + 4 + 9


def test_outputs_are_drained_row_by_row():
    # 3 channels fill one of the words of 4 outputs, and 5 channels two, in each of 4 rows.
    for channels, words in ((3, 1), (5, 2)):
        program = dense_program(integer_header(4, channels, 32, 32), 4, channels)
        result = simulate_timing(program, 4, eight_per_row())
        assert result.engines[STORE].busy_cycles["DRAIN"] == 4 * words
