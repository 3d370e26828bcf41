"""The map of machines beside the paper: what is reached, what is missing, and what is stored."""

from dataclasses import replace

import numpy as np
import pytest

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import plain, typed
from sparqle_tvm.report.paper import MODELS, RANGES
from sparqle_tvm.report.paper_map import (
    ARRAYS,
    BYTES_PER_1024_MACS,
    Machine,
    PaperMap,
    Place,
    machines,
    map_section,
    paper_map,
    points_of,
    stored_map,
)
from sparqle_tvm.report.pictures.paper_map import draw_paper_map
from sparqle_tvm.results.passes import PARTS
from sparqle_tvm.studies.sweep import evaluate_point, quantity
from sparqle_tvm.studies.sweep.points import Sweep
from sparqle_tvm.target.accelerator import PRESETS

AGAIN = "run: python benchmarks/bench_map.py"
EDGE = Machine((16, 16, 16), 4, 1, True, 1, 2048)


def place(machine: Machine, **missing: float) -> Place:
    """Everything is just reached, but for what is said of the whole model, by figure and model."""
    saved = {
        part: {f"{phase} {what}": [r.low] * 3 for (phase, what), r in RANGES.items()}
        for part in PARTS
    }
    for name, share in missing.items():
        phase, what, model = name.split("_")
        saved["whole_model"][f"{phase} {what}"][int(model)] -= share
    return Place(machine, {p: {n: tuple(v) for n, v in x.items()} for p, x in saved.items()})


def rows_for(found: list[Machine], saved) -> list[dict]:
    """Rows of a sweep in which every machine saves what a function of its fields says."""
    rows = []
    for point in points_of(found):
        row = dict(point)
        for prefix in ("", "dense_layers_"):
            for name in ("time_saved", "energy_saved"):
                row[quantity(prefix + name).column] = saved(point)
        rows.append(row)
    return rows


def test_a_machine_as_the_preset_is_the_preset():
    fields = EDGE.fields
    edge = PRESETS["sparqle/edge"]
    assert replace(edge, **fields) == edge
    assert EDGE.point("llama2-7b", "prefill")["batch"] == 1
    twice = replace(EDGE, array=(32, 32, 16), buffer_scale=0.25).fields
    assert twice["activation_buffer_bytes"] == edge.activation_buffer_bytes
    assert twice["dram_bytes_per_cycle"] == 64


def test_all_points_are_those_of_a_sweep_and_differ():
    points = points_of(list(machines()))
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert len(Sweep(tuple(points)).points) == len(points)


def test_what_is_missing_is_counted_from_the_least_of_the_paper():
    found = place(EDGE, decode_latency_0=0.12, decode_energy_2=0.012)
    assert found.reached("whole_model") == 10
    assert found.reached("dense_layers") == 12
    assert found.missing("whole_model")["decode latency"] == pytest.approx((0.12, 0, 0))
    assert found.distance("whole_model") == pytest.approx(0.132 / 12)
    assert found.distance("dense_layers") == 0


def test_the_closest_machine_of_every_cell_is_kept():
    some = [m for m in machines() if m.array in ARRAYS[:2] and m.bytes_per_1024_macs in (1, 4)]

    def saved(point):
        return (
            0.05 + 0.01 * (point["cols"] == 16) + 0.001 * (point["lanes"] * point["batch"] == 1024)
        )

    found = paper_map(some, rows_for(some, saved))
    assert found.machines == len(some)
    assert found.reaching == dict.fromkeys(PARTS, 0)
    for part in PARTS:
        assert len(found.best[part]) == 4
        assert all(p.machine.batch == 64 for p in found.best[part])
        assert [p.machine.array for p in found.closest[part][:2]] == [ARRAYS[1]] * 2
    assert typed(plain(found), PaperMap, "", ResultFileError) == found


def test_a_machine_without_an_estimate_is_left_out():
    some = [EDGE, replace(EDGE, bytes_per_1024_macs=16)]
    rows = rows_for(some, lambda point: 0.3)
    rows[0] = {**dict(points_of(some)[0]), "error": "no tile fits"}
    found = paper_map(some, rows)
    assert (found.machines, found.reaching) == (1, dict.fromkeys(PARTS, 1))


@pytest.mark.parametrize("missing", [{}, {"decode_latency_1": 0.031, "decode_latency_2": 0.01}])
def test_the_section_says_who_reaches_all_or_what_is_missing(missing):
    one = place(EDGE, **missing)
    parts = dict.fromkeys(PARTS, (one,))
    found = PaperMap(450, {p: one.reached(p) == 12 for p in PARTS}, parts, parts)
    section = map_section(found, "map.png")
    texts = [part for part in section.parts if isinstance(part, str)]
    whole = next(text for text in texts if text.startswith("Whole model:"))
    if missing:
        assert "none of them reaches all 12" in whole
        assert "reaches 10 and misses decode latency by up to 3.1 points." in whole
    else:
        assert whole == "Whole model: 1 of them reach all 12."
    assert "![How many of the paper's figures are reached](map.png)" in texts
    assert "450 machines" in texts[0]
    tables = [part for part in section.parts if not isinstance(part, str)]
    assert [table.rows[0]["reached"] for table in tables] == [one.reached(part) for part in PARTS]


@pytest.mark.parametrize("missing", [{}, {"decode_latency_1": 0.031}])
def test_the_section_says_what_planes_save_without_other_tiles(missing):
    one = replace(place(EDGE, **missing), same_tiles={"whole_model": (0.1, 0.12, 0.11)})
    parts = dict.fromkeys(PARTS, (one,))
    texts = map_section(PaperMap(1, {p: one.reached(p) == 12 for p in PARTS}, parts, parts)).parts
    whole, dense = (
        next(t for t in texts if isinstance(t, str) and t.startswith(name))
        for name in ("Whole model:", "Dense layers:")
    )
    assert "With the same tiles for both schemes" in whole
    assert whole.endswith("saves 10.0 to 12.0 % of the prefill's energy: the rest is tiles.")
    assert "same tiles" not in dense


def test_the_picture_has_a_number_for_every_cell():
    some = [Machine(a, b, 1, True, 1, 2048) for a in ARRAYS for b in BYTES_PER_1024_MACS]
    best = tuple(place(m, decode_latency_0=0.012) for m in some)
    found = PaperMap(25, dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, best), {})
    whole, dense = sorted(draw_paper_map(found).axes[:2], key=lambda a: a.get_title(loc="left"))[
        ::-1
    ]
    assert {text.get_text() for text in whole.texts} == {"11\n0.1"}
    assert {text.get_text() for text in dense.texts} == {"12\n0.0"}
    assert np.asarray(whole.collections[0].get_array()).tolist() == np.full((5, 5), 11).tolist()


def test_the_stored_map_is_what_the_formulas_give():
    found = stored_map()
    if found is None:
        pytest.skip("no map is stored: benchmarks/bench_map.py makes one")
    assert found.machines == len(list(machines())), AGAIN
    for part in PARTS:
        first = found.closest[part][0]
        rows = [{**p, **evaluate_point(p)} for p in points_of([first.machine])]
        (again,) = paper_map([first.machine], rows).best[part]
        for name in PARTS:
            for what, values in again.saved[name].items():
                # As exact as it is printed.
                assert values == pytest.approx(first.saved[name][what], abs=5e-4), AGAIN
    assert len(MODELS) == 3
