"""`sparqle estimate --sensitivity` and the section of the page."""

import io
import json

import pytest
from report_helper import full_report, full_run
from rich.console import Console

from sparqle_tvm.cli import main
from sparqle_tvm.report.by_formula import RunModel
from sparqle_tvm.report.document import Document, Section
from sparqle_tvm.report.pictures.sensitivity import draw_sensitivity
from sparqle_tvm.report.sensitivity import (
    EVERYTHING,
    ranked_fields,
    sensitivity_table,
    sensitivity_verdicts,
)
from sparqle_tvm.report.writers import print_document
from sparqle_tvm.target.cost.area import array_mm2, buffers_mm2
from sparqle_tvm.target.cost.baselines import array_of

SMALL = ["estimate", "--model", "smollm2-135m", "--seq", "64", "--sensitivity"]


@pytest.mark.parametrize("width", [60, 100])
def test_is_printed_whole(width):
    (section,) = (s for s in full_report().sections if s.title == "Which knob next")
    console = Console(file=io.StringIO(), width=width)
    print_document(Document("", "", sections=(Section("", section.parts),)), console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "too wide" not in text
    for words in (
        "of the split form falls most",
        "dram_bytes_per_cycle = 16",
        "Not estimated: digit_bits doubled: activations would have 16 bits",
        "split precision saves",
    ):
        assert words in text, words
    signs = [
        line
        for line in lines
        if line.startswith(("\N{MULTIPLICATION SIGN}2 ", "\N{DIVISION SIGN}2 "))
    ]
    pieces = 2 if width == 60 else 1  # a narrow terminal has the columns in two tables
    assert len(signs) == pieces * sum(len(t.rows) for t in section.parts if hasattr(t, "rows"))


def test_fields_that_shorten_time_most_come_first():
    found = RunModel.of(full_run()).sensitivities[0]
    best = [
        min(c.parts["whole_model"].seconds["sparqle"] for c in group)
        for group in ranked_fields(found)
    ]
    assert best == sorted(best)
    assert best[0] == pytest.approx(-0.5)  # the clock
    table = sensitivity_table(found)
    assert sum(map(len, ranked_fields(found))) == len(table.rows)
    assert table.rows[0]["split_seconds_change"] == pytest.approx(-0.5)


def test_time_x_area_grows_with_what_is_doubled():
    found = RunModel.of(full_run()).sensitivities[0]
    changes = {(c.field, c.factor): c for c in found.changes if c.parts}
    machine, time = found.base.accelerator, changes["rows", 2.0].parts["whole_model"].seconds
    for scheme in ("dense", "sparqle"):
        # All PEs twice and the buffers as they are: by hand from the parts of the area.
        array = array_mm2(array_of(machine, scheme), scheme)
        area = (2 * array + buffers_mm2(machine).mid) / (array + buffers_mm2(machine).mid)
        change = found.time_area(changes["rows", 2.0], scheme)
        assert change == pytest.approx((1 + time[scheme]) * area - 1, rel=1e-6)
    # Bandwidth has no area.
    wide = changes["dram_bytes_per_cycle", 2.0]
    assert found.time_area(wide, "sparqle") == wide.parts["whole_model"].seconds["sparqle"]


def test_the_next_knob_is_named_in_a_sentence():
    found = RunModel.of(full_run()).sensitivities
    (sentence,) = sensitivity_verdicts(found)
    knobs = [c for c in found[0].changes if c.parts and c.field != EVERYTHING]
    best = min(knobs, key=lambda c: c.parts["whole_model"].seconds["sparqle"])
    word = {2.0: "doubled", 0.5: "halved"}[best.factor]
    assert f"for the time of the split form, {best.field} {word} to" in sentence
    assert "; for the time x area of the split form, " in sentence


@pytest.mark.parametrize("narrow", [False, True])
def test_bars_are_as_long_as_the_changes(narrow):
    found = RunModel.of(full_run()).sensitivities
    panels = draw_sensitivity(found, narrow=narrow).axes
    for axes, (one, key) in zip(
        panels, [(s, k) for s in found for k in ("seconds", "joules")], strict=True
    ):
        drawn = sorted(round(bar.get_width(), 12) for bar in axes.patches)
        assert drawn == sorted(
            round(getattr(c.parts["whole_model"], key)[scheme], 12)
            for c in one.changes
            if c.parts and c.field != EVERYTHING
            for scheme in ("dense", "sparqle")
        )


def test_the_command_prints_and_writes_it(tmp_path, capsys):
    out, page, csv = tmp_path / "out.json", tmp_path / "page.html", tmp_path / "tables"
    more = ["--json", str(out), "--html", str(page), "--csv", str(csv)]
    assert main([*SMALL, *more]) == 0
    assert "Which knob next" in capsys.readouterr().out
    changes = json.loads(out.read_text())["sensitivity"]
    rows = (csv / "prefill_sensitivity.csv").read_text().splitlines()[1:]
    assert len(rows) == sum(bool(change["parts"]) for change in changes)
    assert {"field", "factor", "before", "after", "parts", "impossible"} == set(changes[0])
    text = page.read_text()
    assert text.count("<svg") == 2 * 4  # energy, limits, roofline and this, in two widths
    assert "dram_bytes_per_cycle = 16" in text


def test_markdown_on_standard_output_is_nothing_but_markdown(capsys):
    assert main([*SMALL, "--markdown", "-"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# SmolLM2-135M: prefill")
    assert "| **dram_bytes_per_cycle = 16** |" in printed
