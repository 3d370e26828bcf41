"""What a report adds by formula: the run's own model, its digits, the table's name everywhere."""

import dataclasses

import pytest
from report_helper import full_report, full_run, small_report, small_run

from sparqle_tvm.report.by_formula import RunModel, constants_table, shape_of
from sparqle_tvm.report.document import Picture
from sparqle_tvm.report.formats import change
from sparqle_tvm.studies.savings import Series
from sparqle_tvm.target.cost.energy_table import default_table, energy_table

TABLE = default_table(full_run().accelerator)


@pytest.fixture(scope="module")
def model():
    return RunModel.of(full_run())


def test_the_model_is_that_of_the_run(model):
    run = full_run()
    assert model.shape.transformer() == run.transformer
    assert (model.shape.weights.bits, model.shape.weights.group_size) == (4, 32)
    assert model.digits.msb_sparsity("qkv") == pytest.approx(0.9)
    assert not model.digits.transferred
    prefill, decode = model.phases
    assert (prefill.seq, decode.seq) == (run.prefill.tokens, run.decode.past)
    assert set(prefill.schemes) == {"dense", "native", "a4", "sparqle"}


def test_most_macs_choose_the_weights():
    run = full_run()
    layers = list(run.prefill.layers)
    layers[2] = dataclasses.replace(layers[2], weight_bits=8)
    mixed = dataclasses.replace(run, prefill=dataclasses.replace(run.prefill, layers=tuple(layers)))
    assert shape_of(mixed).weights.bits == 4
    layers = [
        dataclasses.replace(layer, weight_bits=8, group_size=0, has_min=False) for layer in layers
    ]
    wide = dataclasses.replace(run, prefill=dataclasses.replace(run.prefill, layers=tuple(layers)))
    assert shape_of(wide).weights.bits == 8


def test_energy_has_one_number_for_one_thing_and_says_how_it_was_counted(model):
    tables = {table.name: table for table in full_report().tables}
    rows = {(row["part"], row["scheme"]): row for row in tables["energy"].values()}
    run, result = full_run(), model.phases[0]
    saved = run.prefill.saved("sparqle", "whole_model").energy
    row = rows["prefill, 24 tokens: whole model", "split"]
    assert row["joules"] == run.prefill.schemes["sparqle"].whole_model.energy.joules.mid
    assert row["energy_saved"] == saved.mid
    costs = {(row["part"], row["scheme"]): row for row in tables["costs"].values()}
    for place, one in rows.items():
        if one["scheme"] in ("dense", "split"):
            assert one["joules"] == costs[place]["joules"], place
    other = rows["prefill, 24 tokens: whole model", "native"]
    assert other["joules"] == result.schemes["native"].whole_model.energy.joules.mid
    how = {row["scheme"]: row["counted"] for row in tables["energy"].values()}
    own = "by simulator" if run.engine == "simulator" else "by formula"
    assert (how["dense"], how["split"], how["native"]) == (own, own, "by formula")
    assert row["energy_saved_low"] <= saved.mid <= row["energy_saved_high"]
    assert rows["prefill, 24 tokens: whole model", "dense"]["energy_saved"] is None


def test_all_energy_carries_the_name_of_its_table():
    report = full_report()
    assert TABLE.name == "7nm + LPDDR4"
    for card in report.cards:
        assert ("energy" in card.label) == (TABLE.name in card.note)
    captions = [p.caption for p in report.pictures if "energy" in p.caption.lower()]
    assert len(captions) == 3
    assert all(TABLE.name in caption for caption in captions)
    energy = next(t for t in report.tables if t.name == "energy")
    assert TABLE.name in energy.title


def test_cards_show_the_energy_of_the_run():
    for run, report in ((full_run(), full_report()), (small_run(), small_report())):
        for one in run.passes:
            label = f"{one.phase.capitalize()} energy, dense layers"
            card = next(card for card in report.cards if card.label == label)
            assert card.value == change(one.saved("sparqle", "dense_layers").energy.mid)
            assert run.table.name in card.note


def test_the_table_is_that_of_the_run(model):
    other = dataclasses.replace(full_run(), table=energy_table("45nm", "ddr4"))
    assert RunModel.of(other).estimate("decode", 8).table.name == "45nm + DDR4"
    assert model.phases[0].table is full_run().table


def test_constants_have_sources():
    rows = constants_table(TABLE).values()
    assert len(rows) == len(TABLE.operations) + len(TABLE.sram) + 1 + len(TABLE.parameters)
    assert all(row["source"] and row["unit"] for row in rows)


def test_a_run_that_cannot_be_estimated_says_why():
    section = next(s for s in small_report().sections if s.title == "Energy")
    (text,) = section.parts
    assert text.startswith("Energy is not estimated for this model: ")
    assert not any(p.name == "savings" for p in small_report().pictures)


def test_savings_and_limits_are_drawn(model):
    drawn = {p.name: p for s in full_report().sections for p in s.parts if isinstance(p, Picture)}
    figure = drawn["savings"].draw(False)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["prefill, latency", "decode, latency", "prefill, energy", "decode, energy"]
    own = next(c for c in model.curves if (c.phase, c.part) == ("prefill", "whole_model"))
    lines = [tuple(line.get_ydata()) for line in figure.axes[0].lines]
    assert tuple(p.latency for p in own.points) in lines
    figure = drawn["limits"].draw(True)
    for axes, series in zip(figure.axes, model.series, strict=True):
        heights = sum(bar.get_height() for bar in axes.patches)
        saved = sum(one.saved("sparqle").cycles for one in series.estimates)
        assert heights == pytest.approx(2 * len(series.values) - saved)


def test_bars_of_one_estimate_are_its_schemes_with_time_x_area(model):
    from sparqle_tvm.report.pictures.limits import draw_limits

    one = model.phases[0]
    (axes,) = draw_limits([Series("prefill", "tokens", (24,), (one,))]).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["dense", "split", "native", "a4"]
    dense = one.schemes["dense"].whole_model.cycles
    heights = sum(bar.get_height() for bar in axes.patches)
    assert heights == pytest.approx(sum(s.whole_model.cycles / dense for s in one.schemes.values()))
    marks = [y for line in axes.lines if line.get_marker() == "D" for y in line.get_ydata()]
    areas = [of.time_area.mid for of in one.time_areas if of.part == "whole_model"]
    assert marks == pytest.approx(areas)
    assert marks[0] == 1


def test_energy_bars_add_up(model):
    from sparqle_tvm.report.pictures.energy import draw_energy

    axes = draw_energy(model.phases).axes[0]
    drawn = sum(bar.get_width() for bar in axes.patches)
    found = model.phases[0].schemes.values()
    assert drawn == pytest.approx(sum(s.whole_model.energy.joules.mid for s in found))
    assert axes.get_xlabel().endswith("J")
