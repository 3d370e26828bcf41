"""The space: traces replay, the default is in it, what does not fit is refused unbuilt."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tuning_cases import CRAMPED, EDGE, STARVED, small_space, spec_of, task_of_spec
from tvm import s_tir

from sparqle_tvm.errors import InvalidArgumentError, TargetError
from sparqle_tvm.target.cost.schedule import overflows
from sparqle_tvm.tuning import (
    KNOBS,
    ActivationData,
    Meter,
    Objective,
    Predictor,
    Space,
    TuningTask,
    default_of,
    make_space,
    tasks_of_group,
)
from sparqle_tvm.tuning.measure import Measurement
from sparqle_tvm.tuning.space import MutateKnob, decisions_of, read_trace, reason_against
from sparqle_tvm.tuning.task import schedule_key, task_of


def test_a_workload_knows_its_task():
    task = task_of_spec(spec_of(has_min=True, weight_signed=False))
    assert task_of(task.workload()) == task
    assert TuningTask.from_json(json.loads(json.dumps(task.to_json()))) == task
    with pytest.raises(InvalidArgumentError, match="no tuning task"):
        TuningTask.from_json({"spec": {"m": 1}})
    with pytest.raises(InvalidArgumentError, match="1 to that"):
        TuningTask(spec=task.spec, rows=65, group=task.group, chunks=task.chunks)


def test_sampled_traces_replay_to_the_same_decisions():
    task = task_of_spec(spec_of())
    space = make_space(task, STARVED)
    sch = s_tir.Schedule(task.workload(), seed=3, debug_mask="none")
    space.schedule(sch)
    sampled = decisions_of(sch.mod)
    assert sampled in space
    again = s_tir.Schedule(task.workload(), debug_mask="none")
    s_tir.schedule.Trace.apply_json_to_schedule(sch.trace.as_json(), again)
    assert decisions_of(again.mod) == sampled
    chosen = s_tir.Schedule(task.workload(), debug_mask="none")
    space.trace(task, sampled).apply_to_schedule(chosen, remove_postproc=True)
    assert decisions_of(chosen.mod) == sampled


def trace_of(decisions=None):
    task = task_of_spec(spec_of())
    space = small_space(task)
    trace = space.trace(task, decisions or next(space.points())).as_json()
    return json.loads(json.dumps(trace, default=lambda number: number.value))


def as_record(trace):
    return [tuple(instruction) for instruction in trace[0]], [tuple(pair) for pair in trace[1]]


def test_what_a_trace_says_is_read_as_tvm_replays_it():
    task = task_of_spec(spec_of())
    for point in list(small_space(task).points())[::7]:
        trace = trace_of(point)
        sch = s_tir.Schedule(task.workload(), debug_mask="none")
        s_tir.schedule.Trace.apply_json_to_schedule(trace, sch)
        assert read_trace(as_record(trace)) == decisions_of(sch.mod) == point


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[0].pop(),
        lambda t: t[0].append(["Unroll", ["l0"], [], []]),
        lambda t: t[0][1][2].__setitem__(0, []),
        lambda t: t[0][1][2].__setitem__(0, [[16], [64]]),
        lambda t: t[0][1][2].__setitem__(1, [0.5]),
        lambda t: t[0][2][2].__setitem__(0, "sparqle.knob.other"),
        lambda t: t[1].__setitem__(0, [1, 99]),
        lambda t: t[1].__setitem__(0, [1, -1]),
        lambda t: t[1].append([2, 0]),
        lambda t: t[1].append([1, 0]),
    ],
)
def test_other_traces_are_refused_before_tvm_sees_them(change):
    trace = trace_of()
    change(trace)
    with pytest.raises(InvalidArgumentError):
        read_trace(as_record(trace))


@pytest.mark.parametrize("rows", [48, 1])
@pytest.mark.parametrize("accelerator", [EDGE, STARVED, CRAMPED], ids=lambda a: a.name)
def test_the_default_is_in_the_space_and_fits(accelerator, rows):
    spec = spec_of(m=64 if rows > 1 else 1)
    task = task_of_spec(spec, rows, accelerator)
    default, space = default_of(task, accelerator), make_space(task, accelerator)
    assert default in space
    assert reason_against(task, accelerator, default) is None
    assert space.size == len(list(space.points())) if space.size < 1000 else space.size > 0


def test_what_does_not_fit_is_refused_with_the_buffer():
    task = task_of_spec(spec_of(n=768, k=512), accelerator=CRAMPED)
    space = make_space(task, CRAMPED)
    points = space.draw(np.random.default_rng(0), 300)
    assert len(set(points)) == len(points) > 250
    reasons = [reason_against(task, CRAMPED, point) for point in points]
    for point, reason in zip(points, reasons, strict=True):
        full = overflows(task.spec, CRAMPED, point)
        assert (reason is not None) == bool(full)
        assert all(buffer.name in reason for buffer in full)
    assert None in reasons and any(reasons)


def test_decisions_outside_the_space_are_refused():
    task = task_of_spec(spec_of())
    space = small_space(task)
    other = make_space(task, STARVED)
    outside = next(point for point in other.points() if point not in space)
    with pytest.raises(InvalidArgumentError, match="not in the space"):
        space.trace(task, outside)
    with pytest.raises(InvalidArgumentError, match="needs values"):
        Space({"m": (16,)})
    with pytest.raises(InvalidArgumentError, match="decides nothing"):
        decisions_of(task.workload())


def test_a_mutation_changes_exactly_one_knob():
    task = task_of_spec(spec_of())
    space = make_space(task, STARVED)
    default = default_of(task, STARVED)
    trace = space.trace(task, default)
    mutator, changed = MutateKnob(5), set()
    for _ in range(40):
        sch = s_tir.Schedule(task.workload(), debug_mask="none")
        mutator.apply(trace).apply_to_schedule(sch, remove_postproc=True)
        mutant = decisions_of(sch.mod)
        differs = [knob for knob in KNOBS if getattr(mutant, knob) != getattr(default, knob)]
        assert len(differs) == 1 and mutant in space
        changed.update(differs)
    assert len(changed) > 5


def test_ops_of_one_encoding_get_the_same_chunks():
    group = (spec_of(n=96), spec_of(n=32), spec_of(n=32))
    tasks = tasks_of_group(group, 48, STARVED)
    assert [t.weight for t in tasks] == [1, 2]
    assert tasks[0].chunks == tasks[1].chunks
    for task in tasks:
        assert default_of(task, STARVED) in make_space(task, STARVED)
    defaults = {default_of(task, STARVED).k for task in tasks}
    assert len(defaults) == 1


def test_an_op_that_fits_nowhere_is_no_task():
    wide = spec_of(n=16, k=4096)
    groups_of_4096 = type(wide)(m=64, n=16, k=4096, group_size=4096)
    with pytest.raises(TargetError):
        default_of(
            TuningTask(spec=groups_of_4096, rows=48, group=(groups_of_4096,), chunks=(4096,)),
            CRAMPED,
        )
    assert tasks_of_group((groups_of_4096,), 48, CRAMPED) == []


def test_a_key_keeps_what_schedules_depend_on():
    spec = spec_of()
    like = spec_of(window="unsigned", weight_signed=False, has_offset=True)
    assert schedule_key(spec) == schedule_key(like)
    assert schedule_key(spec) != schedule_key(spec_of(n=112))
    assert schedule_key(spec) != schedule_key(spec_of(has_min=True))


def test_the_prediction_ranks_and_the_bound_holds():
    task = task_of_spec(spec_of())
    meter = Meter(STARVED)
    predictor = Predictor(task, STARVED, meter.activations(task)[0])
    points = [
        p
        for p in make_space(task, STARVED).draw(np.random.default_rng(1), 40)
        if reason_against(task, STARVED, p) is None
    ][:16]
    cycles = np.array([meter.measure(task, p).cycles for p in points])
    predictions = np.array([predictor.predict(p).total_cycles for p in points])
    assert predictor.lower_bound_cycles() <= cycles.min()
    ranks = [np.argsort(np.argsort(values)) for values in (cycles, predictions)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


def test_formulas_measure_any_schedule():
    task = task_of_spec(spec_of())
    simulated, formulas = Meter(STARVED), Meter(STARVED, engine="analytical")
    default = default_of(task, STARVED)
    for decisions in (default, replace(default, weight_slots=1, keep_outer=not default.keep_outer)):
        exact, counted = simulated.measure(task, decisions), formulas.measure(task, decisions)
        assert counted.cycles == pytest.approx(exact.cycles, rel=0.1)
        assert counted.energy_pj == pytest.approx(exact.energy_pj, rel=0.1)


def test_objectives():
    cost, reference = Measurement(200.0, 3e6), Measurement(100.0, 6e6)
    values = {"latency": 200.0, "energy": 3e6, "edp": 600.0, "weighted": 1.25e6}
    for name, value in values.items():
        assert Objective.parse(name).value(cost, reference) == value
    assert Objective.parse("weighted:0.75").value(cost, reference) == 1.625e6
    assert str(Objective.parse("weighted:0.75")) == "weighted:0.75"
    for wrong in ("speed", "latency:0.5", "weighted:2", "weighted:x"):
        with pytest.raises(InvalidArgumentError, match="unknown"):
            Objective.parse(wrong)


def test_data_is_drawn_once_and_alike_for_a_group():
    first, second = (task_of_spec(spec_of(n=n)) for n in (96, 32))
    data = ActivationData(0.4, draws=3, percentile=100)
    draws = data.draw(first)
    assert len(draws) == 3
    for one, other in zip(draws, data.draw(second), strict=True):
        assert np.array_equal(one.counts, other.counts)
    assert data.combine([1.0, 5.0, 3.0]) == 5.0
    assert ActivationData().combine([1.0, 5.0, 3.0]) == 3.0
    for wrong in ({"density": 2}, {"draws": 0}, {"percentile": 101}):
        with pytest.raises(InvalidArgumentError):
            ActivationData(**wrong)
