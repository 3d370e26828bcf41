"""Conservation: what is counted follows from the operands and the tiles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from cycle_rules import sparse_cycles
from simulator_programs import TINY, dense_program, header_for, random_operands

from sparqle_tvm.numerics import encode
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.compute import Drain, MmaMsb, StOut
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.isa.load import LdPbm
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.simulator import (
    draw_nnz,
    nnz_from_bitmap,
    simulate,
    simulate_timing,
)

FORMS = {
    "int4": {},
    "groups": {"group_size": 32, "has_min": True, "weight_signed": False},
    "int8 weights": {"weight_bits": 8},
    "offset": {"has_offset": True},
}
M, N, K = 22, 27, 192
ROWS, COLS, CHUNK = 8, 9, 64


def run(options, *, machine=TINY):
    header = header_for(machine, M, N, K, CHUNK, **options)
    program = dense_program(header, ROWS, COLS)
    operands = random_operands(np.random.default_rng(1), header, M)
    return header, operands, simulate(program, operands.tensors), program


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_bytes_are_sizes_times_reloads(options):
    header, operands, result, _ = run(options)
    tensors, counts = operands.tensors, result.counts
    # Row tiles outside, column tiles, chunks inside: activations are loaded once per column tile,
    # weights once per row tile, row scales once.
    row_tiles, col_tiles, chunks = math.ceil(M / ROWS), math.ceil(N / COLS), math.ceil(K / CHUNK)
    expected = {
        Tensor.LSB: col_tiles * tensors[Tensor.LSB].nbytes,
        Tensor.PBM: col_tiles * tensors[Tensor.PBM].nbytes,
        Tensor.MSB: col_tiles * tensors[Tensor.MSB].nbytes,
        Tensor.MSB_PTR: 8 * row_tiles * col_tiles * chunks,
        Tensor.ACT_SCALE: tensors[Tensor.ACT_SCALE].nbytes,
        Tensor.WGT: row_tiles * tensors[Tensor.WGT].nbytes,
        Tensor.W_SCALE: row_tiles * tensors[Tensor.W_SCALE].nbytes,
    }
    if header.op.has_offset:
        expected[Tensor.OFFSET] = row_tiles * tensors[Tensor.OFFSET].nbytes
    if header.op.has_min:
        expected[Tensor.GROUP_SUMS] = col_tiles * tensors[Tensor.GROUP_SUMS].nbytes
        expected[Tensor.W_MIN] = row_tiles * tensors[Tensor.W_MIN].nbytes
    assert counts.dram_read_bytes == expected
    assert counts.dram_write_bytes == {Tensor.OUT: M * N * header.accelerator.float_bytes}
    # All that is loaded but the pointers is written on chip.
    onchip = counts.onchip_write_bytes
    read = sum(counts.dram_read_bytes.values()) - expected[Tensor.MSB_PTR]
    assert onchip[Buffer.ACT] + onchip[Buffer.WGT] == read
    transfers = 2  # what belongs to a tile of activations or of weights is one
    tiles = row_tiles * col_tiles
    # For every output tile the store, and LD.CHN if there is anything to load; LD.ROW.
    parameters = 1 if header.channel_bytes else 0
    assert counts.descriptors == tiles * (chunks * transfers + 1 + parameters) + row_tiles
    assert counts.drained_elements == M * N


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_macs_are_digits_times_channels(options):
    header, operands, result, _ = run(options)
    slices = header.op.weight_slices
    stored = int(encode(operands.q).row_nnz().sum())
    assert result.counts.lsb.macs == M * N * K * slices
    assert result.counts.msb.macs == stored * N * slices
    for plane in (result.counts.lsb, result.counts.msb):
        assert plane.lane_cycles == plane.macs + plane.waiting_lane_cycles + (
            plane.padding_lane_cycles
        )
        assert min(plane.waiting_lane_cycles, plane.padding_lane_cycles) >= 0
    busy = result.engines[Engine.MMA].busy
    lane_cycles = result.counts.lsb.lane_cycles + result.counts.msb.lane_cycles
    assert lane_cycles == busy * header.accelerator.macs_per_cycle


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("split", [1, 3])
def test_sparse_steps_follow_the_rule_of_the_instruction(across, split):
    machine = replace(TINY, msb_across_groups=across, lanes=4)
    rows = 1 if split > 1 else 22
    header = header_for(machine, rows, N, 140, 140, group_size=20)
    program = dense_program(header, min(rows, 8), COLS, row_split=split)
    operands = random_operands(np.random.default_rng(2), header, rows)
    result = simulate(program, operands.tensors)
    bits = encode(operands.q).mask()
    bound, when = result.bound, result.timing
    for step in bound.of(MmaMsb).index.tolist():
        load = bound.trace[when.sources[step, 0]]
        row, height, col, width = (
            int(load[LdPbm.column(o)]) for o in ("row", "rows", "col", "cols")
        )
        tile = bits[row : row + height, col : col + width]
        n = int(bound.trace[step, MmaMsb.column("n")])
        assert when.end[step] - when.start[step] == sparse_cycles(header, tile, n, split)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_timing_alone_equals_the_timing_with_values(options):
    _, operands, result, program = run(options)
    nnz = nnz_from_bitmap(operands.tensors[Tensor.PBM], program)
    alone = simulate_timing(program, M, nnz)
    assert alone.output is None
    assert alone.total_cycles == result.total_cycles
    assert alone.counts == result.counts
    assert alone.engines == result.engines
    # The same digits, counted a chunk at a time.
    coarse = simulate_timing(program, M, RowNnz(nnz.per_chunk(CHUNK), CHUNK, K))
    assert coarse.total_cycles == result.total_cycles
    assert coarse.counts == result.counts


def test_engines_account_for_every_cycle():
    _, _, result, _ = run(FORMS["groups"])
    for engine, time in result.engines.items():
        assert time.busy + time.stalled == result.total_cycles, engine
    when = result.timing
    assert (when.ready <= when.start).all() and (when.start <= when.end).all()
    assert (np.diff(when.start[when.order]) >= 0).all()
    # One transfer at a time.
    moved = np.flatnonzero(when.dram_bytes)
    moved = moved[np.argsort(when.start[moved])]
    assert (when.end[moved][:-1] <= when.start[moved][1:]).all()
    # DRAIN reads 8-byte accumulators and writes 4-byte outputs, ST.OUT reads those.
    assert len(result.bound.of(Drain)) == len(result.bound.of(StOut)) == 9


def test_drawn_digits():
    rng = np.random.default_rng(3)
    density = [0.1, 0.3, 0.8]
    nnz = draw_nnz(rng, density, 300, 1000, 64)
    assert nnz.counts.shape == (300, 16)
    assert (nnz.counts >= 0).all() and (nnz.counts[:, :-1] <= 64).all()
    assert (nnz.counts[:, -1] <= 1000 - 15 * 64).all()
    assert abs(nnz.msb_sparsity - 0.6) < 0.05
    again = draw_nnz(np.random.default_rng(3), density, 300, 1000, 64)
    np.testing.assert_array_equal(nnz.counts, again.counts)
