"""Tiles fit the buffers, loads are counted as the loop order says."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.tiling import Tiling, choose_tilings
from sparqle_tvm.target.op import SCHEMES, DenseOp


def brute_force_loads(tiling: Tiling) -> tuple[int, int]:
    """Walk the loop nest; count how often a buffer's content changes."""
    first, second = (
        (tiling.m_tiles, tiling.n_tiles) if tiling.rows_outer else (tiling.n_tiles, tiling.m_tiles)
    )
    held_a = held_w = None
    loads_a = loads_w = 0
    for outer in range(first):
        for inner in range(second):
            m, n = (outer, inner) if tiling.rows_outer else (inner, outer)
            for k in range(tiling.k_tiles):
                loads_a += held_a != (m, k)
                loads_w += held_w != (n, k)
                held_a, held_w = (m, k), (n, k)
    return loads_a, loads_w


@given(m=st.integers(1, 4), n=st.integers(1, 4), k=st.integers(1, 3), rows_outer=st.booleans())
def test_loads_are_those_of_the_loop_nest(m, n, k, rows_outer):
    tiling = Tiling(2, 2, 8, m, n, k, rows_outer)
    expected = brute_force_loads(tiling)
    found = (tiling.activation_tile_loads, tiling.weight_loads * n * k)
    # The K chunks run forward in every iteration; the one that a turn could keep is not counted.
    if k == 1 or (m, n) == (1, 1):
        assert found == expected
    else:
        assert found == (m * n * k, m * n * k)


@given(
    m=st.sampled_from([1, 7, 512]),
    n=st.sampled_from([1, 192, 1536]),
    k=st.sampled_from([30, 576, 1536, 4096]),
    group=st.sampled_from([0, 32]),
    name=st.sampled_from(sorted(PRESETS)),
    scheme=st.sampled_from(SCHEMES),
)
def test_tiles_cover_the_op_and_fit_half_of_each_buffer(m, n, k, group, name, scheme):
    accelerator = PRESETS[name]
    shape = DenseOp(m, n, k, 4, group, group > 0)
    (t,) = choose_tilings([shape], accelerator, scheme)
    assert (t.m_tiles - 1) * t.m < m <= t.m_tiles * t.m
    assert (t.n_tiles - 1) * t.n < n <= t.n_tiles * t.n
    assert (t.k_tiles - 1) * t.k < k <= t.k_tiles * t.k
    assert t.m % accelerator.rows == t.n % accelerator.cols == t.k % accelerator.lanes == 0
    rows, cols = min(t.m, m), min(t.n, n)
    row = storage.worst_row_bytes(shape, t.k, accelerator, scheme)
    assert 2 * rows * row <= accelerator.activation_buffer_bytes
    channel = storage.channel_bytes(shape, t.k)
    assert 2 * cols * channel <= accelerator.weight_buffer_bytes
    accumulators = rows * cols * shape.accumulator_bytes
    assert 2 * accumulators <= accelerator.accumulator_buffer_bytes


def test_consumers_of_one_encoding_share_the_chunk():
    shapes = [DenseOp(2048, n, 4096, 4, 32, True) for n in (4096, 1024, 11008)]
    tilings = choose_tilings(shapes, PRESETS["sparqle/edge"], "sparqle")
    assert len({t.k for t in tilings}) == 1


def test_small_operands_are_loaded_once():
    shape = DenseOp(64, 64, 64)
    (t,) = choose_tilings([shape], PRESETS["sparqle/edge"], "dense")
    assert (t.activation_loads, t.weight_loads) == (1, 1)


def test_equal_ops_are_searched_once():
    shapes = [DenseOp(333, 96, 96, label=label) for label in ("blk_0", "blk_1")]
    assert shapes[0] == shapes[1]
    tilings = [choose_tilings([s], PRESETS["sparqle/edge"], "dense") for s in shapes]
    assert tilings[0] is tilings[1]


def test_no_tile_fits(tiny):
    shape = DenseOp(2, 2, 4096, 4, 4096, False, label="wide")
    with pytest.raises(TargetError, match=r"'tiny': no tile of 'wide' .* at least 4096 columns"):
        choose_tilings([shape], tiny, "sparqle")
    roomy = dataclasses.replace(tiny, activation_buffer_bytes=2**20, weight_buffer_bytes=2**20)
    assert choose_tilings([shape], roomy, "sparqle")
