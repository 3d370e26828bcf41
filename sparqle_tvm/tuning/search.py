"""The parts that build and run MetaSchedule's candidates, and the rounds of the search.

All runs in one process. A spawned worker builds the same programs, but imports TVM first, which
takes as long as some dozens of builds; and a pool within a search hung, for a cause that was not
found. So none is offered.

Nor can other machines help yet. TVM's RPC would carry it: a `tvm.rpc.Server` whose
``server_init_callback`` registers a function of bytes answers a client's calls with a figure.
Missing are a server with the simulator in it (``tvm.exec.rpc_server`` loads shared libraries, not
Python packages), and hooks for the steps of `RPCRunner`: by default it uploads a built module and
times it with ``time_evaluator``, where ours are programs whose figure the simulator gives.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import SparqleError
from sparqle_tvm.target.compile.schedule import Decisions
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


@derived_object
class ProgramBuilder(ms.builder.PyBuilder):
    """Schedules candidates and generates their programs; what fails is a result with a message.

    Parameters
    ----------
    meter : Meter
        The machine.
    folder : Path
        Where programs are put for the runner, each in a folder of its own.
    """

    def __init__(self, meter: Meter, folder: Path) -> None:
        super().__init__()
        self.meter, self.folder = meter, folder

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        """Build candidates."""
        wanted = [(task_of(i.mod), decisions_of(i.mod)) for i in build_inputs]
        return [self._result(w, partial(self.meter.prepare, *w)) for w in wanted]

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
            cost = self.meter.evaluate(task, decisions, (folder / "program").read_bytes())
        except SparqleError as error:
            return _Done(None, str(error))
        return _Done([self.objective.value(cost, self.references(task))], None)


class Rounds:
    """Rounds of the search: a task's next candidates are built, measured, learned from and kept.

    MetaSchedule's task schedulers do the same, but print a table after every round, which in a
    notebook needs pandas and clears the output of the cell.

    Parameters
    ----------
    contexts : sequence of ms.TuneContext
        The tasks.
    builder, runner : ProgramBuilder, ProgramRunner
        What builds and measures.
    database : ms.database.Database
        Takes the records.
    model : CandidateModel
        Learns from the results.
    journal : Journal
        Takes all trials.
    target : tvm.target.Target
        Stands in the records.
    """

    def __init__(
        self,
        contexts: Sequence[Any],
        *,
        builder: Any,
        runner: Any,
        database: Any,
        model: Any,
        journal: Journal,
        target: Any,
    ) -> None:
        self.contexts, self.builder, self.runner = contexts, builder, runner
        self.database, self.model = database, model
        self.journal, self.target = journal, target

    def run(self, worth: Sequence[float], trials: int, batch: int) -> None:
        """Measure up to `trials` candidates, fewer if the spaces have no more.

        Every round is for the task that has the largest `worth`, divided by the rounds that it had
        and halved for each that brought nothing.
        """
        for context in self.contexts:
            spaces = context.generate_design_space()
            context.pre_tuning(trials, batch, spaces, self.database, self.model)
        rounds, stale = [0] * len(worth), [0] * len(worth)
        alive, best = set(range(len(worth))), [math.inf] * len(worth)
        while trials > 0 and alive:
            task = max(alive, key=lambda i: (worth[i] / (1 + rounds[i]) / 2 ** stale[i], -i))
            candidates = self.contexts[task].generate_measure_candidates()
            if candidates is None:
                alive.remove(task)
                continue
            values = self._measure(self.contexts[task], list(candidates)[:trials])
            trials -= len(values)
            rounds[task] += 1
            stale[task] += min(values, default=math.inf) >= best[task]
            best[task] = min(best[task], *values) if values else best[task]
        for context in self.contexts:
            context.post_tuning()

    def _measure(self, context: Any, candidates: list[Any]) -> list[float]:
        """Figures of candidates in their order, infinite for those that failed."""
        inputs = [ms.builder.BuilderInput(c.sch.mod, self.target) for c in candidates]
        built = self.builder.build(inputs)
        programs = [
            ms.runner.RunnerInput(result.artifact_path, "ext_dev", [])
            for result in built
            if result.error_msg is None
        ]
        measured = iter(self.runner.run(programs))
        results = [
            next(measured).result()
            if build.error_msg is None
            else ms.runner.RunnerResult(None, build.error_msg)
            for build in built
        ]
        context.notify_runner_results(candidates, results)
        self.model.update(context, candidates, results)
        return [self._keep(c, r) for c, r in zip(candidates, results, strict=True)]

    def _keep(self, candidate: Any, result: Any) -> float:
        mod = candidate.sch.mod
        task, decisions = task_of(mod), decisions_of(mod)
        if result.run_secs is None:
            self.journal.add(Trial(task, decisions, None, str(result.error_msg)))
            return math.inf
        value = float(result.run_secs[0])
        commit(self.database, task, candidate.sch.trace, value, self.target)
        self.journal.add(Trial(task, decisions, value))
        return value


def commit(database: Any, task: TuningTask, trace: Any, value: float, target: Any) -> None:
    """Write one record to a database of MetaSchedule."""
    workload = database.commit_workload(task.workload())
    record = ms.database.TuningRecord(trace, workload, [value], target, [])
    database.commit_tuning_record(record)
