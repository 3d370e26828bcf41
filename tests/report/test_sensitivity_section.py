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
from sparqle_tvm.report.sensitivity import EVERYTHING, ranked_fields, sensitivity_table
from sparqle_tvm.report.writers import print_document

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
    assert len(signs) == sum(len(t.rows) for t in section.parts if hasattr(t, "rows"))


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
    assert table.rows[0]["sparqle_seconds_change"] == pytest.approx(-0.5)


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
