"""docs/energy.md is what the tables say."""

from pathlib import Path

from sparqle_tvm.report.energy_tables import COMMAND, energy_markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "energy.md"


def test_the_document_is_in_step():
    assert DOCUMENT.read_text(encoding="utf-8") == energy_markdown(), f"run: {COMMAND}"


def test_every_source_is_named():
    text = energy_markdown()
    for word in ("Horowitz", "Jouppi", "Accelergy", "estimate", "`weight_select`", "7nm + LPDDR4"):
        assert word in text
