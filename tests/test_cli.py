"""The command line: what it prints, writes and refuses."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from run_result_helper import run_result
from tiny_files import write_prose, write_tiny_model

import sparqle_tvm
from sparqle_tvm.cli import _parser, main
from sparqle_tvm.errors import InvalidArgumentError, TargetError
from sparqle_tvm.files import write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    write_tiny_model(path)
    write_prose(path)
    return path


def arguments(folder, *more: str) -> list[str]:
    files = ["--model", str(folder / "tiny.gguf"), "--text", str(folder / "prose.txt")]
    return ["run", *files, "--tokens", "24", *more]


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"sparqle {sparqle_tvm.__version__}\n"


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"]])
def test_help_does_not_import_tvm(command):
    code = f"import sys\nfrom sparqle_tvm.cli import main\ntry:\n    main({command})\n"
    code += "except SystemExit:\n    print('tvm' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("usage: sparqle")
    assert output.endswith("False\n")


@pytest.fixture
def finished(monkeypatch):
    """Let `run_model` return a result at once, and keep what it was called with."""
    calls = []

    def run(*given, **_):
        calls.append(given)
        return run_result()

    monkeypatch.setattr("sparqle_tvm.studies.run.run_model", run)
    return calls


def test_run_prints_tables_and_writes_json(folder, tmp_path, capsys, finished):
    out = tmp_path / "out.json"
    assert main(arguments(folder, "--json", str(out))) == 0
    assert json.loads(out.read_text()) == json.loads(json.dumps(run_result().to_json()))
    printed = capsys.readouterr().out
    for title in ("Perplexity", "MSB sparsity", "dense baseline", "What limits the time"):
        assert title in printed
    assert list(tmp_path.iterdir()) == [out]


def test_json_to_standard_output_is_nothing_but_json(folder, capsys, finished):
    assert main(arguments(folder, "--json", "-", "--target", "sparqle/server")) == 0
    assert json.loads(capsys.readouterr().out)["exact"] is True
    files = (str(folder / "tiny.gguf"), str(folder / "prose.txt"))
    assert finished == [(*files, 24, "sparqle/server")]


@pytest.mark.parametrize(
    ("options", "goal"),
    [([], "array"), (["--balance", "time"], "time"), (["--no-balance"], "none")],
)
def test_what_rows_are_sorted_for(monkeypatch, options, goal):
    goals = []
    monkeypatch.setattr(
        "sparqle_tvm.studies.run.run_model",
        lambda *_, **named: goals.append(named["balance"]) or run_result(),
    )
    assert main(["run", *options]) == 0
    assert goals == [goal]


def test_where_modules_are_written(monkeypatch):
    folders = []
    monkeypatch.setattr(
        "sparqle_tvm.studies.run.run_model",
        lambda *_, **named: folders.append(named["dump"]) or run_result(),
    )
    assert main(["run", "--dump", "phases"]) == main(["run"]) == 0
    assert folders == ["phases", None]


def test_sorting_cannot_be_asked_for_and_switched_off(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--balance", "time", "--no-balance"])
    assert stop.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_defaults(finished, capsys):
    assert main(["run"]) == 0
    assert finished == [("smollm2", None, 512, "sparqle/edge")]
    assert "bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--target", "sparqle/nope"], "unknown target 'sparqle/nope'"),
        (["--tokens", "1"], "at least 2 tokens"),
        (["--tokens", "9999"], "9999 were asked for"),
        (["--text", "missing.txt"], "missing.txt cannot be read"),
        (["--model", "missing.gguf"], "missing.gguf"),
        (["--model", __file__], "GGUF"),
        (["--json", "no/such/folder/out.json"], "cannot be written"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(folder, capsys, change, message):
    assert main(arguments(folder, *change)) == 2
    captured = capsys.readouterr()
    (line,) = [x for x in captured.err.splitlines() if x.startswith("sparqle: error: ")]
    assert message in line
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_verbose_shows_the_traceback(folder):
    with pytest.raises(TargetError):
        main(arguments(folder, "--target", "sparqle/nope", "--verbose"))


@pytest.mark.parametrize("command", [[], ["walk"], ["run", "--tokens", "many"]])
def test_bad_usage(command):
    with pytest.raises(SystemExit) as exit_info:
        main(command)
    assert exit_info.value.code == 2


def test_json_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "out.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_json(target, {"x": 1})
    assert json.loads(target.read_text()) == {"x": 1}
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        write_json(tmp_path / "none" / "out.json", {})


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, run_result().to_json())
    return path


def test_report_writes_every_form(run_file, tmp_path, capsys):
    names = {"html": "page.html", "markdown": "page.md", "json": "page.json", "csv": "tables"}
    options = [x for name, file in names.items() for x in (f"--{name}", str(tmp_path / file))]
    assert main(["report", str(run_file), *options]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "page.md").read_text().startswith("# tiny on sparqle/edge")
    tables = json.loads((tmp_path / "page.json").read_text())["tables"]
    assert {file.stem for file in (tmp_path / "tables").iterdir()} == set(tables)


def test_report_writes_markdown_to_standard_output(run_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run_file), "--markdown", "-"]) == 0
    assert capsys.readouterr().out.startswith("# tiny on sparqle/edge")
    assert list(tmp_path.iterdir()) == [run_file]


def test_report_without_a_file_runs_the_builtin_model(finished, capsys):
    assert main(["report"]) == 0
    assert finished == [()]
    assert "saves of the dense baseline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.json"], "missing.json cannot be read"),
        ([__file__], "is not JSON"),
        (["--html", "no/such/folder/page.html"], "cannot be written"),
        (["--markdown", "."], "cannot be written"),
    ],
)
def test_report_refuses_in_one_line(finished, capsys, options, message):
    assert main(["report", *options]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("sparqle: error: ")
    assert message in line
    assert captured.out == ""


def test_a_reader_that_has_enough_ends_the_command_quietly():
    sparqle = Path(sys.executable).with_name("sparqle")
    command = f"{sparqle} estimate --seq 64 --json - | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


@pytest.mark.parametrize("words", [["estimate", "--seq", "64"], ["disasm", "--json", "-"]])
def test_standard_output_that_is_full_is_one_line(words):
    sparqle = Path(sys.executable).with_name("sparqle")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sparqle, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert (
        done.stderr
        == "sparqle: error: standard output cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "-", "--markdown", "-"], "--json and --markdown: only one goes to standard"),
        (["--html", "-", "--json", "-"], "only one goes to standard output"),
        (["--json", "a", "--markdown", "a"], "this file is written by json, too"),
        (["--json", "run.json"], "this file is read by results, too"),
        (["--json", ""], "an empty name is none"),
        (["--json", "new", "--csv", "run.json"], "run.json cannot be written"),
        (["--json", "new", "--pictures", "run.json/x"], "run.json is no folder"),
    ],
)
def test_outputs_are_checked_before_any_is_written(
    run_file, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    before = run_file.read_bytes()
    assert main(["report", "run.json", *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert run_file.read_bytes() == before


def test_outputs_are_written_together_or_not_at_all(run_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--json", "a.json", "--markdown", "a.md", "--csv", "csv", "--html", "/dev/full"]
    assert main(["report", "run.json", *words]) == 2
    assert "/dev/full cannot be written: No space left" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "csv"}
    assert list((tmp_path / "csv").iterdir()) == []


def test_report_writes_the_page_to_standard_output(run_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run_file), "--html", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [run_file]


def test_names_in_errors_do_not_steer_the_terminal(capsys):
    assert main(["estimate", "--target", "\x1b[2J[red]"]) == 2
    assert "unknown target '\\x1b[2J[red]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tune", "--seed", "-1"], "seed -1 is negative"),
        (["tune", "--objective", "speed"], "objective speed is unknown"),
        (["tune", "--percentile", "101"], "percentile 101"),
        (["tune", "--trials", "0"], "must be positive"),
        (["pareto", "--calibration", "c.npz", "--picture", "x.foo"], "ends in .png, .svg or .pdf"),
        (["calibrate", "--out", "c.txt"], "has to end in .npz"),
        (["calibrate", "--tokens", "0"], "must be at least 1"),
        (["calibrate", "--text", "none.txt"], "none.txt cannot be read"),
        (["run", "--loss-tokens", "0"], "at least 2 tokens"),
        (["run", "--text", "none.txt"], "none.txt cannot be read"),
        (["sweep", "--axis", "seq=1:5:999999999999"], "more than 1000000 values"),
        (["sweep", "--axis", "seq=1:inf:5"], "is first:last:count"),
    ],
)
def test_options_are_refused_before_the_work_begins(monkeypatch, capsys, tmp_path, words, message):
    def never(*_, **__):
        raise AssertionError("a model is read")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparqle_tvm.frontend.from_gguf", never)
    monkeypatch.setattr("sparqle_tvm.models.builtin.fetch_builtin", never)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def all_parsers(parser, words=()):
    """Every parser with the words that lead to it."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from all_parsers(below, (*words, name))


