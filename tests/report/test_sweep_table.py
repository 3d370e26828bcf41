"""What `sparqle sweep` prints."""

import io
import json

import pytest
from rich.console import Console

from sparqle_tvm.cli import main
from sparqle_tvm.report.pivot import of_model
from sparqle_tvm.report.sweep import SHOWN_ROWS, sweep_document
from sparqle_tvm.report.writers import print_document
from sparqle_tvm.studies.sweep import Sweep, SweepResult, evaluate_point

FIXED = {"model": "smollm2-135m", "phase": "decode", "seq": 16}


def printed(points) -> str:
    sweep = Sweep(tuple({**FIXED, **point} for point in points))
    result = SweepResult(sweep, tuple(evaluate_point(point) for point in sweep.points))
    console = Console(file=io.StringIO(), width=100)
    print_document(sweep_document(result, "out.csv"), console)
    return console.file.getvalue()


def test_shows_what_varies_and_the_energy_table():
    text = printed([{"msb_sparsity": s} for s in (0.0, 0.5)])
    assert "msb sparsity" in text
    assert "phase = decode" in text
    assert text.count("phase") == 1
    assert "Energy: 7nm + LPDDR4" in text
    assert "-0.0%" not in text
    assert text.endswith("2 points in out.csv\n")


def test_many_points_are_cut_to_some_with_both_ends():
    text = printed([{"msb_sparsity": i / 50} for i in range(30)])
    assert f"{SHOWN_ROWS} of 30 points" in text
    assert "\n0 " in text
    assert "\n0.58 " in text


def test_points_without_an_estimate_are_counted_with_their_reason():
    text = printed([{"weight_buffer_bytes": 16}])
    assert "1 point has no estimate; the first: " in " ".join(text.split())
    text = printed([{"weight_buffer_bytes": 16}, {"weight_buffer_bytes": 8}])
    assert "2 points have no estimate; the first: " in " ".join(text.split())


@pytest.mark.parametrize("find", [[], ["--find", "time_saved=0", "--over", "batch=1,2"]])
def test_a_sweep_without_any_estimate_is_an_error(tmp_path, capsys, monkeypatch, find):
    monkeypatch.chdir(tmp_path)
    fixed = [f"--fix={name}={value}" for name, value in FIXED.items()]
    asked = ["sweep", *fixed, "--axis", "weight_buffer_bytes=8,16", "--workers", "1", *find]
    assert main(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no point of the sweep has an estimate; the first: " in line
    assert not list(tmp_path.iterdir())
    one_is_possible = ["weight_buffer_bytes=8,1048576" if "=8,16" in a else a for a in asked]
    assert main(one_is_possible) == 0
    assert not list(tmp_path.iterdir())  # nobody asked for a table


def test_command_writes_what_it_prints_as_json(tmp_path, capsys):
    out = str(tmp_path / "out.csv")
    axes = ["--axis", "seq=8,16", "--fix", "model=smollm2-135m", "--fix", "phase=decode"]
    assert main(["sweep", *axes, "--out", out, "--workers", "1", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["points"], data["failed"], len(data["rows"])) == (2, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--axis", "seqq=1"], "'seqq' is unknown"),
        (["--axis", "seq=1", "--axis", "seq=2"], "same axis twice"),
        (["--fix", "seq=1,2"], "one value is fixed"),
        (["points.toml", "--axis", "seq=1"], "not both"),
        (["none.toml"], "none.toml cannot be read"),
        (["--axis", "seq=1", "--out", "out.txt"], "ends in .csv or .json"),
    ],
)
def test_command_refuses_in_one_line(capsys, arguments, reason):
    assert main(["sweep", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


@pytest.mark.parametrize(
    ("shared", "varying", "title"),
    [
        ({}, ["seq"], "Llama2 7B: saved"),
        ({"model": "qwen2.5-7b"}, [], "Qwen2.5 7B: saved"),
        ({"model": "models/mine/config.json"}, [], "mine: saved"),
        ({"model": "tiny.gguf"}, [], "tiny: saved"),
        ({"seq": 8}, ["model"], "Saved"),
    ],
)
def test_a_title_names_the_model_that_all_points_share(shared, varying, title):
    assert of_model(shared, varying, "Saved") == title
