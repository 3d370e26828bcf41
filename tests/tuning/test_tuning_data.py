"""What schedules are measured with: rows of a calibration file, and the worst of several draws."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tvm
from tiny_calibration import calibrate_tiny
from tiny_files import write_tiny_model
from tuning_cases import EDGE, STARVED

from sparqle_tvm.calibration import Calibration
from sparqle_tvm.calibration.statistics import UNCHANGED
from sparqle_tvm.cli import main
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError, TuningError
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.tuning import (
    ActivationData,
    Meter,
    Tuner,
    TuningTask,
    cost_model,
    default_of,
    extract_tasks,
    objects,
    runner,
)
from sparqle_tvm.tuning.extract import tasks_of_group
from sparqle_tvm.tuning.measure import Measurement
from sparqle_tvm.tuning.workers import Workers

ROWS = 48
DRAWS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny model, the file of its calibration, and what that holds."""
    tiny = calibrate_tiny(tmp_path_factory.mktemp("data"))
    path = tiny.folder / "calib.npz"
    tiny.calibration.save(path)
    return tiny, path, Calibration.load(path)


@pytest.fixture(scope="module")
def tasks(made):
    tiny, _, known = made
    mod = tvm.IRModule({name: tiny.imported.mod[name] for name in ("hidden", "head")})
    data = ActivationData(calibration=known)
    return extract_tasks(mod, STARVED, rows=(ROWS,), data=data, single=("output",))


