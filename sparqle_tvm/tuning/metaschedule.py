"""What MetaSchedule's own calls take: the dense ops of a module as tasks, and our objects.

::

    tasks = tuning.dense_module(mod, "sparqle/edge")
    ms.relax_integration.tune_relax(
        tasks, {}, "sparqle/edge", work_dir, max_trials_global=100,
        **tuning.objects("sparqle/edge", "latency"),
    )
    sparqle_tvm.compile(mod, "sparqle/edge", engine="simulator", database=work_dir)

`Tuner`, and with it `sparqle_tvm.tune`, hands the same objects to ``ms.tune_tasks``.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import InvalidArgumentError, SparqleError, TuningError
from sparqle_tvm.files import plain, typed
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.tir import arrays_of
from sparqle_tvm.target.cost.energy_table import EnergyTable
from sparqle_tvm.target.cost.model import Counting
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import ProgramScheme
from sparqle_tvm.tuning.extract import extract_tasks
from sparqle_tvm.tuning.measure import ActivationData, Measurement, Meter, Objective
from sparqle_tvm.tuning.predict import Predictor
from sparqle_tvm.tuning.ranking import CandidateModel, KnobFeatures, Ranking
from sparqle_tvm.tuning.search import Plan, Rules, Scheduler, Strategy
from sparqle_tvm.tuning.space import (
    MutateKnob,
    RejectMisfits,
    Space,
    decisions_of,
    default_of,
    make_space,
    reason_against,
)
from sparqle_tvm.tuning.task import TuningTask, read_task, task_of, task_text
from sparqle_tvm.tuning.workers import Candidate, Workers


def dense_module(
    mod: tvm.IRModule,
    target: str | tvm.target.Target | Accelerator,
    *,
    rows: Sequence[int] = (512, 1),
    data: ActivationData | None = None,
    schemes: Sequence[ProgramScheme] = ("sparqle",),
    single: Collection[str] = (),
) -> tvm.IRModule:
    """The dense ops of a module, each as calls of its canonical PrimFunc.

    ``ms.relax_integration`` and ``tune_tir`` find them as tasks, weighted by how often they occur,
    and ``relax.transform.MetaScheduleApplyDatabase`` replaces the functions by scheduled ones. The
    functions work on digits; how these lie in memory is a matter of programs. So the module is for
    tuning; a model is built from `mod` with the database.

    Parameters
    ----------
    mod, target, rows, data, single
        As for `extract_tasks`.
    schemes : sequence of {"sparqle", "dense"}
        ``dense`` adds the baseline of the same ops.

    Raises
    ------
    CalibrationError, TuningError, InvalidArgumentError, TargetError
        As `extract_tasks`.
    """
    builder = relax.BlockBuilder()
    for scheme in schemes:
        found = extract_tasks(mod, target, rows=rows, data=data, scheme=scheme, single=single)
        for task in found:
            _add_calls(builder, task)
    return builder.finalize()


def _add_calls(builder: relax.BlockBuilder, task: TuningTask) -> None:
    spec = task.spec
    name = f"dense_{task.rows}x{spec.n}x{spec.k}"
    function = builder.add_func(task.workload()["main"].without_attr("global_symbol"), name)
    groups = math.ceil(spec.k / max(spec.group_size, 1))
    extents = {"m": spec.m, "n": spec.n, "k": spec.k, "g": groups, "1": 1}
    operands = [
        relax.Var(array, relax.TensorType([extents[axis] for axis in axes], dtype))
        for array, (axes, dtype) in arrays_of(spec).items()
    ]
    dtype = spec.out_dtype if spec.output == "encoded" else spec.output
    out = relax.TensorType((spec.m, spec.n), dtype)
    with builder.function(f"{name}_calls", operands):
        with builder.dataflow():
            calls = [
                builder.emit(relax.call_tir(function, operands, out_ty=out))
                for _ in range(task.weight)
            ]
            result = builder.emit_output(calls[-1])
        builder.emit_func_output(result)


def space_generator(
    target: str | tvm.target.Target | Accelerator,
    *,
    seed: int = 0,
    space_of: Callable[[TuningTask], Space] | None = None,
    refuses: Callable[[TuningTask, Decisions], str | None] | None = None,
) -> Any:
    """The space of schedules (`ms.space_generator.ScheduleFn`) with its postprocessor and mutator.

    Parameters
    ----------
    target : str, tvm.target.Target or Accelerator
        The accelerator.
    seed : int
        Of the mutations.
    space_of, refuses : callable, optional
        Instead of `make_space`, and of a look at what fits the buffers.
    """
    accelerator = Accelerator.from_target(target)
    space = space_of or cache(lambda task: make_space(task, accelerator))
    # A population has most of its candidates again and again.
    why_not = cache(refuses or (lambda task, chosen: reason_against(task, accelerator, chosen)))
    return ms.space_generator.ScheduleFn(
        lambda sch: space(task_of(sch.mod)).schedule(sch),
        sch_rules=[],
        postprocs=[RejectMisfits(why_not)],
        mutator_probs={MutateKnob(seed): 1.0},
    )


def search_strategy(
    target: str | tvm.target.Target | Accelerator,
    *,
    data: ActivationData | None = None,
    seed: int = 0,
) -> Any:
    """What is tried first, and evolution after it (`ms.search_strategy`), see `search.Strategy`.

    Parameters
    ----------
    target : str, tvm.target.Target or Accelerator
        The accelerator.
    data : ActivationData, optional
        That of the runner.
    seed : int
        Of all random numbers.
    """
    meter = Meter(Accelerator.from_target(target), _require_no_labels(data))
    return Strategy(_rules(meter, seed=seed), Plan())


def builder() -> Any:
    """Hands candidates on (`ms.builder`): the runner makes their programs where it measures."""
    return CandidateBuilder()


@derived_object
class CandidateBuilder(ms.builder.PyBuilder):
    """See `builder`. The artifact is a file with accelerator, task and decisions."""

    def build(self, build_inputs: Any) -> list[Any]:
        """A result for each input: the path of the candidate, or why there is none."""
        return [self._built(each.mod, each.target) for each in build_inputs]

    def _built(self, mod: tvm.IRModule, target: Any) -> Any:
        try:
            lines = json.dumps(plain(Accelerator.from_target(target))), task_text(mod)
            decided = json.dumps(asdict(decisions_of(mod)))
        except SparqleError as error:
            return ms.builder.BuilderResult(None, str(error))
        # MetaSchedule removes the whole folder of an artifact.
        path = Path(tempfile.mkdtemp(prefix="sparqle-candidate-")) / "candidate.jsonl"
        path.write_text("\n".join((*lines, decided)), encoding="utf-8")
        return ms.builder.BuilderResult(str(path), None)


def runner(
    objective: Objective | str = "latency",
    *,
    data: ActivationData | None = None,
    engine: Counting = "simulator",
    table: EnergyTable | None = None,
) -> Any:
    """Makes verified programs and simulates them (`ms.runner`).

    Where TVM has seconds, stands the objective.

    Parameters
    ----------
    objective : Objective or str
        As for `sparqle_tvm.tune`.
    data : ActivationData, optional
        What runs through the ops.
    engine : {"simulator", "analytical"}
        What measures: the simulator, or formulas.
    table : EnergyTable, optional
        What events cost, by default the accelerator's.
    """
    drawn = _require_no_labels(data)
    here = cache(lambda accelerator: Workers(Meter(accelerator, drawn, engine, table)))
    return CandidateRunner(Objective.parse(objective), here, {})


@derived_object
class CandidateRunner(ms.runner.PyRunner):
    """See `runner`.

    Parameters
    ----------
    objective : Objective
        What stands where TVM has seconds.
    workers_of : callable
        What measures for an accelerator.
    costs : dict of (TuningTask, Decisions) to Measurement
        What was measured; nothing is measured twice.
    """

    def __init__(
        self,
        objective: Objective,
        workers_of: Callable[[Accelerator], Workers],
        costs: dict[Candidate, Measurement],
    ) -> None:
        super().__init__()
        self.objective, self.workers_of, self.costs = objective, workers_of, costs

    def run(self, runner_inputs: Any) -> list[Any]:
        """A future for each input, all of one accelerator; the workers begin at once."""
        found = [_candidate_in(Path(str(each.artifact_path))) for each in runner_inputs]
        if not found:
            return []
        workers, candidates = self.workers_of(found[0][0]), [candidate for _, candidate in found]
        new = [candidate for candidate in candidates if candidate not in self.costs]
        measured = workers.start(new)

        @cache
        def collect() -> dict[Candidate, Measurement | str]:
            costs = dict(zip(new, measured(), strict=True))
            self.costs.update((each, c) for each, c in costs.items() if not isinstance(c, str))
            return costs

        return [_Figure(workers.meter, each, collect, self._value) for each in candidates]

    def _value(self, meter: Meter, candidate: Candidate) -> float:
        cost = self.costs[candidate]
        if self.objective.kind != "weighted":
            return self.objective.value(cost, cost)
        task, _ = candidate
        default = task, default_of(task, meter.accelerator)
        if default not in self.costs:
            self.costs[default] = meter.measure(*default)
        return self.objective.value(cost, self.costs[default])


@derived_object
class _Figure(ms.runner.PyRunnerFuture):
    """The figure of a candidate, when its batch is measured."""

    def __init__(
        self,
        meter: Meter,
        candidate: Candidate,
        collect: Callable[[], Mapping[Candidate, Measurement | str]],
        value: Callable[[Meter, Candidate], float],
    ) -> None:
        super().__init__()
        self.meter, self.candidate, self.collect, self.value = meter, candidate, collect, value

    def done(self) -> bool:
        """As far as TVM has to know: `result` waits."""
        return True

    def result(self) -> Any:
        """The result."""
        cost = self.collect().get(self.candidate)
        if isinstance(cost, str):
            return ms.runner.RunnerResult(None, cost)
        return ms.runner.RunnerResult([self.value(self.meter, self.candidate)], None)


def _candidate_in(path: Path) -> tuple[Accelerator, Candidate]:
    """What `CandidateBuilder` wrote."""
    machine, task, decided = path.read_text(encoding="utf-8").split("\n")
    return _accelerator(machine), (read_task(task), Decisions(**json.loads(decided)))


@lru_cache(maxsize=16)
def _accelerator(text: str) -> Accelerator:
    return typed(json.loads(text), Accelerator, "no accelerator", TuningError)


def cost_model(
    target: str | tvm.target.Target | Accelerator,
    *,
    data: ActivationData | None = None,
    ranking: Ranking = "learned",
    seed: int = 0,
) -> Any:
    """Scores candidates (`ms.cost_model`), see `CandidateModel`.

    Parameters
    ----------
    target : str, tvm.target.Target or Accelerator
        The accelerator.
    data : ActivationData, optional
        That of the runner.
    ranking, seed
        As for `CandidateModel`.
    """
    return CandidateModel(_predictors(target, data), ranking, seed)


def feature_extractor(
    target: str | tvm.target.Target | Accelerator, *, data: ActivationData | None = None
) -> Any:
    """Numbers of candidates for MetaSchedule's own models, as ``ms.cost_model.XGBModel``."""
    return KnobFeatures(_predictors(target, data))


