"""Cycles and bytes: counted by hand, conserved, monotone."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.analytical import (
    dense_op_cost,
    encode_cost,
    encoding_costs,
)
from sparqle_tvm.target.cost.array import best_row_split, lsb_pass_cycles, msb_pass_cycles
from sparqle_tvm.target.cost.factors import NO_FACTORS, EncodeFactors
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]


def rows_with(nnz: list[list[int]], span: int = 8) -> RowNnz:
    """Rows that store that many digits in each span of columns, the leading ones."""
    mask = np.array([[i < count for count in row for i in range(span)] for row in nnz])
    return RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), mask.shape[1])


def random_nnz(m: int, k: int, density: float, seed: int = 0) -> RowNnz:
    mask = np.random.default_rng(seed).random((m, k)) < density
    return RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), k)


ONE_TILE = Decisions(m=4, n=4, k=8, keep_outer=True)


def test_one_tile_by_hand(tiny):
    nnz = rows_with([[5], [0], [3]])
    cost = dense_op_cost(DenseOp(3, 3, 8, has_offset=True), nnz, ONE_TILE, tiny, "sparqle")
    # 2 row groups * 2 column blocks * 8 columns / 4 lanes
    assert cost.lsb_cycles == 2 * 2 * 2
    # Group (5, 0): ceil(5/4) = 2, group (3): 1; for each of 2 column blocks
    assert cost.msb_cycles == 2 * (2 + 1)
    # LSB 3 rows * 4 bytes; MSB of 5, 0, 3 digits: 3 + 0 + 2 bytes
    assert cost.activation_bytes == 12 + 5
    # Bitmap 3 * 1; where the tile begins and ends, 4 bytes each; scales 3 * 4
    assert cost.metadata_bytes == 3 + 8 + 12
    # 3 channels of 4 bytes of weights, scale and offset of 4 bytes each
    assert cost.weight_bytes == 3 * (4 + 4 + 4)
    assert cost.output_bytes == 3 * 3 * 2
    # 3 rows of 2 words of 2 outputs
    assert cost.drain_cycles == 3 * 2
    # Planes 28/4 + 10, scales 12/4 + 10, weights 12/4 + 10, parameters 24/4 + 10,
    # store 18/4 + 10: 17 + 13 + 13 + 16 + 14.5
    assert cost.dma_cycles == 74
    # One tile: only the array (14 + 2 for the last sums) and the parameters (16) overlap
    assert cost.total_cycles == 43 + 16 + 6 + 15
    assert cost.exposed_cycles == 80 - 74
    assert cost.bound == "memory"


def test_dense_one_tile_by_hand(tiny):
    nnz = rows_with([[5], [0], [3]])
    cost = dense_op_cost(DenseOp(3, 3, 8), nnz, ONE_TILE, tiny, "dense")
    assert (cost.lsb_cycles, cost.msb_cycles) == (8, 8)
    assert (cost.activation_bytes, cost.metadata_bytes) == (3 * 8, 3 * 4)
    assert cost.weight_bytes == 3 * (4 + 4)
    # Planes 24/4 + 10, scales 12/4 + 10, weights and parameters 12/4 + 10 each, store 18/4 + 10
    assert cost.dma_cycles == 70  # 16 + 13 + 13 + 13 + 14.5
    # The array (16 + 2) beside the parameters (13)
    assert cost.total_cycles == 42 + 18 + 6 + 15


def test_two_column_tiles_overlap(tiny):
    nnz = rows_with([[5], [0], [3]])
    schedule = Decisions(m=4, n=2, k=8, keep_outer=True)
    cost = dense_op_cost(DenseOp(3, 3, 8, has_offset=True), nnz, schedule, tiny, "sparqle")
    # The activations stay: 17 + 13. Two tiles of weights 3 + 2*10, of parameters 6 + 2*10,
    # of outputs 4.5 + 2*10
    assert cost.dma_cycles == 104  # 30 + 23 + 26 + 24.5
    # Memory-bound; the array's 7 cycles for the last tile hide behind its parameters. 104 with
    # whole cycles for every transfer, + 3 for the drain of its one column
    assert cost.total_cycles == 107


def test_row_tiles_reload_weights_and_columns_reload_activations(tiny):
    shape, nnz = DenseOp(4, 4, 16), rows_with([[1, 2], [3, 4], [5, 6], [7, 8]])
    once = dense_op_cost(shape, nnz, Decisions(m=4, n=4, k=16, keep_outer=True), tiny, "sparqle")
    rows = dense_op_cost(shape, nnz, Decisions(m=2, n=2, k=16, keep_outer=True), tiny, "sparqle")
    cols = dense_op_cost(
        shape, nnz, Decisions(m=2, n=2, k=16, rows_outer=False, keep_outer=True), tiny, "sparqle"
    )
    assert rows.weight_bytes == 2 * once.weight_bytes
    assert cols.weight_bytes == once.weight_bytes
    assert rows.activation_bytes == once.activation_bytes
    assert cols.activation_bytes == 2 * once.activation_bytes
    assert cols.metadata_bytes == 2 * rows.metadata_bytes
    # Every load of an activation tile fetches its two pointers.
    assert rows.metadata_bytes == once.metadata_bytes + 8


def test_chunks_make_rows_wait_more_often(tiny):
    shape, nnz = DenseOp(2, 2, 16), rows_with([[1, 7], [7, 1]])
    # Whole K: both rows have 8 digits, 2 steps. Chunks of 8: 2 + 2 steps.
    assert msb_pass_cycles(shape, nnz, 16, tiny) == 2
    assert msb_pass_cycles(shape, nnz, 8, tiny) == 4


def test_one_slow_row_and_an_empty_plane(tiny):
    shape = DenseOp(4, 2, 16)
    # Group (16, 0) takes 4 steps although one of its rows is idle; group (0, 0) none.
    assert msb_pass_cycles(shape, rows_with([[8, 8], [0, 0], [0, 0], [0, 0]]), 16, tiny) == 4
    assert msb_pass_cycles(shape, rows_with([[0, 0]] * 4), 16, tiny) == 0


@pytest.mark.parametrize(("bits", "slices"), [(2, 1), (4, 1), (8, 2)])
def test_weight_slices_multiply_both_passes(tiny, bits, slices):
    shape, nnz = DenseOp(2, 2, 8, bits), rows_with([[5], [0]])
    cost = dense_op_cost(shape, nnz, ONE_TILE, tiny, "sparqle")
    assert (cost.lsb_cycles, cost.msb_cycles) == (2 * slices, 2 * slices)
    assert cost.weight_bytes == 2 * (bits + 4)


def test_groups_minima_and_offsets_by_hand(tiny):
    shape, nnz = DenseOp(2, 2, 16, 4, 8, True), rows_with([[1, 1], [1, 1]])
    schedule = Decisions(m=2, n=2, k=16, keep_outer=True)
    cost = dense_op_cost(shape, nnz, schedule, tiny, "sparqle")
    # Per channel: 8 bytes of weights, 2 scales and 2 minima of 2 bytes
    assert cost.weight_bytes == 2 * (8 + 8)
    # Bitmap 2 * 2, pointers 2 * 4, scales 2 * 4, 2 group sums of 2 bytes for each of 2 rows
    assert cost.metadata_bytes == 4 + 8 + 8 + 8
    biased = dataclasses.replace(shape, has_offset=True)
    # An offset of 8 bytes
    assert dense_op_cost(biased, nnz, schedule, tiny, "sparqle").weight_bytes == 2 * (8 + 8 + 8)


def test_digits_of_groups_share_cycles_only_with_segmented_adders(tiny):
    shape, nnz = DenseOp(2, 2, 16, 4, 8), rows_with([[1, 1], [2, 2]])
    assert msb_pass_cycles(shape, nnz, 16, tiny) == 1
    simple = dataclasses.replace(tiny, msb_across_groups=False)
    assert msb_pass_cycles(shape, nnz, 16, simple) == 2
    assert lsb_pass_cycles(shape, 16, simple) == lsb_pass_cycles(shape, 16, tiny) == 4
    per_channel = DenseOp(2, 2, 16)
    assert msb_pass_cycles(per_channel, nnz, 16, simple) == 1


def test_encode_by_hand(tiny):
    nnz = rows_with([[5], [0], [3]])
    cost = encode_cost("x", nnz, ONE_TILE, 0, tiny, "sparqle")
    # 24 elements * 3 passes / 4 lanes
    assert cost.vector_cycles == 18
    assert (cost.activation_bytes, cost.metadata_bytes) == (17, 27)
    # 44/4 bytes, one tile of 2 descriptors * 10: the piece, and the scales
    assert cost.dma_cycles == 31
    assert (cost.total_cycles, cost.bound) == (31, "memory")
    dense = encode_cost("x", nnz, ONE_TILE, 0, tiny, "dense")
    assert (dense.vector_cycles, dense.dram_bytes) == (12, 24 + 12)


def test_encode_with_factors_and_bands_by_hand(tiny):
    nnz = rows_with([[5], [0], [3]])
    plain = encode_cost("x", nnz, ONE_TILE, 0, tiny, "sparqle")
    factors = encode_cost("x", nnz, ONE_TILE, 0, tiny, "sparqle", factors=EncodeFactors(True))
    both = encode_cost("x", nnz, ONE_TILE, 0, tiny, "sparqle", factors=EncodeFactors(True, True))
    # 24 elements * (3 + 1) passes / 4 lanes, then + 2 more
    assert (factors.vector_cycles, both.vector_cycles) == (24, 36)
    # 8 columns * 4 bytes, + 8 * 2
    assert (factors.factor_bytes, both.factor_bytes) == (32, 48)
    assert both.dram_bytes == plain.dram_bytes + 48
    assert both.events.dram_read_bytes == 48
    assert both.events.dram_write_bytes == plain.events.dram_write_bytes
    # (44 + 48) / 4 bytes, one tile of 2 descriptors * 10
    assert both.dma_cycles == 43
    # Integers that are left whole have been scaled and clipped all the same.
    plain, both = (
        encode_cost("x", nnz, ONE_TILE, 0, tiny, "dense", factors=factors)
        for factors in (NO_FACTORS, EncodeFactors(True, True))
    )
    assert both.vector_cycles == plain.vector_cycles + 18
    assert both.dram_bytes == plain.dram_bytes + 48


def test_what_is_written_is_what_one_load_reads():
    nnz = random_nnz(50, 576, 0.3)
    shapes = [DenseOp(50, n, 576, 4, 32, True) for n in (64, 128)]
    for scheme in ("sparqle", "dense"):
        encode, ops = encoding_costs("x", nnz, shapes, EDGE, scheme)
        pointers = storage.pointer_bytes(50, 576, ops[0].tiling.schedule.k, EDGE.rows)
        kept = encode.metadata_bytes - 50 * 4 - (pointers if scheme == "sparqle" else 0)
        for op in ops:
            tiling = op.tiling
            loads = tiling.activation_loads
            assert op.activation_bytes == encode.activation_bytes * loads
            tile_pointers = (
                8 * loads * tiling.m_tiles * tiling.k_tiles if scheme == "sparqle" else 0
            )
            scales = tiling.row_loads * 50 * 4
            assert op.metadata_bytes == kept * loads + scales + tile_pointers


def test_bits_per_element_are_those_of_the_idea():
    # k + 1 + k * (1 - s) bits, up to padding, against 2k: even at s = 1/k
    nnz, schedule = random_nnz(64, 4096, 0.75), Decisions(m=64, n=64, k=4096)
    sparqle = encode_cost("x", nnz, schedule, 0, EDGE, "sparqle")
    dense = encode_cost("x", nnz, schedule, 0, EDGE, "dense")
    assert sparqle.dram_bytes == pytest.approx(dense.dram_bytes, rel=0.01)


shapes_strategy = st.builds(
    DenseOp,
    m=st.integers(1, 70),
    n=st.integers(1, 80),
    k=st.sampled_from([32, 64, 96, 576]),
    weight_bits=st.sampled_from([2, 4, 8]),
    group_size=st.sampled_from([0, 32]),
)


@given(shape=shapes_strategy, seed=st.integers(0, 99), more=st.floats(0, 1))
@settings(deadline=None)
def test_more_digits_never_cost_less(shape, seed, more):
    rng = np.random.default_rng(seed)
    draw = rng.random((shape.m, shape.k))
    few, many = draw < 0.3, draw < 0.3 + 0.7 * more
    costs = []
    for mask in (few, many):
        nnz = RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), shape.k)
        encode, (op,) = encoding_costs("x", nnz, [shape], EDGE, "sparqle")
        # Not the time: with a slower array, a store may come after a load instead of before it.
        costs.append((op.mma_cycles, op.dram_bytes, encode.total_cycles))
    assert all(a <= b for a, b in zip(*costs, strict=True))


@given(shape=shapes_strategy, seed=st.integers(0, 99), density=st.floats(0, 1))
@settings(deadline=None)
def test_bounds_against_dense(shape, seed, density):
    nnz = random_nnz(shape.m, shape.k, density, seed)
    _, (sparqle,) = encoding_costs("x", nnz, [shape], EDGE, "sparqle")
    dense = dense_op_cost(shape, nnz, sparqle.tiling.schedule, EDGE, "dense")
    assert sparqle.lsb_cycles == dense.lsb_cycles
    assert sparqle.msb_cycles <= dense.msb_cycles
    # The array can do no more than rows * cols * lanes products per cycle.
    products = (shape.macs + nnz.total * shape.n) * shape.weight_slices
    assert sparqle.mma_cycles * EDGE.macs_per_cycle >= products
    for cost in (sparqle, dense):
        assert cost.total_cycles >= max(cost.compute_cycles, cost.dma_cycles)
        assert cost.exposed_cycles >= 0


@given(shape=shapes_strategy)
@settings(deadline=None)
def test_without_digits_half_of_the_array_time_remains(shape):
    nnz = RowNnz.from_pbm(np.zeros((shape.m, shape.k // 8), np.uint8), shape.k)
    _, (sparqle,) = encoding_costs("x", nnz, [shape], EDGE, "sparqle")
    dense = dense_op_cost(shape, nnz, sparqle.tiling.schedule, EDGE, "dense")
    split = best_row_split(shape, EDGE, min(sparqle.tiling.schedule.k, shape.k))
    # PE rows that share an activation row add up what they have, be it nothing.
    blocks = math.ceil(shape.n / EDGE.cols) * sparqle.tiling.k_tiles
    assert sparqle.msb_cycles == blocks * math.ceil(math.log2(split))
    assert 2 * sparqle.lsb_cycles == dense.mma_cycles
    assert sparqle.activation_bytes < dense.activation_bytes


def test_bitmap_of_another_shape():
    with pytest.raises(InvalidArgumentError, match=r"takes \(3, 16\).*of \(2, 16\)"):
        encoding_costs("x", random_nnz(2, 16, 0.5), [DenseOp(3, 1, 16)], EDGE, "dense")
    with pytest.raises(InvalidArgumentError, match="no dense op"):
        encoding_costs("x", random_nnz(2, 16, 0.5), [], EDGE, "dense")
