"""Cycles of the array where PE rows share K; every sum by hand."""

from dataclasses import replace

import numpy as np
import pytest
from cycle_rules import dense_cycles, sparse_cycles
from hypothesis import given
from hypothesis import strategies as st

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.array import (
    best_row_split,
    lsb_pass_cycles,
    msb_pass_cycles,
)
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]


def nnz_of(bits: np.ndarray) -> RowNnz:
    return RowNnz.from_pbm(np.packbits(bits, axis=1, bitorder="little"), bits.shape[1])


def test_row_split_by_hand(tiny):
    array = replace(tiny, rows=4, lanes=8)
    shape = DenseOp(1, 4, 96)
    # 1 row, 96 columns, 8 lanes: 12 steps. r = 1: 12; 2: 6 + 1; 3: 4 + 2; 4: 3 + 2 = 5.
    assert best_row_split(shape, array, 96) == 4
    # 2 rows leave r <= 2; 3 rows leave none.
    assert best_row_split(replace(shape, m=2), array, 96) == 2
    assert best_row_split(replace(shape, m=3), array, 96) == 1
    # 16 columns: 2 steps. r = 1: 2; r = 2: 1 + 1 = 2, no gain.
    assert best_row_split(shape, array, 16) == 1
    # Two weight slices walk twice, but partial sums are added once: 2 * 2 against 2 * 1 + 1.
    assert best_row_split(replace(shape, weight_bits=8), array, 16) == 2


def test_one_token_by_hand(tiny):
    shape = DenseOp(1, 3, 16)
    bits = np.zeros((1, 16), bool)
    bits[0, :5] = bits[0, 15] = True
    # 4 steps; two rows take 2 each. 2 column blocks, and 1 cycle per block to add the halves.
    assert lsb_pass_cycles(shape, 16, tiny) == 2 * 2 + 2
    # Halves of 5 and 1 digits: 2 steps and 1.
    assert msb_pass_cycles(shape, nnz_of(bits), 16, tiny) == 2 * 2 + 2
    # Chunks of 8: one step in each half, in each chunk, and the sum each time: no gain of a split.
    assert lsb_pass_cycles(shape, 8, tiny) == 2 * (2 + 2)


def test_last_chunk_by_hand(tiny):
    # Chunks of 32 and 8 columns: 8 steps and 2; 2 row groups.
    assert lsb_pass_cycles(DenseOp(4, 2, 40), 32, tiny) == 2 * (8 + 2)


def test_digits_counted_together_are_spread_evenly(tiny):
    # 48 columns, r = 2: halves of 24. Spans of 16 with 16, 8 and 0 digits: 16 + 4 and 4 digits.
    nnz = RowNnz(np.array([[16, 8, 0]]), 16, 48)
    assert msb_pass_cycles(DenseOp(1, 2, 48), nnz, 48, tiny) == 5 + 1


@pytest.mark.parametrize("across", [True, False])
@given(
    m=st.integers(1, 20),
    n=st.integers(1, 40),
    k=st.sampled_from([32, 96, 160]),
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([0, 32]),
    seed=st.integers(0, 99),
)
def test_one_tile_is_one_instruction(across, m, n, k, bits, group, seed):
    array = replace(EDGE, msb_across_groups=across)
    shape = DenseOp(m, n, k, bits, group)
    mask = np.random.default_rng(seed).random((m, k)) < 0.4
    split = best_row_split(shape, array, k)
    header = Header(
        accelerator=array,
        op=shape,
        k_chunk=k,
    )
    assert lsb_pass_cycles(shape, k, array) == dense_cycles(header, m, n, k, split)
    assert msb_pass_cycles(shape, nnz_of(mask), k, array) == sparse_cycles(header, mask, n, split)