def objects(
    target: str | tvm.target.Target | Accelerator,
    objective: Objective | str = "latency",
    *,
    data: ActivationData | None = None,
    engine: Counting = "simulator",
    table: EnergyTable | None = None,
    seed: int = 0,
    tasks: Sequence[TuningTask] = (),
    workers: int | None = 1,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """All objects for ``tune_relax(tuning.dense_module(mod, target), {}, target, .., **objects)``.

    With them, `sparqle_tvm.tune` and ``tune_relax`` try the same schedules.

    Parameters
    ----------
    target : str, tvm.target.Target or Accelerator
        The accelerator.
    objective, data, engine, table
        As for `runner`.
    seed : int
        Of all random numbers, those of the data too where it is not given.
    tasks : sequence of TuningTask
        Of `extract_tasks`, if the data has a calibration: it goes by the labels of ops, which
        PrimFuncs have not.
    workers, scheduler
        Where candidates are measured, see `Workers`.

    Raises
    ------
    InvalidArgumentError
        If there is a calibration, and no tasks.
    """
    drawn = data or ActivationData(seed=seed)
    if not tasks:
        _require_no_labels(drawn)
    meter = Meter(Accelerator.from_target(target), drawn, engine, table)
    there = Workers(meter, workers, scheduler)
    there.know(tasks)
    return {**search_objects(there, Objective.parse(objective), seed=seed), "seed": seed}


def _require_no_labels(data: ActivationData | None) -> ActivationData:
    """What draws without labels; InvalidArgumentError if that would not be what was calibrated."""
    if data is not None and data.calibration is not None:
        raise InvalidArgumentError(
            "a calibration goes by the labels of ops, which PrimFuncs have not: take "
            "tuning.objects(target, data=data, tasks=tuning.extract_tasks(mod, target, data=data))"
        )
    return data or ActivationData()


BATCH: Mapping[Counting, int] = {"simulator": 8, "analytical": 32}
"""Candidates of a task that are measured together."""


def search_objects(
    workers: Workers,
    objective: Objective,
    *,
    seed: int = 0,
    ranking: Ranking = "learned",
    spaces: Mapping[TuningTask, Space] | None = None,
    costs: dict[Candidate, Measurement] | None = None,
) -> dict[str, Any]:
    """What `objects` gives, for what measures.

    Parameters
    ----------
    workers : Workers
        Started when a search begins, ended after it.
    objective, seed
        As for `objects`.
    ranking : {"learned", "predicted", "random"}
        See `CandidateModel`.
    spaces : mapping of TuningTask to Space, optional
        Other spaces than `make_space`.
    costs : dict, optional
        See `CandidateRunner`.
    """
    meter, plan = workers.meter, Plan()
    rules = _rules(meter, seed=seed, ranking=ranking, spaces=spaces)
    return {
        "builder": builder(),
        "runner": CandidateRunner(objective, lambda _: workers, {} if costs is None else costs),
        "cost_model": CandidateModel(rules.predictor_of, ranking, seed),
        "space": space_generator(
            meter.accelerator, seed=1 + seed, space_of=rules.space_of, refuses=meter.refuses
        ),
        "strategy": Strategy(rules, plan),
        "task_scheduler": Scheduler(plan, workers),
        "num_trials_per_iter": BATCH[meter.engine],
    }


def _rules(
    meter: Meter,
    *,
    seed: int,
    ranking: Ranking = "learned",
    spaces: Mapping[TuningTask, Space] | None = None,
) -> Rules:
    given = dict(spaces or {})
    made = cache(lambda task: make_space(task, meter.accelerator))
    predictor_of = cache(
        lambda task: Predictor(task, meter.accelerator, meter.activations(task)[0])
    )
    return Rules(meter, lambda task: given.get(task) or made(task), predictor_of, ranking, seed)


def _predictors(
    target: str | tvm.target.Target | Accelerator, data: ActivationData | None
) -> Callable[[TuningTask], Predictor]:
    accelerator, drawn = Accelerator.from_target(target), _require_no_labels(data)
    return cache(lambda task: Predictor(task, accelerator, drawn.draw(task)[0]))
