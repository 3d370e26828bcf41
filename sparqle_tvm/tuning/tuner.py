"""The search itself: tasks in, the best schedules and a database out."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import InvalidArgumentError, MissingExtraError
from sparqle_tvm.target.accelerator import register_tags
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.tuning import database as files
from sparqle_tvm.tuning.measure import Measurement, Meter, Objective
from sparqle_tvm.tuning.metaschedule import search_objects
from sparqle_tvm.tuning.ranking import Ranking
from sparqle_tvm.tuning.result import TaskResult, Trial, TuningResult
from sparqle_tvm.tuning.search import tune_context
from sparqle_tvm.tuning.space import Space, decisions_of, default_of
from sparqle_tvm.tuning.task import TuningTask, task_of
from sparqle_tvm.tuning.workers import Candidate, Workers

LOG = logging.getLogger("sparqle_tvm.tuning")


class Tuner:
    """Searches schedules for tasks with MetaSchedule's ``tune_tasks``.

    Parameters
    ----------
    meter : Meter
        Measures candidates.
    objective : Objective or str
        What is made small.
    work_dir : path
        Folder of the database; what is there already counts.
    seed : int
        Of all random numbers: the same seed finds the same schedules.
    ranking : {"learned", "predicted", "random"}
        See `CandidateModel`.
    spaces : mapping of TuningTask to Space, optional
        Other spaces than `make_space`.
    on_trial : callable, optional
        Called with every `Trial`.
    workers, scheduler
        Where candidates are measured, see `Workers`; what is found does not depend on it.

    Raises
    ------
    TuningError
        If the folder holds a damaged database, or one of another purpose.
    """

    def __init__(
        self,
        meter: Meter,
        objective: Objective | str,
        work_dir: str | PathLike[str],
        *,
        seed: int = 0,
        ranking: Ranking = "learned",
        spaces: dict[TuningTask, Space] | None = None,
        on_trial: Callable[[Trial], None] | None = None,
        workers: int | None = 1,
        scheduler: str | None = None,
    ) -> None:
        _require_metaschedule()
        self.meter, self.objective = meter, Objective.parse(objective)
        self.work_dir, self.seed, self.ranking = Path(work_dir), seed, ranking
        self.spaces = dict(spaces or {})
        self.on_trial = on_trial
        self.workers = Workers(meter, workers, scheduler)
        self.settings = files.Settings(
            meter.accelerator,
            str(self.objective),
            meter.engine,
            meter.energy_table.name,
            meter.data.to_json(),
        )
        register_tags()
        self.target = tvm.target.Target(meter.accelerator.to_target_config())
        self.known = files.open_for_tuning(self.work_dir, self.settings)
        self.database = ms.database.JSONDatabase(
            str(self.work_dir / files.WORKLOADS), str(self.work_dir / files.RECORDS)
        )
        self.journal: list[Trial] = []
        self._costs: dict[Candidate, Measurement] = {}

    def run(self, tasks: Sequence[TuningTask], trials: int) -> TuningResult:
        """Tune tasks.

        Parameters
        ----------
        tasks : sequence of TuningTask
            The ops; more trials go to those that cost more and occur oftener.
        trials : int
            Candidates to measure in all, defaults and those of earlier runs included.

        Raises
        ------
        InvalidArgumentError
            If there are no tasks, or fewer trials than tasks.
        """
        if not tasks or trials < len(tasks):
            raise InvalidArgumentError(
                f"{trials} trials for {len(tasks)} different dense ops; every op needs at least "
                f"one, its default schedule: take {len(tasks)} or more"
            )
        done = Counter(entry.task for entry in self.known.entries)
        left = trials - sum(done[task] for task in tasks)
        if left > 0:
            self._search(tasks, left)
        return self._result(tasks, done)

    def _search(self, tasks: Sequence[TuningTask], trials: int) -> None:
        self.workers.know(tasks)
        chosen = search_objects(
            self.workers,
            self.objective,
            seed=self.seed,
            ranking=self.ranking,
            spaces=self.spaces,
            costs=self._costs,
        )
        space, strategy = chosen.pop("space"), chosen.pop("strategy")
        callbacks = [*ms.measure_callback.MeasureCallback.create("default"), _Note(self._note)]
        ms.tune_tasks(
            tasks=[tune_context(t, self.target, space, strategy, 1).clone() for t in tasks],
            task_weights=[float(task.weight) for task in tasks],
            work_dir=str(self.work_dir),
            max_trials_global=trials,
            database=self.database,
            measure_callbacks=callbacks,
            **chosen,
        )

    def _note(self, trial: Trial) -> None:
        self.journal.append(trial)
        if trial.value is None:
            LOG.info("%s: %s failed: %s", trial.task.name, trial.decisions, trial.error)
        if self.on_trial is not None:
            self.on_trial(trial)

    def _cost(self, task: TuningTask, decisions: Decisions) -> Measurement:
        """What was measured in this run, or is now."""
        if (task, decisions) not in self._costs:
            self._costs[task, decisions] = self.meter.measure(task, decisions)
        return self._costs[task, decisions]

    def _result(self, tasks: Sequence[TuningTask], done: Counter[TuningTask]) -> TuningResult:
        entries = files.TuningDatabase(self.work_dir).entries
        found = []
        for task in tasks:
            default = default_of(task, self.meter.accelerator)
            best, message = self._best(task, entries)
            mine = [trial for trial in self.journal if trial.task == task]
            failures = sum(trial.value is None for trial in mine)
            # The search may propose the default again, which works.
            others = [trial for trial in mine if trial.decisions != default]
            failed = others and all(trial.value is None for trial in others)
            if not message and best == default and failed:
                message = f"no candidate worked, the default stays: {others[-1].error}"
            costs = self._cost(task, default), self._cost(task, best)
            count = done[task] + len(mine)
            found.append(TaskResult(task, default, best, *costs, count, failures, message))
        return TuningResult(tuple(found), tuple(self.journal), self.work_dir, self.settings)

    def _best(self, task: TuningTask, entries: Sequence[files.Entry]) -> tuple[Decisions, str]:
        """The best schedule of an op, given that its group shares the K chunk."""
        mine = [e for e in entries if e.task.group == task.group and e.task.rows == task.rows]
        chosen = files.best_of_group(task.group, mine)
        if chosen is None:
            message = "other ops that read the same encoding were not tuned; the default stays"
            return default_of(task, self.meter.accelerator), message
        return chosen[task.group.index(task.spec)], ""


@derived_object
class _Note(ms.measure_callback.PyMeasureCallback):
    """Tells of every trial when its batch is measured and kept."""

    def __init__(self, note: Callable[[Trial], None]) -> None:
        super().__init__()
        self.note = note

    def apply(
        self, _: Any, __: int, candidates: Any, builder_results: Any, runner_results: Any
    ) -> None:
        """Tell of a batch."""
        for candidate, built, run in zip(candidates, builder_results, runner_results, strict=True):
            mod = candidate.sch.mod
            error = built.error_msg or run.error_msg
            value = None if error else float(run.run_secs[0])
            self.note(Trial(task_of(mod), decisions_of(mod), value, str(error or "")))


def _require_metaschedule() -> None:
    for name in ("cloudpickle", "psutil", "xgboost"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"tuning needs {name}, which is not installed: pip install 'sparqle-tvm[tune]'"
            )
