"""What a tuning run brought, op by op and in all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparqle_tvm.showing import html_table
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.tuning.database import Settings
from sparqle_tvm.tuning.measure import Measurement
from sparqle_tvm.tuning.task import TuningTask


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


@dataclass(frozen=True)
class TaskResult:
    """What tuning brought to one op.

    Attributes
    ----------
    task : TuningTask
        The op.
    default, best : Decisions
        How it is scheduled without and with the database.
    default_cost, best_cost : Measurement
        Cycles and energy of both, from the same data.
    trials : int
        Candidates measured, with those of earlier runs.
    failures : int
        Of them without a result, in this run.
    message : str
        Why the default stays although there were trials; empty if nothing is to be said.
    """

    task: TuningTask
    default: Decisions
    best: Decisions
    default_cost: Measurement
    best_cost: Measurement
    trials: int
    failures: int
    message: str = ""


@dataclass(frozen=True)
class TuningResult:
    """What a tuning run brought.

    Attributes
    ----------
    tasks : tuple of TaskResult
        Every op.
    journal : tuple of Trial
        Every trial of this run, in order; the first of each task is the default schedule.
    work_dir : Path
        The database's folder, for `pipeline(database=...)`.
    settings : Settings
        What was tuned for.
    """

    tasks: tuple[TaskResult, ...]
    journal: tuple[Trial, ...]
    work_dir: Path
    settings: Settings

    def __repr__(self) -> str:
        """What all ops gained."""
        before, after = self.total("default").cycles, self.total("best").cycles
        trials = sum(found.trials for found in self.tasks)
        return (
            f"<TuningResult: {len(self.tasks)} ops, {trials} trials for {self.settings.objective}, "
            f"{before:,.0f} -> {after:,.0f} cycles>"
        )

    def _repr_html_(self) -> str:
        head = ("M x N x K", "times", "cycles before", "after", "pJ before", "after", "tile")
        rows = [
            (
                found.task.name,
                found.task.weight,
                *(round(cost.cycles) for cost in (found.default_cost, found.best_cost)),
                *(round(cost.energy_pj) for cost in (found.default_cost, found.best_cost)),
                " x ".join(map(str, found.best.tile)),
            )
            for found in self.tasks
        ]
        return html_table(repr(self)[1:-1], head, rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: settings, every op before and after, and the totals."""
        return {
            "kind": "tuning",
            "settings": self.settings.to_json(),
            "work_dir": str(self.work_dir),
            "tasks": [
                {
                    "name": found.task.name,
                    "labels": list(found.task.labels),
                    "weight": found.task.weight,
                    "trials": found.trials,
                    "failures": found.failures,
                    "message": found.message,
                    "default": {**asdict(found.default), **asdict(found.default_cost)},
                    "best": {**asdict(found.best), **asdict(found.best_cost)},
                }
                for found in self.tasks
            ],
            "total": {which: asdict(self.total(which)) for which in ("default", "best")},
        }

    def total(self, which: str = "best") -> Measurement:
        """Cycles and energy of all ops as often as they occur, of ``best`` or ``default``."""
        costs = [(t.task.weight, getattr(t, f"{which}_cost")) for t in self.tasks]
        return Measurement(
            sum(weight * cost.cycles for weight, cost in costs),
            sum(weight * cost.energy_pj for weight, cost in costs),
        )
