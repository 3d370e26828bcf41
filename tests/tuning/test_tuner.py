"""The search: near the best, never worse than the default, reproducible, goes on when killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import tvm
from tuning_cases import CRAMPED, STARVED, small_space, spec_of, task_of_spec
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import InvalidArgumentError, ProgramError, TuningError
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.intrinsics import PREFIX
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.compile.tir import split_dense_primfunc
from sparqle_tvm.tuning import Meter, Tuner, TuningDatabase, default_of, tasks_of_group
from sparqle_tvm.tuning.database import RECORDS, SETTINGS, WORKLOADS
from sparqle_tvm.tuning.task import TASK_ATTR

TRIALS = 24


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """One search over two ops that share their encoding, and one that stands alone."""
    folder = tmp_path_factory.mktemp("tuned")
    tasks = tasks_of_group((spec_of(n=96), spec_of(n=32)), 48, STARVED)
    tasks.append(task_of_spec(spec_of(n=48, k=96)))
    result = Tuner(Meter(STARVED), "latency", folder).run(tasks, TRIALS)
    return folder, tasks, result


def test_never_worse_than_the_default_and_better_somewhere(tuned):
    _, tasks, result = tuned
    for found in result.tasks:
        assert found.best_cost.cycles <= found.default_cost.cycles
        assert found.trials >= 1 and not found.message
    assert result.total("best").cycles < result.total("default").cycles
    assert sum(found.trials for found in result.tasks) == TRIALS
    # The default of each first, nothing twice.
    assert {t.task: t.decisions for t in result.journal[:3]} == {
        task: default_of(task, STARVED) for task in tasks
    }
    assert len({(t.task, t.decisions) for t in result.journal}) == TRIALS


def test_readers_of_one_encoding_share_the_chunk(tuned):
    folder, tasks, result = tuned
    chunks = {min(found.best.k, found.task.spec.k) for found in result.tasks[:2]}
    assert len(chunks) == 1
    group = tasks[0].group
    chosen = TuningDatabase(folder).schedules(group)
    assert chosen == tuple(
        next(f.best for f in result.tasks if f.task.spec == spec) for spec in group
    )
    # In any order, and for ops that differ in nothing that matters; others are not found.
    assert TuningDatabase(folder).schedules(group[::-1], rows=48) == chosen[::-1]
    like = [replace(spec, window="unsigned") for spec in group]
    assert TuningDatabase(folder).schedules(like) == chosen
    assert TuningDatabase(folder).schedules(group[:1]) is None


def test_the_best_schedule_is_made_of_our_intrinsics(tuned):
    _, _, result = tuned
    for found in result.tasks:
        sch = schedule_with(found.task.spec, STARVED, found.best)
        text = sch.mod.script()
        for name in ("mma_lsb", "mma_msb", "ld_wgt", "drain", "store"):
            assert f'"{PREFIX}{name}"' in text
        program = generate(sch, found.task.spec, STARVED)
        assert Meter(STARVED).run(found.task, program) == found.best_cost


def test_same_seed_same_search(tuned, tmp_path):
    _, tasks, result = tuned
    # In whatever order the ops come.
    again = Tuner(Meter(STARVED), "latency", tmp_path / "again").run(tasks[::-1], TRIALS)
    assert [(t.task, t.decisions, t.value) for t in again.journal] == [
        (t.task, t.decisions, t.value) for t in result.journal
    ]
    first, other = (
        Tuner(Meter(STARVED), "latency", tmp_path / str(seed), ranking="random", seed=seed).run(
            tasks[2:], 8
        )
        for seed in (0, 1)
    )
    assert [t.decisions for t in other.journal] != [t.decisions for t in first.journal]


@pytest.mark.parametrize("rows", [48, 1])
def test_tuned_is_within_3_percent_of_the_best_there_is(rows, tmp_path):
    task = task_of_spec(spec_of(m=64 if rows > 1 else 1), rows)
    space, meter = small_space(task), Meter(STARVED)
    points = [p for p in space.points() if meter.refuses(task, p) is None]
    assert len(points) > 20
    best = min(meter.measure(task, p).cycles for p in points)
    result = Tuner(meter, "latency", tmp_path, spaces={task: space}).run([task], 16)
    assert result.tasks[0].best_cost.cycles <= 1.03 * best


def test_formulas_tune_energy(tmp_path):
    task = task_of_spec(spec_of(n=384, k=512), accelerator=CRAMPED)
    meter = Meter(CRAMPED, engine="analytical")
    result = Tuner(meter, "energy", tmp_path).run([task], 24)
    assert result.tasks[0].best_cost.energy_pj <= result.tasks[0].default_cost.energy_pj
    assert TuningDatabase(tmp_path).settings.objective == "energy"


def test_nothing_is_measured_twice(tmp_path, monkeypatch):
    task = task_of_spec(spec_of())
    measured = []
    (tmp_path / "candidates").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "candidates"))

    class Counting(Meter):
        def measure(self, task, decisions):
            measured.append(decisions)
            return super().measure(task, decisions)

    result = Tuner(Counting(STARVED), "weighted:0.5", tmp_path).run([task], 12)
    assert len(measured) == len(set(measured)) == len(result.journal) == 12
    # A run that goes on measures what it reports, and nothing else that is known.
    measured.clear()
    again = Tuner(Counting(STARVED), "weighted:0.5", tmp_path).run([task], 14)
    assert len(measured) == len(set(measured)) <= 2 + 2
    assert again.tasks[0].default_cost == result.tasks[0].default_cost
    assert {t.decisions for t in again.journal}.isdisjoint(t.decisions for t in result.journal)
    # What builders hand to runners is gone.
    assert not list((tmp_path / "candidates").iterdir())


def test_failures_are_results_and_the_default_stays(tmp_path, monkeypatch):
    task = task_of_spec(spec_of())
    default = default_of(task, STARVED)
    build = Meter.build

    def only_the_default(self, task, decisions, **others):
        if decisions != default:
            raise ProgramError("instruction 7 is refused")
        return build(self, task, decisions, **others)

    monkeypatch.setattr(Meter, "build", only_the_default)
    result = Tuner(Meter(STARVED), "latency", tmp_path).run([task], 12)
    (found,) = result.tasks
    others = [trial for trial in result.journal if trial.decisions != default]
    assert found.best == default and found.failures == len(others) > 0
    assert "the default stays" in found.message and "instruction 7" in found.message
    assert {trial.error for trial in others} == {"instruction 7 is refused"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on(tmp_path, workers):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from tuning_cases import STARVED, spec_of, task_of_spec
        from sparqle_tvm.tuning import Meter, Tuner
        note = lambda trial: print(trial.value, flush=True)
        if __name__ == "__main__":
            Tuner(Meter(STARVED), "latency", {str(tmp_path)!r}, on_trial=note,
                  workers={workers}).run([task_of_spec(spec_of())], 400)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for _ in range(6):
        assert float(process.stdout.readline()) > 0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    # As if the kill had come in the middle of a write.
    with (tmp_path / RECORDS).open("a") as file:
        file.write('[0, [[[["Get')
    # Nothing that was told is lost.
    before = len(TuningDatabase(tmp_path).entries)
    assert 6 <= before < 100
    task = task_of_spec(spec_of())
    result = Tuner(Meter(STARVED), "latency", tmp_path).run([task], before + 3)
    assert result.tasks[0].trials == before + 3
    assert len(result.journal) == result.tasks[0].trials - before
    assert len(TuningDatabase(tmp_path).entries) == result.tasks[0].trials
    done = Tuner(Meter(STARVED), "latency", tmp_path).run([task], before)
    assert not done.journal and done.tasks[0].best == result.tasks[0].best


def copied(folder, tmp_path):
    for name in (WORKLOADS, RECORDS, SETTINGS):
        (tmp_path / name).write_text((folder / name).read_text())
    return tmp_path


def with_record(values):
    def damage(folder):
        lines = (folder / RECORDS).read_text().splitlines()
        record = json.loads(lines[1])
        for path, value in values.items():
            node = record
            for index in path[:-1]:
                node = node[index]
            node[path[-1]] = value
        lines[1] = json.dumps(record)
        (folder / RECORDS).write_text("\n".join(lines) + "\n")

    return damage


def cut_line(name, number):
    def damage(folder):
        lines = (folder / name).read_text().splitlines()
        lines[number - 1] = lines[number - 1][:40]
        (folder / name).write_text("\n".join(lines) + "\n")

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_line(RECORDS, 3), rf"{RECORDS}, line 3: .*not JSON"),
        (cut_line(WORKLOADS, 2), rf"{WORKLOADS}, line 2: .*not JSON"),
        (with_record({(0,): 99}), rf"{RECORDS}, line 2: .*no workload 99"),
        (with_record({(1, 1): [-1.0]}), rf"{RECORDS}, line 2: .*not a positive number"),
        (with_record({(1, 0): [[], []]}), rf"{RECORDS}, line 2: .*decides nothing"),
        (with_record({(1,): 5}), rf"{RECORDS}, line 2: no record"),
    ],
)
def test_a_damaged_database_is_refused_with_its_line(tuned, tmp_path, damage, message):
    folder = copied(tuned[0], tmp_path)
    TuningDatabase(folder)
    damage(folder)
    with pytest.raises(TuningError, match=message):
        TuningDatabase(folder)
    with pytest.raises(TuningError, match=message):
        Tuner(Meter(STARVED), "latency", folder)


def test_an_old_database_is_converted_or_refused(tuned, tmp_path):
    """Workloads of another form of the PrimFunc: their tasks are read, and TVM gets today's."""
    folder, tasks, result = copied(tuned[0], tmp_path), tuned[1], tuned[2]
    lines = []
    for task in TuningDatabase(folder).tasks:
        text = json.dumps(task.to_json(), sort_keys=True)
        bare = split_dense_primfunc(task.spec).with_attr({TASK_ATTR: text, "global_symbol": "main"})
        old = ms.database.Workload(tvm.IRModule({"main": bare})).as_json()
        lines.append(json.dumps([str(part) for part in old], separators=(",", ":")))
    written = (folder / WORKLOADS).read_text()
    (folder / WORKLOADS).write_text("\n".join(lines) + "\n")
    assert (folder / WORKLOADS).read_text() != written
    again = Tuner(Meter(STARVED), "latency", folder).run(tasks, TRIALS)
    assert not again.journal
    assert [found.best for found in again.tasks] == [found.best for found in result.tasks]
    assert (folder / WORKLOADS).read_text() == written
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps({**settings, "version": 0}))
    with pytest.raises(TuningError, match=r"version 0.*tune again"):
        TuningDatabase(folder)


