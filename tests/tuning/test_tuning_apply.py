"""From the command line to a run with tuned schedules, on a tiny model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tvm
from tiny_files import write_prose, write_tiny_model

import sparqle_tvm
from sparqle_tvm.cli import main
from sparqle_tvm.errors import InvalidArgumentError, TuningError
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.tuning import TuningDatabase, extract_tasks

TOKENS = 40
STARVED = """
name = "starved"
rows = 16
cols = 16
lanes = 16
clock_ghz = 1.0
dram_bytes_per_cycle = 4.0
dma_descriptor_cycles = 32
activation_buffer_bytes = 8192
weight_buffer_bytes = 8192
accumulator_buffer_bytes = 16384
drain_elements_per_cycle = 16
vector_lanes = 64
vector_macs_per_cycle = 256
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tiny model, an accelerator, and the database that ``sparqle tune`` made for both."""
    folder = tmp_path_factory.mktemp("tuned")
    model = write_tiny_model(folder, layers=1)
    target, database, result = (folder / name for name in ("starved.toml", "db", "tuned.json"))
    target.write_text(STARVED)
    command = ["tune", "--model", model, "--target", target, "--database", database]
    command += ["--tokens", TOKENS, "--trials", 40, "--json", result]
    assert main([str(word) for word in command]) == 0
    return folder, model, target, database, json.loads(result.read_text())


def test_the_command_tunes_every_layer_once(tuned):
    *_, result = tuned
    assert result["total"]["best"]["cycles"] <= result["total"]["default"]["cycles"]
    labels = [(t["name"].split()[0], label) for t in result["tasks"] for label in t["labels"]]
    assert len(labels) == len(set(labels))
    assert {rows for rows, _ in labels} == {str(TOKENS), "1"}
    assert [rows for rows, label in labels if label == "output"] == ["1"]
    for task in result["tasks"]:
        assert task["best"]["cycles"] <= task["default"]["cycles"]
        assert task["weight"] == len(task["labels"])


def hidden_of(imported):
    return tvm.IRModule({"hidden": imported.mod["hidden"]})


def test_a_tuned_module_gives_the_same_bits_and_says_what_it_found(tuned):
    _, model, target, database, _ = tuned
    imported = sparqle_tvm.frontend.from_gguf(model, activations="int8", progress=False)
    accelerator = Accelerator.from_target(str(target))
    ids = tvm.runtime.tensor(np.arange(TOKENS, dtype="int32")[None])
    outputs, cycles = [], []
    for used in (None, database):
        executable = sparqle_tvm.compile(
            hidden_of(imported), accelerator, engine="simulator", database=used
        )
        outputs.append(executable["hidden"](ids).numpy())
        cycles.append(executable.profile().total_cycles)
    assert np.array_equal(*outputs)
    assert cycles[1] <= cycles[0]
    assert "blk_0_ffn_down" in executable.report.tuned
    # q, k and v run as one, and gate and up.
    assert len(executable.report.tuned) == 4


def test_run_prints_the_gain(tuned, capsys):
    folder, model, target, database, _ = tuned
    text, out = write_prose(folder), folder / "run.json"
    command = ["run", "--model", model, "--text", text, "--target", target]
    command += ["--database", database, "--tokens", TOKENS, "--json", out]
    assert main([str(word) for word in command]) == 0
    assert f"Schedules from {database}" in " ".join(capsys.readouterr().out.split())
    result = json.loads(out.read_text())
    assert result["exact"]
    for phase in ("prefill", "decode"):
        counts = result["tuning"][phase]["cycles"]
        assert counts["tuned"] <= counts["default"]
        assert counts["tuned"] == result[phase]["schemes"]["sparqle"]["dense_layers"]["cycles"]


def test_bad_input(tuned, tmp_path, capsys):
    _, model, target, database, _ = tuned
    wrong = {
        "no tuning database": ["run", "--model", model, "--database", tmp_path],
        "was tuned for accelerator 'starved'": ["run", "--model", model, "--database", database],
        "run on the simulator": [
            *("run", "--model", model, "--target", target),
            *("--database", database, "--engine", "analytical"),
        ],
        "objective speed is unknown": ["tune", "--model", model, "--objective", "speed"],
        "every op needs at least": ["tune", "--model", model, "--trials", 2],
        "must be positive": ["tune", "--model", model, "--tokens", 0],
        "density 2.0": ["tune", "--model", model, "--density", 2],
    }
    for message, command in wrong.items():
        if command[0] == "tune":
            command += ["--database", tmp_path / "new"]
        assert main([str(word) for word in command]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(TuningError, match="'starved'"):
        sparqle_tvm.pipeline(PRESETS["sparqle/edge"], database=TuningDatabase(database))


def test_a_module_without_dense_ops(tmp_path):
    with pytest.raises(TuningError, match="nothing to tune"):
        extract_tasks(tvm.IRModule(), "sparqle/edge")
    with pytest.raises(InvalidArgumentError, match="positive"):
        extract_tasks(tvm.IRModule(), "sparqle/edge", rows=())
    with pytest.raises(TuningError, match="nothing to tune"):
        sparqle_tvm.tune(tvm.IRModule(), trials=1, work_dir=tmp_path / "db")
    assert not (tmp_path / "db").exists()
