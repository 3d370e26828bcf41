"""Tiles fit the buffers, loads are counted as the loop order says."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES, array_of
from sparqle_tvm.target.cost.schedule import Decisions, Tiling, overflows
from sparqle_tvm.target.cost.tiling import choose_schedules
from sparqle_tvm.target.op import DenseOp


def loads_by_walking(tiling: Tiling) -> tuple[int, int]:
    """Loads of whole operands, counted where the program has them in its loop nest."""
    d = tiling.schedule
    counts = tiling.m_tiles, tiling.n_tiles
    outer, inner = counts if d.rows_outer else counts[::-1]
    tiles = [0, 0]
    kept, other = (0, 1) if d.rows_outer else (1, 0)
    for _ in range(outer):
        tiles[kept] += tiling.k_tiles * d.keep_outer
        for _ in range(inner):
            for _ in range(tiling.k_tiles):
                tiles[kept] += not d.keep_outer
                tiles[other] += 1
    return (
        tiles[0] // (tiling.m_tiles * tiling.k_tiles),
        tiles[1] // (tiling.n_tiles * tiling.k_tiles),
    )


@given(
    m=st.integers(1, 4),
    n=st.integers(1, 4),
    k=st.integers(1, 3),
    rows_outer=st.booleans(),
    keep=st.booleans(),
)
def test_loads_are_those_of_the_loop_nest(m, n, k, rows_outer, keep):
    schedule = Decisions(m=2, n=2, k=8, rows_outer=rows_outer, keep_outer=keep)
    tiling = Tiling(DenseOp(2 * m, 2 * n, 8 * k), schedule)
    found = (tiling.activation_loads, tiling.weight_loads)
    assert found == loads_by_walking(tiling)


@given(
    m=st.sampled_from([1, 7, 512]),
    n=st.sampled_from([1, 192, 1536]),
    k=st.sampled_from([30, 576, 1536, 4096]),
    group=st.sampled_from([0, 32]),
    name=st.sampled_from(sorted(PRESETS)),
    scheme=st.sampled_from(ALL_SCHEMES),
)
@settings(deadline=None)
def test_tiles_are_whole_and_fit(m, n, k, group, name, scheme):
    accelerator = PRESETS[name]
    shape = DenseOp(m, n, k, 4, group, group > 0)
    (d,) = choose_schedules([shape], accelerator, scheme)
    lanes = array_of(accelerator, scheme).lanes
    assert d.m % accelerator.rows == d.n % accelerator.cols == d.k % lanes == 0
    rows, cols, columns = min(d.m, m), min(d.n, n), min(d.k, k)
    bits = {"sparqle": 9, "a4": 4}.get(scheme, 8)
    row = columns * bits / 8 * d.activation_slots
    channel = columns * 4 / 8 * d.weight_slots
    # What stays, stays with all its chunks; what there is one of, has one slot.
    several = {"m": d.m < m, "n": d.n < n, "k": d.k < k}
    if not any(several.values()):
        row, channel = row / d.activation_slots, channel / d.weight_slots
    assert rows * row <= accelerator.memory_bytes("activation") or not several["n"]
    assert cols * channel <= accelerator.memory_bytes("weight") or not several["m"]
    accumulators = rows * cols * shape.accumulator_bytes
    slots = d.accumulator_slots if several["m"] or several["n"] else 1
    assert slots * accumulators <= accelerator.memory_bytes("accumulator")
    if scheme == "sparqle":
        assert not overflows(shape, accelerator, d)


def test_consumers_of_one_encoding_share_the_chunk():
    shapes = [DenseOp(2048, n, 4096, 4, 32, True) for n in (4096, 1024, 11008)]
    schedules = choose_schedules(shapes, PRESETS["sparqle/edge"], "sparqle")
    assert len({d.k for d in schedules}) == 1


def test_small_operands_are_loaded_once():
    shape = DenseOp(64, 64, 64)
    (d,) = choose_schedules([shape], PRESETS["sparqle/edge"], "dense")
    tiling = Tiling(shape, d)
    assert (tiling.activation_loads, tiling.weight_loads) == (1, 1)


def test_equal_ops_are_searched_once():
    shapes = [DenseOp(333, 96, 96, label=label) for label in ("blk_0", "blk_1")]
    assert shapes[0] == shapes[1]
    schedules = [choose_schedules([s], PRESETS["sparqle/edge"], "dense") for s in shapes]
    assert schedules[0][0] is schedules[1][0]


def test_no_tile_fits(tiny):
    shape = DenseOp(2, 2, 4096, 4, 4096, False, label="wide")
    with pytest.raises(TargetError, match=r"'tiny': no tile of 'wide' .* at least 4096 columns"):
        choose_schedules([shape], tiny, "sparqle")
    roomy = dataclasses.replace(tiny, activation_buffer_bytes=2**20, weight_buffer_bytes=2**20)
    assert choose_schedules([shape], roomy, "sparqle")
