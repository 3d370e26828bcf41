"""Where a figure reaches a level: against functions of which the answer is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.studies.sweep import (
    Scan,
    Sweep,
    crossing,
    evaluate_point,
    find_crossings,
    parse_find,
    parse_over,
    quantity,
)
from sparqle_tvm.studies.sweep.crossing import PRECISION, break_even, scan_values

SAVED = quantity("time_saved")
FIXED = {"model": "smollm2-135m", "phase": "decode", "seq": 32}


def look(monkeypatch, function, level, over="dram_bytes_per_cycle", values=()):
    """Look for the level of a function of the field."""

    def evaluate(point):
        try:
            return {SAVED.column: function(point[over])}
        except ValueError as error:
            return {"error": str(error)}

    monkeypatch.setattr(crossing, "evaluate_point", evaluate)
    monkeypatch.setattr(crossing, "choose_schedules_of", list)
    return break_even(Scan(SAVED, level, over, values), {})


@given(place=st.floats(2.0, 200.0), rising=st.booleans())
def test_one_crossing_is_found_where_it_is(place, rising):
    with pytest.MonkeyPatch.context() as patch:
        found = look(patch, lambda x: (x - place) * (1 if rising else -1), 0.0)
    (at,) = found.crossings
    assert abs(at - place) <= PRECISION * max(at, place)
    assert (at >= place) == rising or at == place  # on the side that reaches it
    (reached,) = found.ranges
    assert (reached.opens, reached.closes) == (rising, not rising)


@given(place=st.integers(2, 250))
def test_whole_numbers_are_found_exactly(place):
    with pytest.MonkeyPatch.context() as patch:
        found = look(patch, lambda x: 1.0 if x >= place else 0.0, 0.5, "batch", (1.0, 256.0))
    assert found.crossings == (place,)
    assert all(value == int(value) for value, _ in found.scanned)


def test_several_crossings_are_all_found(monkeypatch):
    found = look(
        monkeypatch, lambda x: math.sin(math.log2(x) * math.pi), 0.0, values=(1.5, 3, 6, 9)
    )
    # sin(pi * log2 x) is negative from 2 to 4, and again from 8 to 16.
    assert [(r.opens, r.closes) for r in found.ranges] == [(False, True), (True, True)]
    assert found.crossings == pytest.approx((2, 4, 8), rel=2 * PRECISION)


@pytest.mark.parametrize(("value", "ranges"), [(1.0, 1), (0.0, 0)])
def test_none_is_everywhere_or_nowhere(monkeypatch, value, ranges):
    found = look(monkeypatch, lambda x: value, 0.5)
    assert (len(found.ranges), found.crossings) == (ranges, ())
    assert {figure for _, figure in found.scanned} == {value}


def test_values_without_an_estimate_are_left_out_and_said(monkeypatch):
    def function(x):
        if x < 8:
            raise ValueError("too small")
        return x

    found = look(monkeypatch, function, 20.0)
    assert found.error == "too small"
    assert found.crossings == pytest.approx((20.0,), rel=PRECISION)
    assert min(value for value, _ in found.scanned) >= 8


def test_a_crossing_of_real_estimates_parts_them():
    """Planes save energy from a little above the quarter of zeros from which on they are smaller:
    lanes that select cost some. Before that ops are left dense.
    """
    level, point = 1e-9, {**FIXED, "phase": "prefill"}
    (found,) = find_crossings(
        Scan(quantity("dense_layers_energy_saved"), level, "msb_sparsity"),
        Sweep((point,)),
        progress=False,
    )
    (at,) = found.crossings
    assert 1 / 4 < at < 1 / 3
    column = "split_dense_layers_energy_saved"
    before, there = (
        evaluate_point({**point, "msb_sparsity": value})[column] for value in (0.995 * at, at)
    )
    assert before < level <= there
    # What is left dense is chosen by time, which may cost a little energy.
    assert found.scanned[0] == (0.0, 0.0)
    assert min(saved for _, saved in found.scanned) > -5e-3


def test_processes_find_what_one_finds():
    sweep = Sweep.grid({"batch": [1, 4]}, FIXED)
    scan = Scan(quantity("seconds"), 0.01, "dram_bytes_per_cycle", (1.0, 256.0))
    alone = find_crossings(scan, sweep, workers=1, progress=False)
    assert find_crossings(scan, sweep, workers=2, progress=False) == alone
    assert [one.point["batch"] for one in alone] == [1, 4]


@pytest.mark.parametrize(
    ("over", "point", "first", "last"),
    [
        ("dram_bytes_per_cycle", {}, 1.0, 256.0),
        ("lanes", {}, 1, 256),
        ("rows", {"target": "sparqle/server"}, 4, 1024),
        ("msb_sparsity", {}, 0.0, 1.0),
        ("seq", {"phase": "decode"}, 64, 65536),
        ("kv_bits", {}, 4, 16),
    ],
)
def test_a_scan_begins_around_what_the_field_is(over, point, first, last):
    values = scan_values(Scan(SAVED, 0.1, over), point)
    assert (values[0], values[-1]) == pytest.approx((first, last))
    assert list(values) == sorted(set(values))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("time_saved=16%", ("time_saved", 0.16)),
        ("seconds=1.5", ("seconds", 1.5)),
        ("time_saved=-2%", ("time_saved", -0.02)),
    ],
)
def test_parse_find(text, found):
    assert parse_find(text) == found


def test_parse_over():
    assert parse_over("batch") == ("batch", ())
    assert parse_over("lanes=8,16") == ("lanes", (8, 16))
    name, values = parse_over("dram_bytes_per_cycle=1:25")
    assert (name, values[0], values[-1], len(values)) == ("dram_bytes_per_cycle", 1, 25, 25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_find("time_saved"), "not of the form VALUE=LEVEL"),
        (lambda: parse_find("time_saved=much"), "not of the form VALUE=LEVEL"),
        (lambda: parse_over("batch=a,b"), "no numbers"),
        (lambda: Scan(SAVED, 0.1, "model"), "'model' is no number of an estimate"),
        (lambda: Scan(SAVED, 0.1, "msb_across_groups"), "is no number"),
        (lambda: Scan(SAVED, math.inf, "batch"), "is no level"),
        (lambda: parse_find("time_saved=1"), "is 100%, which nothing saves; did you mean 1%?"),
        (lambda: Scan(SAVED, 0.1, "bandwidth"), "did you mean dram_bytes_per_cycle?"),
        (lambda: Scan(SAVED, 0.1, "batch", (8.0, 1.0)), "at least two rising values"),
        (lambda: find_crossings(Scan(SAVED, 0.1, "seq"), Sweep((FIXED,))), "seq is fixed"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_an_unknown_accelerator_is_the_reason_of_its_point():
    one = break_even(Scan(SAVED, 0.1, "rows"), {"target": "none.toml"})
    assert "none.toml" in one.error
    assert not one.scanned and not one.ranges
