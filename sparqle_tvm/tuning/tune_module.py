"""``sparqle_tvm.tune``: from a module to a database of schedules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import tvm

from sparqle_tvm.calibration.apply import as_calibration
from sparqle_tvm.models.shapes import ModelShape
from sparqle_tvm.progress import progress_bar
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.energy_table import EnergyTable
from sparqle_tvm.target.cost.model import Counting
from sparqle_tvm.target.op import ProgramScheme
from sparqle_tvm.tuning.extract import extract_tasks, tasks_of_shape
from sparqle_tvm.tuning.measure import DEFAULT_DENSITY, ActivationData, Meter, Objective
from sparqle_tvm.tuning.result import Trial, TuningResult
from sparqle_tvm.tuning.task import TuningTask
from sparqle_tvm.tuning.tuner import Tuner

if TYPE_CHECKING:
    from sparqle_tvm.calibration import Calibration


def tune(
    mod: tvm.IRModule | ModelShape,
    target: str | tvm.target.Target | Accelerator = "sparqle/edge",
    *,
    trials: int,
    objective: Objective | str = "latency",
    work_dir: str | PathLike[str],
    calibration: Calibration | str | PathLike[str] | None = None,
    seed: int = 0,
    rows: Sequence[int] = (512, 1),
    density: float = DEFAULT_DENSITY,
    draws: int = 1,
    percentile: float | None = None,
    engine: Counting = "simulator",
    table: EnergyTable | None = None,
    schemes: Sequence[ProgramScheme] = ("sparqle",),
    single: Collection[str] = (),
    progress: bool = True,
    workers: int | None = 1,
    scheduler: str | None = None,
) -> TuningResult:
    """Search better schedules for the dense ops of a module, with TVM's MetaSchedule.

    The default schedule of every op is the first trial, and what is found is used only if it is
    better. Killed and started again with the same arguments, the search goes on from `work_dir`.

    Parameters
    ----------
    mod : tvm.IRModule or ModelShape
        Relax functions with quantized dense ops; it is not changed. Or the sizes of a model, whose
        dense layers are tuned as those of its module are; calibrations have no layers of it.
    target : str, tvm.target.Target or Accelerator
        The accelerator.
    trials : int
        Schedules to measure in all, those in `work_dir` included; at least one for each op.
    objective : Objective or str
        ``latency``, ``energy``, ``edp``, or ``weighted:W`` with a share W of latency.
    work_dir : path
        Folder of the database, for ``pipeline(target, database=work_dir)``.
    calibration : Calibration or path, optional
        What `sparqle_tvm.calibrate` gave for this model: whole rows of measured activations are
        drawn. Ops that it does not know, as the output layer's, are measured with `density`.
    seed : int
        The same seed finds the same schedules.
    rows : sequence of int
        Tokens to tune for where the module leaves them open: prefill and decode.
    density : float
        Share of MSB digits that are not zero, where there is no calibration.
    draws, percentile
        See `ActivationData`.
    engine : {"simulator", "analytical"}
        What measures: programs on the simulator, or formulas (faster, a smaller space).
    table : EnergyTable, optional
        What events cost, by default the accelerator's.
    schemes : sequence of {"sparqle", "dense"}
        ``dense`` tunes the baseline as well.
    single : collection of str
        Labels of ops that work on one token only, as the output layer's.
    progress : bool
        Show a bar with the best figure so far.
    workers : int, optional
        Processes that measure; 1, the default, is this one, None one for each core. The same is
        found with any number.
    scheduler : str, optional
        Address of a Dask scheduler (``tcp://host:8786``) whose workers measure instead.

    Returns
    -------
    TuningResult
        Every op before and after.

    Raises
    ------
    CalibrationError
        If the file is no calibration, or one of another model.
    TuningError
        If there is nothing to tune, or `work_dir` is damaged or of another purpose.
    InvalidArgumentError
        If an argument is out of its range, or there are fewer trials than ops.
    TargetError
        If the target is not a sparqle accelerator.
    """
    accelerator = Accelerator.from_target(target)
    known = None if calibration is None else as_calibration(calibration)
    data = ActivationData(density, known, draws, percentile, seed)
    meter = Meter(accelerator, data, engine, table)
    objective = Objective.parse(objective)
    tasks: list[TuningTask] = []
    for scheme in schemes:
        if isinstance(mod, ModelShape):
            tasks += tasks_of_shape(mod, accelerator, rows=rows, data=data, scheme=scheme)
        else:
            tasks += extract_tasks(
                mod, accelerator, rows=rows, data=data, scheme=scheme, single=single
            )
    with progress_bar(progress=progress, total=trials, unit="trial", desc="tune") as bar:
        tuner = Tuner(
            meter,
            objective,
            work_dir,
            seed=seed,
            on_trial=_Gain(bar).note,
            workers=workers,
            scheduler=scheduler,
        )
        bar.update(sum(entry.task in tasks for entry in tuner.known.entries))
        return tuner.run(tasks, trials)


class _Gain:
    """Shows on a bar trials done, and what the best schedules so far gained over the default."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.best: dict[TuningTask, float] = {}
        self.first: dict[TuningTask, float] = {}

    def note(self, trial: Trial) -> None:
        """Count a trial."""
        task = trial.task
        if trial.value is not None:
            self.first.setdefault(task, trial.value)
            self.best[task] = min(trial.value, self.best.get(task, trial.value))
            before = sum(t.weight * value for t, value in self.first.items())
            after = sum(t.weight * value for t, value in self.best.items())
            self.bar.set_postfix_str(f"best so far {after / before - 1:+.1%}")
        self.bar.update()