def test_settings_are_held(tuned, tmp_path):
    folder = copied(tuned[0], tmp_path)
    with pytest.raises(TuningError, match=r"another objective \('latency', now 'energy'\); use"):
        Tuner(Meter(STARVED), "energy", folder)
    with pytest.raises(TuningError, match=r"another accelerator \('starved', now 'cramped'\)"):
        Tuner(Meter(CRAMPED), "latency", folder)
    with pytest.raises(TuningError, match=r"'starved'.*'cramped'"):
        TuningDatabase(folder).check_accelerator(CRAMPED)
    (folder / SETTINGS).write_text("{}")
    with pytest.raises(TuningError, match="damaged"):
        TuningDatabase(folder)
    (folder / SETTINGS).unlink()
    # As MetaSchedule's own calls leave a database: the records say of which accelerator.
    bare = TuningDatabase(folder)
    assert bare.settings.accelerator == STARVED and bare.settings.objective == "unknown"
    assert bare.entries == TuningDatabase(tuned[0]).entries
    with pytest.raises(TuningError, match="use another folder"):
        Tuner(Meter(STARVED), "latency", folder)
    (folder / RECORDS).unlink()
    with pytest.raises(TuningError, match="no tuning database"):
        TuningDatabase(folder)
    with pytest.raises(TuningError, match="without"):
        Tuner(Meter(STARVED), "latency", folder)


def test_too_few_trials(tmp_path):
    task = task_of_spec(spec_of())
    with pytest.raises(InvalidArgumentError, match="at least one"):
        Tuner(Meter(STARVED), "latency", tmp_path).run([task], 0)
