"""The search itself: tasks in, the best schedules and a database out."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import InvalidArgumentError, MissingExtraError
from sparqle_tvm.target.accelerator import register_tags
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.tuning import database as files
from sparqle_tvm.tuning.candidates import Rounds, Trial
from sparqle_tvm.tuning.measure import Measurement, Meter, Objective
from sparqle_tvm.tuning.metaschedule import evolution, space_generator
from sparqle_tvm.tuning.predict import Predictor
from sparqle_tvm.tuning.ranking import CandidateModel, Ranking
from sparqle_tvm.tuning.result import TaskResult, TuningResult
from sparqle_tvm.tuning.space import Space, default_of, make_space
from sparqle_tvm.tuning.task import TuningTask, task_of
from sparqle_tvm.tuning.workers import Workers

LOG = logging.getLogger("sparqle_tvm.tuning")

# Points of which the prediction chooses what is simulated first.
_DRAWN = 3000

# Candidates of a task that are measured together.
_BATCH = {"simulator": 8, "analytical": 32}


class Tuner:
    """Searches schedules for tasks with MetaSchedule.

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
        self.defaults: dict[TuningTask, tuple[Decisions, Measurement]] = {}
        self._predictors: dict[TuningTask, Predictor] = {}

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
                "one, its default schedule"
            )
        done = Counter(entry.task for entry in self.known.entries)
        with self.workers:
            self._run(tasks, trials, done)
        return self._result(tasks, done)

    def _run(self, tasks: Sequence[TuningTask], trials: int, done: Counter[TuningTask]) -> None:
        for task in tasks:
            self._measure_default(task, known=task in done)
        open_tasks = [task for task in tasks if self._space(task).size > 1]
        left = trials - sum(max(done[task], 1) for task in tasks)
        if self.ranking != "random":
            for task in open_tasks:
                share = min(_BATCH[self.meter.engine], left // (2 * len(open_tasks)))
                if task not in done:
                    self._measure_favourites(task, share)
        left = trials - done.total() - len(self.journal)
        if left > 0 and open_tasks:
            self._search(open_tasks, left)

    def _space(self, task: TuningTask) -> Space:
        if task not in self.spaces:
            self.spaces[task] = make_space(task, self.meter.accelerator)
        return self.spaces[task]

    def _predictor(self, task: TuningTask) -> Predictor:
        if task not in self._predictors:
            nnz = self.meter.activations(task)[0]
            self._predictors[task] = Predictor(task, self.meter.accelerator, nnz)
        return self._predictors[task]

    def _measure_default(self, task: TuningTask, *, known: bool) -> None:
        """Measure the default schedule first: nothing worse than it is ever chosen."""
        decisions = default_of(task, self.meter.accelerator)
        cost = self.meter.measure(task, decisions)
        self.defaults[task] = decisions, cost
        if not known:
            self._keep(task, decisions, self._space(task).trace(task, decisions), cost)

    def _measure_favourites(self, task: TuningTask, count: int) -> None:
        """Measure what the prediction likes best of many points, for evolution to begin with.

        Ops that share their K chunk with others measure some of every chunk.
        """
        space, predictor = self._space(task), self._predictor(task)
        rng = np.random.default_rng((self.seed, 1))
        points = space.draw(rng, _DRAWN)
        predictor.look_at(points)
        points.sort(key=predictor.cycles)
        shared = len(set(task.group)) > 1
        per_chunk = -(-count // len(space.knobs["k"])) if shared else count
        left = dict.fromkeys(space.knobs["k"], per_chunk)
        default, chosen = self.defaults[task][0], list[Decisions]()
        for point in points:
            if len(chosen) == count:
                break
            if point == default or left[point.k] < 1 or self.meter.refuses(task, point):
                continue
            left[point.k] -= 1
            chosen.append(point)
        self._try([(task, point, space.trace(task, point)) for point in chosen])

    def _try(self, candidates: Sequence[tuple[TuningTask, Decisions, Any]]) -> list[Trial]:
        """Measure decisions; those of which no program can be made are failed trials."""
        costs = self.workers.measure([(task, decisions) for task, decisions, _ in candidates])
        trials = []
        for (task, decisions, trace), cost in zip(candidates, costs, strict=True):
            if isinstance(cost, str):
                LOG.info("%s: %s failed: %s", task.name, decisions, cost)
                trials.append(self._note(Trial(task, decisions, None, cost)))
            else:
                trials.append(self._keep(task, decisions, trace, cost))
        return trials

    def _keep(self, task: TuningTask, decisions: Decisions, trace: Any, cost: Measurement) -> Trial:
        """Write a record of what was measured."""
        value = self.objective.value(cost, self.defaults[task][1])
        workload = self.database.commit_workload(task.workload())
        record = ms.database.TuningRecord(trace, workload, [value], self.target, [])
        self.database.commit_tuning_record(record)
        return self._note(Trial(task, decisions, value))

    def _note(self, trial: Trial) -> Trial:
        self.journal.append(trial)
        if self.on_trial is not None:
            self.on_trial(trial)
        return trial

    def _search(self, tasks: Sequence[TuningTask], trials: int) -> None:
        contexts = [self.context(task, index) for index, task in enumerate(tasks)]
        model = CandidateModel(self._predictor, self.ranking, self.seed)
        self._teach(model, contexts, tasks)
        batch = max(1, min(_BATCH[self.meter.engine], trials // len(tasks)))
        # What there is to gain: the objective of all ops that a task stands for.
        costs = [(task.weight, self.defaults[task][1]) for task in tasks]
        worth = [weight * self.objective.value(cost, cost) for weight, cost in costs]
        Rounds(contexts, self.database, model, self._try).run(worth, trials, batch)

    def context(self, task: TuningTask, index: int = 0) -> Any:
        """MetaSchedule's context of a task (`ms.TuneContext`); `index` tells tasks' seeds apart."""
        seed = 1 + (self.seed * 1009 + index) % (2**31 - 2)
        generator = space_generator(
            self.meter.accelerator, seed=seed, space_of=self._space, refuses=self.meter.refuses
        )
        strategy = evolution(1.0) if self.ranking == "random" else evolution()
        return _tune_context(task, self.target, generator, strategy, seed)

    def _teach(self, model: Any, contexts: Sequence[Any], tasks: Sequence[TuningTask]) -> None:
        """Let the model learn from what earlier runs measured."""
        records: dict[TuningTask, list[Any]] = {}
        for record in self.database.get_all_tuning_records():
            records.setdefault(task_of(record.workload.mod), []).append(record)
        for context, task in zip(contexts, tasks, strict=True):
            mine = records.get(task, [])
            if len(mine) > 1:
                candidates = [record.as_measure_candidate() for record in mine]
                results = [ms.runner.RunnerResult(list(r.run_secs), None) for r in mine]
                model.update(context, candidates, results)

    def _result(self, tasks: Sequence[TuningTask], done: Counter[TuningTask]) -> TuningResult:
        entries = files.TuningDatabase(self.work_dir).entries
        found = []
        for task in tasks:
            default, default_cost = self.defaults[task]
            best, message = self._best(task, entries)
            mine = [trial for trial in self.journal if trial.task == task]
            failures = sum(trial.value is None for trial in mine)
            # The search may propose the default again, which works.
            others = [trial for trial in mine if trial.decisions != default]
            failed = others and all(trial.value is None for trial in others)
            if not message and best == default and failed:
                message = f"no candidate worked, the default stays: {others[-1].error}"
            cost = default_cost if best == default else self.meter.measure(task, best)
            count = done[task] + len(mine)
            found.append(
                TaskResult(task, default, best, default_cost, cost, count, failures, message)
            )
        return TuningResult(tuple(found), tuple(self.journal), self.work_dir, self.settings)

    def _best(self, task: TuningTask, entries: Sequence[files.Entry]) -> tuple[Decisions, str]:
        """The best schedule of an op, given that its group shares the K chunk."""
        mine = [e for e in entries if e.task.group == task.group and e.task.rows == task.rows]
        chosen = files.best_of_group(task.group, mine)
        if chosen is None:
            message = "other ops that read the same encoding were not tuned; the default stays"
            return self.defaults[task][0], message
        return chosen[task.group.index(task.spec)], ""


def _tune_context(task: TuningTask, target: Any, generator: Any, strategy: Any, seed: int) -> Any:
    """A `ms.TuneContext`, made by the constructor below its own.

    That of Python first imports TVM's tensor intrinsics for CUDA, ROCm and others, half a minute
    of parsing that nothing here needs.
    """
    context = ms.TuneContext.__new__(ms.TuneContext)
    logger = logging.getLogger("sparqle_tvm.tuning.metaschedule")
    logger.setLevel(logging.WARNING)  # what goes wrong; the rest is a table after every batch
    context.__init_handle_by_constructor__(
        ms._ffi_api.TuneContext,
        task.workload(),
        target,
        generator,
        strategy,
        task.name,
        1,  # thread: candidates are checked and scored in Python
        seed,
        ms.logging.get_logging_func(logger),
    )
    ms._ffi_api.TuneContextInitialize(context)
    return context


def _require_metaschedule() -> None:
    for name in ("cloudpickle", "psutil", "xgboost"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"tuning needs {name}, which is not installed: pip install 'sparqle-tvm[tune]'"
            )
