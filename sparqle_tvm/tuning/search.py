"""MetaSchedule's parts that build and run candidates, and what it calls after each batch."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import SparqleError
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.schedule import Decisions
from sparqle_tvm.tuning.measure import Measurement, Meter, Objective
from sparqle_tvm.tuning.space import decisions_of
from sparqle_tvm.tuning.task import TuningTask, task_of

LOG = logging.getLogger("sparqle_tvm.tuning")


@dataclass
class Trial:
    """One candidate that was tried.

    Attributes
    ----------
    task : TuningTask
        The op.
    decisions : Decisions
        How it was scheduled.
    value : float or None
        The objective; None if it failed.
    error : str
        Why it failed.
    """

    task: TuningTask
    decisions: Decisions
    value: float | None
    error: str = ""


@dataclass
class Journal:
    """All trials in their order, and who wants to hear of them."""

    trials: list[Trial] = field(default_factory=list)
    listener: Callable[[Trial], None] = lambda trial: None

    def add(self, trial: Trial) -> None:
        """Note a trial."""
        self.trials.append(trial)
        if trial.value is None:
            LOG.info("%s: %s failed: %s", trial.task.name, trial.decisions, trial.error)
        self.listener(trial)


def build_to_bytes(meter: Meter, task: TuningTask, decisions: Decisions) -> bytes:
    """The program of a candidate, as a worker process returns it; empty with formulas."""
    if meter.engine == "analytical":
        return b""
    return meter.build(task, decisions).to_bytes()


@derived_object
class ProgramBuilder(ms.builder.PyBuilder):
    """Schedules candidates and generates their programs; what fails is a result with a message.

    Parameters
    ----------
    meter : Meter
        The machine.
    folder : Path
        Where programs are put for the runner, each in a folder of its own.
    pool : concurrent.futures.Executor, optional
        Worker processes; by default all is built in this one.
    """

    def __init__(self, meter: Meter, folder: Path, pool: Executor | None = None) -> None:
        super().__init__()
        self.meter, self.folder, self.pool = meter, folder, pool

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        """Build candidates."""
        wanted = [(task_of(i.mod), decisions_of(i.mod)) for i in build_inputs]
        if self.pool is None:
            return [self._result(w, partial(build_to_bytes, self.meter, *w)) for w in wanted]
        plain = Meter(self.meter.accelerator, engine=self.meter.engine)
        futures = [self.pool.submit(build_to_bytes, plain, *w) for w in wanted]
        return [self._result(w, f.result) for w, f in zip(wanted, futures, strict=True)]

    def _result(self, wanted: tuple[TuningTask, Decisions], make: Callable[[], bytes]) -> Any:
        task, decisions = wanted
        try:
            program = make()
        except SparqleError as error:
            return ms.builder.BuilderResult(None, str(error))
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        (folder / "program").write_bytes(program)
        about = {"task": task.to_json(), "decisions": asdict(decisions)}
        (folder / "about.json").write_text(json.dumps(about))
        return ms.builder.BuilderResult(str(folder), None)


@derived_object
class _Done(ms.runner.PyRunnerFuture):
    """A result that is there already."""

    def __init__(self, values: list[float] | None, error: str | None) -> None:
        super().__init__()
        self.values, self.error = values, error

    def done(self) -> bool:
        """Always."""
        return True

    def result(self) -> Any:
        """The result."""
        return ms.runner.RunnerResult(self.values, self.error)


@derived_object
class ProgramRunner(ms.runner.PyRunner):
    """Measures built candidates: the objective stands where MetaSchedule has seconds.

    Parameters
    ----------
    meter : Meter
        What measures.
    objective : Objective
        The figure.
    references : callable
        The default schedule's measurement of a task.
    """

    def __init__(
        self,
        meter: Meter,
        objective: Objective,
        references: Callable[[TuningTask], Measurement],
    ) -> None:
        super().__init__()
        self.meter, self.objective, self.references = meter, objective, references

    def run(self, runner_inputs: Sequence[Any]) -> list[Any]:
        """Measure programs."""
        return [self._run(Path(str(i.artifact_path))) for i in runner_inputs]

    def _run(self, folder: Path) -> Any:
        about = json.loads((folder / "about.json").read_text())
        task, decisions = TuningTask.from_json(about["task"]), Decisions(**about["decisions"])
        try:
            if self.meter.engine == "analytical":
                cost = self.meter.count(task, decisions)
            else:
                program = Program.from_bytes((folder / "program").read_bytes())
                cost = self.meter.run(task, program)
        except SparqleError as error:
            return _Done(None, str(error))
        return _Done([self.objective.value(cost, self.references(task))], None)


@derived_object
class KeepResults(ms.measure_callback.PyMeasureCallback):
    """Writes what succeeded to the database and everything to the journal.

    Parameters
    ----------
    database : ms.database.Database
        Takes the records.
    journal : Journal
        Takes all trials.
    target : tvm.target.Target
        Stands in the records.
    """

    def __init__(self, database: Any, journal: Journal, target: Any) -> None:
        super().__init__()
        self.database, self.journal, self.target = database, journal, target

    def apply(
        self,
        task_scheduler: Any,
        task_id: int,
        measure_candidates: Sequence[Any],
        builder_results: Sequence[Any],
        runner_results: Sequence[Any],
    ) -> None:
        """Keep a batch."""
        for candidate, result in zip(measure_candidates, runner_results, strict=True):
            mod = candidate.sch.mod
            task, decisions = task_of(mod), decisions_of(mod)
            if result.run_secs is None:
                self.journal.add(Trial(task, decisions, None, str(result.error_msg)))
                continue
            values = [float(value) for value in result.run_secs]
            commit(self.database, task, candidate.sch.trace, values[0], self.target)
            self.journal.add(Trial(task, decisions, values[0]))


def commit(database: Any, task: TuningTask, trace: Any, value: float, target: Any) -> None:
    """Write one record to a database of MetaSchedule."""
    workload = database.commit_workload(task.workload())
    record = ms.database.TuningRecord(trace, workload, [value], target, [])
    database.commit_tuning_record(record)
