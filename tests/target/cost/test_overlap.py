"""Time of a loop nest of tiles, counted by hand."""

from dataclasses import replace

import numpy as np
import pytest

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.overlap import Iteration, OpLoads, Overlap, activations_outer
from sparqle_tvm.target.op import DenseOp


def overlap(outer: int = 1, **change: float) -> Overlap:
    """1 x 4 tiles that are all alike: load 6 once, then 5 each; MMA 10, drain 2, store 1."""
    work = {"inner": 4, "k_tiles": 1, "load_outer": 6, "load_step": 5, "load_end": 0, "mma": 10}
    work = {**work, "drain": 2, "store": 1, **change}
    places = {
        "load_tail": work["load_step"],
        **{f"{place}_load": work["load_step"] for place in ("head", "edge")},
        **{f"{place}_mma": work["mma"] for place in ("head", "edge")},
        "head_drain": work["drain"],
    }
    iteration = Iteration(**{**places, **work})
    return Overlap(
        outer=outer,
        full=iteration,
        last=iteration,
        first_load=work["load_outer"] + work["load_step"],
        last_load=work["load_step"],
        **{f"last_{name}": work[name] for name in ("mma", "drain", "store")},
        **{f"before_{name}": work[name] for name in ("mma", "drain", "store")},
    )


def test_array_bound():
    # 11 of loads, 4 * 10, the last drain and store
    assert overlap().total_cycles == 11 + 40 + 3
    assert overlap().dma_cycles == 6 + 4 * (5 + 1)


def test_memory_bound():
    # All transfers: 6 + 4 * 31; the last MMA 10 and its drain 2. The store before was earlier.
    assert overlap(load_step=30, load_tail=0).total_cycles == 130 + 10 + 2
    # In one transfer, it has to wait until the last load is over, beside the last MMA.
    assert overlap(load_step=30, load_tail=30).total_cycles == 130 + 9 + 2
    # Parameters of the drain are loaded then, too: 6 + 4 * 35, and 6 that are left of the MMA
    assert overlap(load_step=30, load_tail=0, load_end=4).total_cycles == 146 + 6 + 2


def test_store_bound():
    # The first output after 11 + 10, then 4 * (20 + 1)
    assert overlap(drain=20).total_cycles == 21 + 84


def test_stores_wait_for_loads_that_began_before():
    # After a store the array works for 10, then a load takes 5, and the drain ends after 12: the
    # store waits for 3. The first output after 11 + 10, then 4 * (12 + 1 + 3)
    assert overlap(drain=12).total_cycles == 21 + 64
    # In two transfers of 3 and 2: the store comes between them, or after both.
    assert overlap(drain=12, load_tail=2).total_cycles == 21 + 4 * (12 + 1 + 1)
    assert overlap(drain=14, load_tail=2).total_cycles == 21 + 4 * (14 + 1 + 1)
    # Parameters of the drain are loaded first: 4 * (12 + 1), and 2 * 3 for those of two outputs.
    assert overlap(drain=12, load_end=3).total_cycles == 21 + 52 + 6


def test_change_of_the_outer_loop():
    # LOAD brings 40 + 2 * (5 + 1) while the array works for 2 * 10: 32 more in one change of two.
    # 45 of loads, 40, 32, 40, 3
    assert overlap(outer=2, load_outer=40).total_cycles == 45 + 40 + 32 + 40 + 3
    # What fits into the 20 cycles costs nothing: 8 + 12.
    assert overlap(outer=2, load_outer=8).total_cycles == 13 + 80 + 3


def test_store_beside_the_last_chunk():
    # 2 chunks per output. The store 8 and the load 5 take 3 more than an MMA, after each output
    # but the last: 11 + 4 * 2 * 10 + 3 * 3 + 2 + 8
    assert overlap(k_tiles=2, store=8, load_tail=2).total_cycles == 11 + 80 + 9 + 10
    # If it waits for the end of these loads (drain 2, nothing before the last transfer), there is
    # the time of two MMAs for two loads: 8 + 10 - 20 < 0.
    assert overlap(k_tiles=2, store=8, load_tail=5).total_cycles == 11 + 80 + 10


def test_short_last_chunk():
    # An MMA of 4 is too short for the next load (5), and the store 8 comes before the end of it.
    found = overlap(k_tiles=2, store=8, drain=0, load_tail=0, edge_mma=4, head_mma=16)
    assert found.total_cycles == 11 + 80 + 3 * (5 + 8 - 4) + 8


def test_parameters_go_before_a_store():
    # From the third output on: 11 + 10 + 4 * 21 + 2 * 3
    assert overlap(drain=20, load_end=3).total_cycles == 21 + 84 + 6


def test_short_last_tile_before_a_change():
    # 40 + 2 * (5 + 1) to bring, but only 10 + 2 cycles for it
    assert overlap(outer=2, load_outer=40, edge_mma=2).total_cycles == 45 + 40 + 40 + 40 + 3


def test_first_tile_after_a_change_comes_beside_the_last_before_it():
    # The last MMA takes 2 of 4 * 8, the load beside it 5: 5, 32, 3, 32, 3.
    small = {"load_outer": 0, "mma": 8, "head_mma": 10, "edge_mma": 2}
    assert overlap(outer=2, **small).total_cycles == 5 + 32 + 3 + 32 + 3
    # In two transfers (3 and 2), the store 1 after a drain of 2 gets in between.
    assert overlap(outer=2, load_tail=2, **small).total_cycles == 5 + 32 + 4 + 32 + 3


def test_small_last_iteration():
    small = overlap(mma=1)
    work = replace(small, outer=2, full=overlap().full)
    # 11 + 40, then loads of 5 and stores of 1 for 4 tiles, two of which were ahead: 2 * 6 and
    # the last MMA. The store of the tile before ends 2 after it, the last one 3 later.
    assert work.total_cycles == 11 + 40 + 13 + 2 + 3


def test_arrays_of_candidates():
    loads = np.array([5, 30])
    both = overlap(load_step=loads, load_tail=0 * loads).total_cycles
    assert both.tolist() == [54, 142]


@pytest.mark.parametrize(
    ("m_tiles", "n_tiles", "rows_outer", "expected"),
    [(1, 3, False, True), (3, 1, True, False), (3, 3, True, True), (3, 3, False, False)],
)
def test_loop_of_one_tile_is_the_outer_one(m_tiles, n_tiles, rows_outer, expected):
    assert activations_outer(m_tiles, n_tiles, rows_outer) == expected


def test_parts_of_an_op_add_up():
    shape = DenseOp(100, 200, 96, 4, 32, True)
    loads = OpLoads(
        op=shape,
        accelerator=PRESETS["sparqle/edge"],
        scheme="dense",
        activation_bytes=100 * 96,
    )
    work = Overlap.of_op(loads, (48, 64, 96), True, mma_cycles=1234)
    assert (work.outer, work.full.inner, work.full.k_tiles) == (3, 4, 1)
    # The last row tile has 4 rows: 1 of 7 row groups.
    assert work.last.array_cycles == pytest.approx(1234 / 7)
    assert 2 * work.full.array_cycles + work.last.array_cycles == pytest.approx(1234)
    # Rows once: values, 3 sums of 2 bytes, scale. Weights 3 times with 3 scales and minima of 2.
    nbytes = 100 * (96 + 6 + 4) + 3 * 200 * (48 + 12) + 100 * 200 * 2
    # 3 row tiles in 3 transfers, 12 weight tiles in 2, 12 outputs
    assert work.dma_cycles == pytest.approx(nbytes / 16 + 32 * (3 * 3 + 12 * 2 + 12))
