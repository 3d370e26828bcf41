"""What `sparqle sweep --pivot` and `--find` show."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from sparqle_tvm.cli import main
from sparqle_tvm.report.document import Table
from sparqle_tvm.report.pictures.pivot import draw_pivot, draw_scan
from sparqle_tvm.report.pivot import crossing_document, pivot_document
from sparqle_tvm.report.writers import print_document
from sparqle_tvm.studies.sweep import Scan, Sweep, SweepResult, pivot, quantity
from sparqle_tvm.studies.sweep.crossing import BreakEven, Range

SAVED = quantity("time_saved")
FIXED = ["--fix", "model=smollm2-135m", "--fix", "phase=decode", "--fix", "seq=16"]


def made(cols: int = 3, rows: int = 2):
    """Gains in the last column only."""
    axes = {"batch": range(1, rows + 1), "seq": range(1, cols + 1)}
    sweep = Sweep.grid(axes)
    figures = tuple({SAVED.column: 0.2 if p["seq"] == cols else -0.1} for p in sweep.points)
    return pivot(SweepResult(sweep, figures), "batch", "seq", SAVED)


def printed(document, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_document(document, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.mark.parametrize("width", [60, 100])
def test_a_pivot_is_broken_into_pieces_that_fit(width):
    document = pivot_document(made(cols=30))
    text = printed(document, width)
    assert "too wide" not in text
    assert text.count("\\") > 1
    words = " ".join(text.split())
    # One each in the sentence.
    assert (words.count("20.0 %"), words.count("10.0 %")) == (2 + 1, 58 + 1)
    (table,) = document.tables
    pieces = table.pieces(10)
    assert [c.key for p in pieces for c in p.columns[1:]] == [c.key for c in table.columns[1:]]
    assert all(piece.columns[0] is table.columns[0] for piece in pieces)


def test_a_wide_table_is_not_broken_unless_it_says_how():
    (wide,) = pivot_document(made(cols=30)).tables
    whole = Table(wide.name, "All", wide.columns, wide.rows)
    document = pivot_document(made())
    section = document.sections[0]
    changed = type(section)(section.title, (whole,))
    text = printed(type(document)("", "", sections=(changed,)), 60)
    assert "All: too wide to print here" in " ".join(text.split())


@pytest.mark.parametrize("narrow", [False, True])
def test_cells_and_the_line_between_gain_and_loss(narrow):
    figure = draw_pivot(made(), narrow=narrow)
    axes = figure.axes[0]
    assert np.asarray(axes.collections[0].get_array()).ravel() == pytest.approx(
        [-0.1, -0.1, 0.2] * 2
    )
    # One piece a row, between the second and the third column.
    assert [list(line.get_xdata()) for line in axes.lines] == [[1.5, 1.5]] * 2
    assert sorted(line.get_ydata()[0] for line in axes.lines) == [-0.5, 0.5]
    assert [text.get_text() for text in axes.texts][2] == "20.0"


FOUND = (
    BreakEven({"batch": 1}, ((1.0, 0.1), (4.0, 0.2), (8.0, 0.3)), (Range(4.0, 8.0, True, False),)),
    BreakEven({"batch": 2}, ((1.0, 0.1), (8.0, 0.15)), ()),
    BreakEven({"batch": 3}, ((1.0, 0.2), (8.0, 0.3)), (Range(1.0, 8.0, False, False),)),
    BreakEven(
        {"batch": 4},
        ((1.0, 0.3), (2.0, 0.2), (3.0, 0.2), (4.0, 0.2), (8.0, 0.1)),
        (Range(1.0, 2.0, False, True), Range(3.0, 4.0, True, True)),
        "no tile fits",
    ),
    BreakEven({"batch": 5}, (), (), "no tile fits"),
)
SCAN = Scan(SAVED, 0.2, "dram_bytes_per_cycle")


@pytest.mark.parametrize("width", [60, 100])
def test_break_even_is_told_in_words(width):
    text = " ".join(printed(crossing_document(SCAN, FOUND), width).split())
    for words in (
        "1 4 and more 1 10.0 % 30.0 %",
        "2 nowhere 0 10.0 % 15.0 %",
        "3 everywhere 0 20.0 % 30.0 %",
        "4 up to 2, 3 to 4 3 10.0 % 30.0 %",
        "5 no estimate 0",
        "time saved, whole model: at least 20.0 %, over dram bytes per cycle",
        "More than one crossing",
        "Without an estimate: no tile fits",
        "Looked for from 1 to 8",
    ):
        assert words in text, words


@pytest.mark.parametrize("narrow", [False, True])
def test_dots_lie_at_the_crossings(narrow):
    curves, crossover = draw_scan(SCAN, FOUND, ["batch"], narrow=narrow).axes
    dots = [(x, y) for one in FOUND for x, y in one.scanned if x in one.crossings]
    assert [
        p
        for line in curves.lines
        for p in line.get_xydata().tolist()
        if line.get_marker() != "None"
    ] == [list(dot) for dot in dots]
    marks = [line for line in crossover.lines if line.get_marker() == "o"]
    found = sorted(tuple(point) for line in marks for point in line.get_xydata().tolist())
    assert found == [(1, 4.0), (4, 2.0), (4, 3.0), (4, 4.0)]


def test_the_command_pivots(tmp_path, capsys):
    out, data = str(tmp_path / "out.csv"), tmp_path / "out.json"
    axes = ["--axis", "batch=1,2", "--axis", "msb_sparsity=0,1"]
    more = ["--pivot", "batch", "msb_sparsity", "time_saved", "--json", str(data)]
    more += ["--markdown", str(tmp_path / "out.md"), "--csv", str(tmp_path / "csv")]
    assert main(["sweep", *FIXED, *axes, *more, "--out", out, "--workers", "1"]) == 0
    assert "time saved, whole model, over batch and msb sparsity" in capsys.readouterr().out
    found = json.loads(data.read_text())
    rows = {(r["batch"], r["msb_sparsity"]): r[SAVED.column] for r in found["rows"]}
    (panel,) = found["pivot"]["panels"]
    assert panel["values"] == [[rows[b, s] for s in (0, 1)] for b in (1, 2)]
    assert "| 2 |" in (tmp_path / "out.md").read_text()
    assert (tmp_path / "csv" / "pivot.csv").read_text().startswith("batch,msb_sparsity=0,")


def test_the_command_finds(tmp_path, capsys):
    more = ["--find", "dense_layers_time_saved=0", "--over", "msb_sparsity=0:1", "--json", "-"]
    assert main(["sweep", *FIXED, *more]) == 0
    (one,) = json.loads(capsys.readouterr().out)["points"]
    assert {"point", "scanned", "ranges", "crossings", "error"} == set(one)
    assert [x for x, _ in one["scanned"]] == sorted(x for x, _ in one["scanned"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--find", "time_saved=1"], "belong together"),
        (["--over", "batch"], "belong together"),
        (["--find", "speed=1", "--over", "batch"], "value 'speed' is unknown"),
        (["--find", "time_saved=1%", "--over", "model"], "is no number"),
        (["--find", "time_saved=1%", "--over", "seq"], "seq is fixed"),
        (["--find", "time_saved=1", "--over", "batch", "--out", "x.csv"], "does not go with --out"),
        (["--pivot", "seq", "rows", "time_saved"], "'rows' is no name of this sweep"),
        (["--pivot", "seq", "phase", "speed"], "value 'speed' is unknown"),
    ],
)
def test_the_command_refuses_in_one_line(capsys, arguments, reason):
    assert main(["sweep", *FIXED, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error
