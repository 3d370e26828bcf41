"""`sparqle report` shows the JSON of any command as the command itself did."""

from __future__ import annotations

import json

import jsonschema
import pytest
from generate import RESULTS, schemas
from report_helper import small_run
from test_other_documents import CALIBRATION, PARETO

from sparqle_tvm.cli import main
from sparqle_tvm.files import plain, write_json
from sparqle_tvm.report.calibration import calibration_document, pareto_document
from sparqle_tvm.report.load import READERS, load_document
from sparqle_tvm.report.writers import to_markdown
from sparqle_tvm.results import calibration, losses

SMALL = ["--model", "smollm2-135m", "--seq", "64"]
FIXED = ["--model", "smollm2-135m", "--phase", "decode", "--seq", "16", "--workers", "1"]
COMMANDS = {
    "estimate": ["estimate", *SMALL],
    "estimates": ["estimate", *SMALL, "--phase", "both"],
    "target check": ["target", "check", "sparqle/edge", *SMALL],
    "crossings": ["sweep", *FIXED, "--find", "time_saved=0", "--over", "batch=1,2"],
    "sweep": ["sweep", *FIXED, "--axis", "batch=1,2", "--axis", "msb_sparsity=0,0.5,1"],
    "sweep over one name": ["sweep", *FIXED, "--axis", "batch=1,2"],
    "pivot": [
        *("sweep", *FIXED, "--axis", "batch=1,2", "--axis", "kv_bits=4,8"),
        *("--pivot", "batch", "kv_bits", "joules"),
    ],
}


def fits_its_schema(found):
    """The schema of the documentation takes it, and not without its kind or a field."""
    for one in found.get("estimates", [found]):
        (command,) = (name for name, (_, kind) in RESULTS.items() if kind == one["kind"])
        check = jsonschema.Draft202012Validator(schemas()[command])
        check.validate(one)
        for key in ("kind", *({"accelerator", "rows", "over"} & set(one))):
            assert not check.is_valid({name: v for name, v in one.items() if name != key}), key


@pytest.mark.parametrize("name", COMMANDS)
def test_a_report_is_what_the_command_printed(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMANDS[name], "--json", "found.json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    kind = found["kind"]
    assert kind in READERS
    fits_its_schema(found)
    assert kind == name or kind == "sweep"
    assert main(["report", "found.json"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["report", "found.json", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["of"] == kind


def test_pages_of_estimates_and_sweeps_have_pictures(tmp_path):
    pictures = {}
    for name in ("estimates", "sweep", "sweep over one name"):
        folder = tmp_path / name.replace(" ", "_")
        out = ["--out", str(tmp_path / "s.csv")] if "sweep" in name else []
        assert main([*COMMANDS[name], *out, "--pictures", str(folder)]) == 0
        pictures[name] = {file.stem for file in folder.iterdir()}
    assert pictures == {
        "estimates": {"energy", "limits", "roofline"},
        "sweep": {"pivot-time-saved", "pivot-energy-saved"},
        "sweep over one name": {"savings"},
    }


def test_cards_of_a_sweep_say_where_most_is_saved(tmp_path, capsys):
    out = tmp_path / "s.json"
    assert main([*COMMANDS["sweep"], "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    best = max(rows, key=lambda row: row["split_whole_model_time_saved"])
    printed = " ".join(capsys.readouterr().out.split())
    where = f"batch = {best['batch']}, msb_sparsity = {best['msb_sparsity']:g}; by formula"
    assert where in printed
    assert printed.count("energy saved, whole model") == 0  # the table's title is the section's
    assert "Energy saved, whole model" in printed


def test_documents_of_calibrations_and_budgets(tmp_path):
    path = tmp_path / "found.json"
    write_json(path, {"kind": calibration.KIND, "out": "c.npz", **plain(CALIBRATION)})
    kind, found = load_document(path)
    assert kind == calibration.KIND
    assert to_markdown(found) == to_markdown(calibration_document(CALIBRATION, "c.npz"))
    write_json(path, {"kind": losses.KIND, **plain(PARETO)})
    kind, found = load_document(path)
    assert kind == losses.KIND
    assert to_markdown(found) == to_markdown(pareto_document(PARETO))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "poem"}, "is of the kind 'poem'; there are pages of run, analysis, generation"),
        ([], "is of the kind None"),
        ({"kind": "program", "listing": []}, "is of the kind 'program'"),
        ({"kind": "run", "version": 1}, "has version 1"),
        ({"kind": "estimate"}, "has version None"),
        ({"kind": "estimates", "estimates": 3}, "no list of estimates"),
        ({"kind": "estimates", "estimates": []}, "there is no estimate"),
        ({"kind": "sweep", "out": "a", "names": ["seq"], "rows": [{"seq": 1}]}, "energy_table"),
        ({"kind": "sweep", "out": "a", "names": [], "rows": []}, "the sweep has no point"),
        ({"kind": "crossings", "points": []}, "quantity"),
        ({"kind": "tuning"}, "settings"),
    ],
)
def test_what_has_no_page_is_refused_in_a_line(tmp_path, capsys, data, message):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(data))
    assert main(["report", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_cells_of_csv_are_plain(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, small_run().to_json())
    assert main(["report", str(path), "--csv", str(tmp_path / "csv")]) == 0
    for file in (tmp_path / "csv").iterdir():
        text = file.read_text()
        assert "('" not in text and "['" not in text and "{" not in text, file.name
