"""Workers: the same search wherever candidates are measured, and what one that dies costs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tuning_cases import STARVED, small_space, spec_of, task_of_spec

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.processes import WorkerLostError
from sparqle_tvm.target.cost.energy_table import energy_table
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.tuning import Measurement, Meter, Tuner, TuningTask, default_of, workers
from sparqle_tvm.tuning.workers import Workers

TRIALS = 24
TASK = task_of_spec(spec_of())
# While batches of two are measured, the third is searched for.
TASKS = [TASK, task_of_spec(spec_of(n=64)), task_of_spec(spec_of(n=48, k=96))]
POINTS = [p for p in small_space(TASK).points() if Meter(STARVED).refuses(TASK, p) is None][:5]


def journal(folder: Path, **where: object) -> list[object]:
    meter = Meter(STARVED, table=energy_table("7nm", "HBM2"))
    tuner = Tuner(meter, "edp", folder, **where)  # type: ignore[arg-type]
    found = tuner.run(TASKS, TRIALS).journal
    return [(t.task, t.decisions, t.value, t.error) for t in found]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    return journal(tmp_path_factory.mktemp("alone"))


def test_two_processes_find_what_one_finds(alone: list[object], tmp_path: Path) -> None:
    assert journal(tmp_path, workers=2) == alone


@pytest.fixture(scope="module")
def dask() -> Iterator[str]:
    """Address of a cluster of two workers."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def test_a_dask_cluster_finds_what_one_process_finds(
    alone: list[object], tmp_path: Path, dask: str
) -> None:
    assert journal(tmp_path, scheduler=dask) == alone


@dataclass
class Deadly(Meter):
    """Ends the process that measures, as often as the file has bytes less."""

    deaths: int = 1
    file: str = ""

    def bare(self) -> Meter:
        return self

    def measure(self, task: TuningTask, decisions: Decisions) -> Measurement:
        with open(self.file, "ab") as file:
            file.write(b".")
            count = file.tell()
        if count <= self.deaths:
            os._exit(1)
        return super().measure(task, decisions)


def test_a_worker_that_dies_costs_a_second_run_and_nothing_else(tmp_path: Path) -> None:
    candidates = [(TASK, point) for point in POINTS]
    with Workers(Meter(STARVED)) as here:
        expected = here.measure(candidates)
    deadly = Deadly(STARVED, deaths=1, file=str(tmp_path / "count"))
    with Workers(deadly, 2) as there:
        # Both batches lose what the workers were at.
        first, second = there.start(candidates[:3]), there.start(candidates[3:])
        assert first() + second() == expected


def test_a_dask_worker_that_dies_costs_a_second_run_and_nothing_else(
    tmp_path: Path, dask: str
) -> None:
    candidates = [(TASK, point) for point in POINTS]
    with Workers(Meter(STARVED)) as here:
        expected = here.measure(candidates)
    deadly = Deadly(STARVED, deaths=1, file=str(tmp_path / "count"))
    with Workers(deadly, scheduler=dask) as there:
        assert there.measure(candidates) == expected
    # What the dead worker was at ran once more, and nothing else did.
    runs = (tmp_path / "count").stat().st_size
    assert runs == len(candidates) + 1


def test_workers_that_always_die_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LOSSES", 1)
    deadly = Deadly(STARVED, deaths=1000, file=str(tmp_path / "count"))
    with Workers(deadly, 1 + 1) as there, pytest.raises(WorkerLostError, match="before its time"):
        list(there.measure([(TASK, POINTS[0])]))


def test_what_cannot_be_measured_is_said_in_its_place() -> None:
    class Failing(Meter):
        def measure(self, task: TuningTask, decisions: Decisions) -> Measurement:
            if decisions == POINTS[1]:
                raise InvalidArgumentError("not this one")
            return super().measure(task, decisions)

    with Workers(Failing(STARVED)) as here:
        found = list(here.measure([(TASK, point) for point in POINTS[:3]]))
    assert [isinstance(each, Measurement) for each in found] == [True, False, True]
    assert found[1] == "not this one"


def test_wrong_numbers_and_addresses() -> None:
    with pytest.raises(InvalidArgumentError, match="workers = 0"):
        Workers(Meter(STARVED), 0)
    nobody = Workers(Meter(STARVED), scheduler="tcp://127.0.0.1:9")
    candidate = TASK, default_of(TASK, STARVED)
    with nobody, pytest.raises(InvalidArgumentError, match="no Dask scheduler answers"):
        list(nobody.measure([candidate]))
