"""A few cases of every boundary; `python -m tests.fuzz` runs more."""

from __future__ import annotations

import random
import time

import pytest
from fuzz_boundaries import BOUNDARIES
from fuzz_damage import damaged_value, to_json
from fuzz_driver import GOOD, prepare, run

CASES = 12
"""Of boundaries that do not compile for each."""
MINUTES = 3


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    prepare(list(BOUNDARIES), folder)
    return folder


@pytest.fixture(scope="module")
def deadline():
    return time.monotonic() + 60 * MINUTES


@pytest.mark.parametrize("name", list(BOUNDARIES))
def test_damage_ends_in_right_results_or_typed_errors(work, deadline, name):
    count = 3 if name in ("values", "program-values") else CASES
    report = run(name, range(count), 0, work, deadline)
    assert report.faults == []
    assert set(report.counts) <= set(GOOD)
    # A machine that is too slow runs fewer, but some.
    assert report.counts.total() == count or time.monotonic() >= deadline


def test_the_driver_sees_every_kind_of_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("fuzz_driver.WAIT_SECONDS", 30)
    report = run("faulty", range(8), 0, tmp_path, module="fuzz_faulty")
    kinds = [fault.split(": ")[1] for fault in report.faults]
    assert kinds == ["untyped", "wrong", "leftover", "memory", "crash", "hang"]
    assert report.counts["right"] == report.counts["typed"] == 1


def test_damage_changes_what_it_is_given():
    whole = {"a": [1, 2.5, {"b": "c"}], "d": None}
    texts = {to_json(damaged_value(random.Random(i), whole)) for i in range(200)}
    assert len(texts) > 100
    assert whole == {"a": [1, 2.5, {"b": "c"}], "d": None}
