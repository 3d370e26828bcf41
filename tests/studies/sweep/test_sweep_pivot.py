"""A figure over two names of a sweep, and the names of figures."""

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.studies.sweep import Sweep, SweepResult, evaluate_point, pivot, quantity
from sparqle_tvm.studies.sweep.figures import COLUMNS

FIXED = {"model": "smollm2-135m", "phase": "decode", "seq": 32}


def made(sweep: Sweep) -> SweepResult:
    """A sweep whose figure is a number made of the point, so that cells are told apart."""

    def value(point):
        return sum(float(point.get(name, 0)) for name in ("batch", "lanes", "kv_bits"))

    return SweepResult(sweep, tuple({"dense_whole_model_seconds": value(p)} for p in sweep.points))


def test_every_cell_is_that_of_its_row_and_column():
    axes = {"kv_bits": [4, 8], "batch": [100, 200, 300], "lanes": [1000, 2000]}
    found = pivot(made(Sweep.grid(axes, FIXED)), "lanes", "batch", quantity("dense_seconds"))
    assert (found.row_values, found.col_values) == ((1000, 2000), (100, 200, 300))
    assert found.fixed == FIXED
    assert [panel.point for panel in found.panels] == [{"kv_bits": 4}, {"kv_bits": 8}]
    for bits, panel in zip((4, 8), found.panels, strict=True):
        assert panel.values == tuple(
            tuple(float(bits + batch + lanes) for batch in (100, 200, 300))
            for lanes in (1000, 2000)
        )


def test_what_has_no_estimate_is_an_empty_cell():
    points = ({"batch": 1, "lanes": 1}, {"batch": 2, "lanes": 2}, {"batch": 1, "lanes": 2})
    sweep = Sweep(points)
    results = (*made(sweep).results[:2], {"error": "no"})
    (panel,) = pivot(
        SweepResult(sweep, results), "batch", "lanes", quantity("dense_seconds")
    ).panels
    assert panel.values == ((2.0, None), (None, 4.0))


def test_figures_are_those_of_an_estimate():
    figures = evaluate_point({**FIXED, "msb_sparsity": 0.5})
    assert set(COLUMNS) <= set(figures)
    found = estimate(msb_sparsity=0.5, schemes=("dense", "sparqle"), **FIXED)
    for part, prefix in (("whole_model", ""), ("dense_layers", "dense_layers_")):
        saved, split = found.saved("sparqle", part), found.schemes["sparqle"].part(part)
        dense = found.schemes["dense"].part(part)
        for name, value in {
            "time_saved": saved.cycles,
            "energy_saved": saved.energy.mid,
            "dram_saved": saved.dram_bytes,
            "seconds": split.seconds,
            "joules": split.energy.joules.mid,
            "dense_seconds": dense.seconds,
            "dense_joules": dense.energy.joules.mid,
        }.items():
            assert figures[quantity(prefix + name).column] == value


@pytest.mark.parametrize(
    ("name", "unit", "good", "bad"),
    [
        ("time_saved", "share", 0.2, 0.1),
        ("dense_layers_seconds", "seconds", 0.1, 0.2),
        ("split_whole_model_dram_bytes", "bytes", 0.1, 0.2),
        ("dense_whole_model_joules_high", "joules", 0.1, 0.2),
        ("msb_sparsity_mean", "share", 0.2, 0.1),
    ],
)
def test_savings_reach_a_level_from_below_and_costs_from_above(name, unit, good, bad):
    found = quantity(name)
    assert found.unit == unit
    assert found.reached(good, 0.15)
    assert found.reached(0.15, 0.15)
    assert not found.reached(bad, 0.15)


@pytest.mark.parametrize(
    ("rows", "cols", "value", "message"),
    [
        ("batch", "lanes", "speed", "value 'speed' is unknown; known: time_saved, energy_saved"),
        ("batch", "seq", "seconds", "'seq' is no name of this sweep; it has batch, lanes"),
        ("batch", "batch", "seconds", "rows and columns are both 'batch'"),
    ],
)
def test_refuses(rows, cols, value, message):
    with pytest.raises(InvalidArgumentError, match=message):
        pivot(made(Sweep.grid({"batch": [1], "lanes": [1]})), rows, cols, quantity(value))