def test_every_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = dict(all_parsers(_parser()))
    assert ("target", "check") in found and ("sweep",) in found
    for words, parser in found.items():
        wide = [line for line in parser.format_help().splitlines() if len(line) > 80]
        assert not wide, (words, wide)
        if words and words[0] != "target":
            assert "examples:" in parser.epilog, words


def test_examples_of_help_are_commands():
    parser = _parser()
    for _, below in all_parsers(parser):
        text = (below.epilog or "").replace("\\\n", " ")
        for line in re.findall(r"^  sparqle (.*)$", text, re.M):
            parser.parse_args(shlex.split(line))


def test_what_the_parser_refuses_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["estimate", "--seq", "x"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sparqle: error: argument --seq: invalid int value: 'x'; see sparqle ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("sparqle est", {"estimate"}), ("sparqle target ", {"list", "show", "new", "check"})],
)
def test_a_shell_is_told_how_a_line_may_go_on(tmp_path, line, expected):
    out = tmp_path / "completions"
    asked = {
        **{"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line},
        **{"COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(out)},
    }
    sparqle = Path(sys.executable).with_name("sparqle")
    subprocess.run([sparqle], env={**os.environ, **asked}, check=True, timeout=60)
    assert expected <= {word.strip() for word in out.read_text().split("\n")}


def test_too_few_tokens_to_calibrate_are_refused_before_a_model_is_read(capsys):
    assert main(["calibrate", "--model", "none.gguf", "--tokens", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tokens = 1" in line and "2 tokens" in line


@pytest.mark.parametrize("command", ["run", "calibrate", "generate"])
def test_a_model_of_which_only_sizes_are_known_is_not_run(capsys, command):
    more = ["--prompt", "x"] if command == "generate" else []
    assert main([command, "--model", "llama3-8b", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "llama3-8b: only its sizes are known, which sparqle estimate, sweep and tune" in line
