"""The comparison with the paper: stored curves are what the formulas give, documents are theirs."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from sparqle_tvm.report.comparison import (
    BATCHES,
    CONTEXTS,
    comparison_table,
    decode_savings,
    published_curves,
    stored_curves,
    stored_decode,
    to_json,
)
from sparqle_tvm.report.paper import MODELS, RANGES
from sparqle_tvm.studies.savings import Curve, Point
from sparqle_tvm.target.accelerator import PRESETS

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "run: python benchmarks/compare_with_paper.py"


def curve(*saved: float) -> Curve:
    steps = len(saved) - 1
    points = tuple(Point(i / steps, x, x / 2, x / 3, x) for i, x in enumerate(saved))
    return Curve("m", "prefill", 8, "whole_model", points, points[1], {"compute": 1.0})


def test_needed_sparsity_lies_on_the_line():
    rising = curve(-0.1, 0.1, 0.3)
    assert rising.needed("latency", 0.2) == pytest.approx(0.75)
    assert rising.needed("latency", 0.0) == pytest.approx(0.25)
    assert rising.needed("energy", 0.1) == pytest.approx(0.75)
    assert rising.needed("latency", 0.31) is None
    assert rising.needed("latency", -0.2) == 0.0


def test_ranges_are_those_of_the_abstract():
    assert {key: (r.low, r.high) for key, r in RANGES.items()} == {
        ("prefill", "latency"): (0.16, 0.243),
        ("decode", "latency"): (0.135, 0.234),
        ("prefill", "energy"): (0.17, 0.267),
        ("decode", "energy"): (0.065, 0.142),
    }


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_stored_curves_are_what_the_formulas_give(preset):
    assert to_json(published_curves(preset)) == to_json(stored_curves(preset)), AGAIN


def test_stored_savings_of_decode_are_what_the_formulas_give():
    mobile = PRESETS["sparqle/mobile"]
    stored = stored_decode()
    assert len(stored) == len(PRESETS) * len(MODELS) * len(CONTEXTS) * len(BATCHES)
    found = [one for one in stored if one.target == mobile.name]
    assert to_json(decode_savings(mobile)) == to_json(found), AGAIN
    # Longer contexts save more, and so do more sequences where the cache is what takes the time.
    at = {(one.model, one.context, one.batch): one.latency for one in found}
    assert at["Llama3 8B", 2048, 1] < at["Llama3 8B", 32768, 1] < at["Llama3 8B", 32768, 16]


def test_other_accelerators_have_no_stored_curves():
    for preset in PRESETS.values():
        assert len(stored_curves(preset)) == 2 * 2 * len(MODELS)
        assert stored_curves(replace(preset, rows=8)) is None
        assert stored_curves(replace(preset, name="mine")) is None


def test_documents_are_those_of_the_stored_curves(tmp_path):
    script = ROOT / "benchmarks" / "compare_with_paper.py"
    spec = importlib.util.spec_from_file_location("compare_with_paper", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_documents(tmp_path)
    assert (tmp_path / "paper.md").read_text() == (ROOT / "docs" / "paper.md").read_text(), AGAIN
    assert (tmp_path / "paper.png").stat().st_size > 20_000
    assert (ROOT / "docs" / "paper.png").stat().st_size < 300_000


def test_table():
    curves = stored_curves(PRESETS["sparqle/edge"])
    table = comparison_table(curves, "whole_model", "sparqle/edge")
    assert len(table.rows) == len(RANGES) * len(MODELS)
    first = table.values()[0]
    at = {p.msb_sparsity: p.latency for p in curves[1].points}
    assert curves[1].part == "whole_model"
    assert first["saved_at_0.7"] == at[0.7]
    texts = [text for _, rows in table.groups() for row in rows for text in row]
    assert "none" in texts
