"""docs/energy.md is what the tables say."""

from pathlib import Path

from sparqle_tvm.report.energy_tables import COMMAND, energy_markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "energy.md"


def test_the_document_is_in_step():
    assert DOCUMENT.read_text(encoding="utf-8") == energy_markdown(), f"run: {COMMAND}"


def test_what_was_not_checked_says_so():
    lines = energy_markdown().splitlines()
    shown = {line.split(" | ")[0].removeprefix("| ") for line in lines if "not checked" in line}
    assert shown == {"8 KiB", "32 KiB", "1024 KiB", "HBM2", "LPDDR5 (estimate)", "`static_power`"}


def test_every_source_is_named():
    text = energy_markdown()
    for word in ("Horowitz", "Jouppi", "Accelergy", "estimate", "`weight_select`", "7nm + LPDDR4"):
        assert word in text
