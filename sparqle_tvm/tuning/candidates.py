"""What was tried, and the rounds of the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.tuning.space import decisions_of
from sparqle_tvm.tuning.task import TuningTask, task_of


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


Try = Callable[[Sequence[tuple[TuningTask, Decisions, Any]]], Sequence[Trial]]
"""Measures decisions of tasks, with the traces that make them, and keeps the results."""


class Rounds:
    """Rounds of the search: a task's next candidates are measured, learned from and kept.

    MetaSchedule's task schedulers do the same, but print a table after every round, which in a
    notebook needs pandas and clears the output of the cell.

    Parameters
    ----------
    contexts : sequence of ms.TuneContext
        The tasks.
    database : ms.database.Database
        Has the records.
    model : CandidateModel
        Learns from the results.
    measure : Try
        Where MetaSchedule has seconds stands its objective.
    """

    def __init__(self, contexts: Sequence[Any], database: Any, model: Any, measure: Try) -> None:
        self.contexts, self.database = contexts, database
        self.model, self.measure = model, measure

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
        schedules = [candidate.sch for candidate in candidates]
        found = self.measure([(task_of(s.mod), decisions_of(s.mod), s.trace) for s in schedules])
        results = [
            ms.runner.RunnerResult(None, trial.error)
            if trial.value is None
            else ms.runner.RunnerResult([trial.value], None)
            for trial in found
        ]
        context.notify_runner_results(candidates, results)
        self.model.update(context, candidates, results)
        return [math.inf if trial.value is None else trial.value for trial in found]
