"""A report as Markdown, CSV, PNG and on a terminal: the same figures everywhere."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from report_helper import full_report, small_report, small_run
from rich.console import Console

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.report.document import Column, Table
from sparqle_tvm.report.writers import (
    markdown_table,
    print_document,
    to_markdown,
    write_csv,
    write_pictures,
)

TABLE = Table(
    "t",
    "Title",
    (Column("name", "name"), Column("x_bytes", "x", "{:.1f} B".format, True)),
    ({"name": "a|b", "x_bytes": 1.25}, {"name": "c"}),
    "Note.",
)


def test_markdown_table():
    assert markdown_table(TABLE) == [
        "**Title**",
        "",
        "| name | x |",
        "| --- | ---: |",
        r"| a\|b | 1.2 B |",
        "| c |  |",
        "",
        "Note.",
    ]


def test_markdown_has_every_table_and_figure():
    report, text = small_report(), to_markdown(small_report())
    assert text.startswith("# tiny on sparqle/edge\n")
    for table in report.tables:
        assert f"**{table.title}**" in text
    for card in report.cards:
        assert f"**{card.label}: {card.value}**" in text


def test_csv_holds_the_raw_values(tmp_path):
    folder = tmp_path / "new" / "tables"
    files = write_csv(small_report(), folder)
    assert sorted(folder.iterdir()) == sorted(files)
    with open(folder / "prefill_layers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    layers = small_run().prefill.layers
    assert [row["label"] for row in rows] == [layer.label for layer in layers]
    for row, layer in zip(rows, layers, strict=True):
        assert int(row["split_cycles"]) == layer.costs["sparqle"].total_cycles
        assert float(row["msb_sparsity"]) == layer.msb_sparsity


def test_csv_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match="cannot be made a folder"):
        write_csv(small_report(), tmp_path / "file" / "folder")


def test_names_of_tables_and_pictures_are_unique():
    report = full_report()
    names = [table.name for table in report.tables]
    assert len(names) == len(set(names)) == len(report.to_json()["tables"])
    pictures = [picture.name for picture in report.pictures]
    first = ["energy", "savings", "limits", "sensitivity"]
    assert pictures == [*first, "cycles", "roofline", "sparsity"]


def test_json_is_the_tables():
    report = small_report()
    data = report.to_json()["tables"]
    assert list(data) == [table.name for table in report.tables]
    costs = {(row["part"], row["scheme"]): row for row in data["costs"]}
    decode = small_run().decode
    part = decode.schemes["sparqle"].whole_model
    row = costs["decode, 1 token after 23: whole model", "split"]
    assert row["dram_bytes"] == part.dram_bytes
    assert row["seconds"] == pytest.approx(part.cycles / 1e9)
    assert row["cycles_saved"] == pytest.approx(decode.saved("sparqle").cycles)
    array = costs["decode, 1 token after 23: MAC array alone", "dense"]
    assert array["cycles"] == decode.schemes["dense"].mma_cycles
    assert array["dram_bytes"] is None
    names = [name for table in report.tables for name in set(table.keys)]
    assert len(names) == sum(len(table.keys) for table in report.tables)  # no key twice


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("report", [small_report, full_report])
def test_terminal(report, width):
    stream = io.StringIO()
    print_document(report(), Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= min(width, 100)
    assert "…" not in stream.getvalue()
    assert any("bit for bit" in line for line in lines)
    assert not any("Every dense layer" in line for line in lines)
    wide = [line for line in lines if "too wide to print" in line]
    assert len(wide) == (report is full_report)


def test_pictures(tmp_path):
    drawn = [s for s in small_report().sections if s.title in ("Roofline", "MSB sparsity")]
    files = write_pictures(replace(small_report(), sections=tuple(drawn)), tmp_path)
    assert [file.name for file in files] == ["roofline.png", "sparsity.png"]
    for file in files:
        image = imread(file)
        assert image.shape[1] > 1000
        assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20