def test_rows_are_those_of_the_calibration_in_all_layers(made, tasks):
    _, _, known = made
    data = ActivationData(calibration=known, draws=DRAWS)
    readers = {dense.label: encoding for encoding in known for dense in encoding.dense}
    calibrated = [task for task in tasks if task.labels != ("output",)]
    assert len(calibrated) == len(tasks) - 1
    for task in calibrated:
        layers = [readers[label.split("+")[0]] for label in task.labels]
        drawn = data.draw(task)
        # Four draws of at most four equal ops: in the order of the layers, each as often.
        chosen = [layers[i * len(layers) // DRAWS] for i in range(DRAWS)]
        assert len({e.label for e in chosen}) > 1
        for nnz, encoding in zip(drawn, chosen, strict=True):
            assert nnz.counts.shape == (ROWS, encoding.units)
            sampled = {tuple(row) for row in encoding.sample[:, UNCHANGED].tolist()}
            assert {tuple(row) for row in nnz.counts.tolist()} <= sampled


def test_ops_of_one_group_get_the_same_rows(made, tasks):
    data = ActivationData(calibration=made[2], draws=DRAWS)
    task = next(t for t in tasks if t.labels[0].startswith("blk_0_attn_q"))
    # Two formats: they do not run as one.
    group = (task.spec, replace(task.spec, weight_bits=8))
    labels = dict(zip(group, (["blk_0_attn_q"], ["blk_0_attn_v"]), strict=True))
    first, second = map(data.draw, tasks_of_group(group, task.rows, STARVED, labels, data=data))
    for one, same in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.counts, same.counts)


def test_what_was_not_calibrated_has_the_given_density(made, tasks):
    (output,) = (task for task in tasks if task.labels == ("output",))
    none = ActivationData(0.0, calibration=made[2]).draw(output)
    everything = ActivationData(1.0, calibration=made[2]).draw(output)
    assert none[0].counts.sum() == 0
    assert everything[0].counts.sum() == output.rows * output.spec.k


def measured_alone(task, data, decisions):
    """Cost of every draw by itself."""
    costs = []
    for nnz in data.draw(task):
        meter = Meter(STARVED)
        meter._drawn[task] = (nnz,)
        costs.append(meter.measure(task, decisions))
    return costs


def test_a_percentile_of_the_draws_is_what_is_tuned(made, tasks, tmp_path):
    task = max(tasks, key=lambda t: t.rows * t.spec.n * t.spec.k)
    worst = ActivationData(calibration=made[2], draws=DRAWS, percentile=100)
    default = default_of(task, STARVED)
    alone = measured_alone(task, worst, default)
    cycles, joules = ([getattr(c, n) for c in alone] for n in ("cycles", "energy_pj"))
    assert min(cycles) < max(cycles) and min(joules) < max(joules)
    for percentile, combine in {None: np.mean, 0: np.min, 50: np.median, 100: np.max}.items():
        found = Meter(STARVED, replace(worst, percentile=percentile)).measure(task, default)
        assert found.cycles == pytest.approx(combine(cycles))
        assert found.energy_pj == pytest.approx(combine(joules))
    (found,) = Tuner(Meter(STARVED, worst), "energy", tmp_path).run([task], 4).tasks
    alone = measured_alone(task, worst, found.best)
    assert found.best_cost == Measurement(
        max(c.cycles for c in alone), max(c.energy_pj for c in alone)
    )
    assert found.best_cost.energy_pj <= max(joules)
    # Figures of other data do not mix with these.
    for other in (ActivationData(), replace(worst, percentile=None)):
        with pytest.raises(TuningError, match="another data"):
            Tuner(Meter(STARVED, other), "energy", tmp_path)


def test_objects_for_tvm_s_calls_need_the_labels(made, tasks):
    data = ActivationData(calibration=made[2])
    for make in (
        lambda: objects(STARVED, data=data),
        lambda: runner("latency", data=data),
        lambda: cost_model(STARVED, data=data),
    ):
        with pytest.raises(InvalidArgumentError, match="goes by the labels of ops"):
            make()
    assert objects(STARVED, data=data, tasks=tasks)["num_trials_per_iter"] == 8
    # Workers get the labels, whoever made the candidate.
    task = max(tasks, key=lambda t: t.rows * t.spec.n * t.spec.k)
    bare = TuningTask.from_json(task.to_json())
    there = Workers(Meter(STARVED, data))
    there.know(tasks)
    default = default_of(task, STARVED)
    expected = Meter(STARVED, data).measure(task, default)
    assert there.measure([(bare, default)]) == [expected]
    assert Meter(STARVED, data).measure(bare, default) != expected


def test_the_command_takes_the_file(made, tasks, tmp_path):
    tiny, path, known = made
    out = tmp_path / "tuned.json"
    command = ["tune", "--model", tiny.folder / "tiny.gguf", "--calibration", path]
    command += ["--draws", 2, "--percentile", 100, "--tokens", ROWS, "--engine", "analytical"]
    # As many trials as ops of 48 tokens and of one: the default schedules, and no search.
    command += ["--trials", 2 * len(tasks) - 1, "--database", tmp_path / "db", "--json", out]
    assert main([str(word) for word in command]) == 0
    result = json.loads(out.read_text())
    data = result["settings"]["data"]
    assert (data["draws"], data["percentile"]) == (2, 100.0)
    assert data["calibration"] == {"model": known.fingerprint, "text": "prose", "tokens": 200}
    worst = ActivationData(calibration=known, draws=2, percentile=100)
    meter = Meter(EDGE, worst, engine="analytical")
    found = {tuple(t["labels"]): t for t in result["tasks"] if t["name"].startswith(f"{ROWS} ")}
    assert len(found) == len(tasks) - 1
    for task in tasks:
        if task.labels in found:
            cost = meter.measure(task, default_of(task, EDGE))
            assert found[task.labels]["default"]["cycles"] == cost.cycles


def test_a_calibration_of_another_model_is_refused(made, tmp_path):
    other = from_gguf(write_tiny_model(tmp_path, seed=5), progress=False)
    mod = tvm.IRModule({"hidden": other.mod["hidden"]})
    with pytest.raises(CalibrationError, match="other weights"):
        extract_tasks(mod, STARVED, data=ActivationData(calibration=made[2]))
