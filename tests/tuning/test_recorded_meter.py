"""A search over measurements that are there already."""

from __future__ import annotations

import pytest
from tuning_cases import STARVED, small_space, spec_of, task_of_spec

from sparqle_tvm.errors import TuningError
from sparqle_tvm.tuning import Meter, RecordedMeter, Tuner, default_of


def test_a_search_stays_within_what_was_measured(tmp_path, monkeypatch):
    task = task_of_spec(spec_of())
    space, meter = small_space(task), Meter(STARVED, engine="analytical")
    points = [p for p in space.points() if meter.refuses(task, p) is None]
    known = {(task, p): meter.measure(task, p) for p in points}
    recorded = RecordedMeter(STARVED, engine="analytical", known=known)
    monkeypatch.setattr(Meter, "count", lambda *_: pytest.fail("measured a second time"))
    tuner = Tuner(recorded, "latency", tmp_path, spaces={task: space})
    result = tuner.run([task], len(points))
    assert {t.decisions for t in result.journal} <= set(points)
    assert all(t.value == known[task, t.decisions].cycles for t in result.journal)
    assert result.tasks[0].best_cost.cycles <= known[task, default_of(task, STARVED)].cycles


def test_what_was_not_measured_is_refused():
    task = task_of_spec(spec_of())
    with pytest.raises(TuningError, match="48 x 96 x 128: nobody measured"):
        RecordedMeter(STARVED).measure(task, default_of(task, STARVED))
