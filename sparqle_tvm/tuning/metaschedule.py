"""What MetaSchedule's own calls take: the dense ops of a module as tasks, and our objects.

::

    tasks = tuning.dense_module(mod, "sparqle/edge")
    ms.relax_integration.tune_relax(
        tasks, {}, "sparqle/edge", work_dir, max_trials_global=100,
        builder=tuning.builder(), runner=tuning.runner("latency"),
        cost_model=tuning.cost_model("sparqle/edge"), space=tuning.space_generator("sparqle/edge"),
        strategy=tuning.search_strategy("sparqle/edge"),
    )
    sparqle_tvm.compile(mod, "sparqle/edge", engine="simulator", database=work_dir)

`Tuner` searches with the same space, cost model and database.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, s_tir
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import SparqleError, TuningError
from sparqle_tvm.files import read_json, typed, write_json
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.tir import arrays_of
from sparqle_tvm.target.cost.energy_table import EnergyTable
from sparqle_tvm.target.cost.model import Counting
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import ProgramScheme
from sparqle_tvm.target.program import Program
from sparqle_tvm.tuning.extract import extract_tasks
from sparqle_tvm.tuning.measure import ActivationData, Measurement, Meter, Objective
from sparqle_tvm.tuning.predict import Predictor
from sparqle_tvm.tuning.ranking import CandidateModel, KnobFeatures, Ranking
from sparqle_tvm.tuning.space import (
    MutateKnob,
    RejectMisfits,
    Space,
    decisions_of,
    default_of,
    make_space,
    reason_against,
)
from sparqle_tvm.tuning.task import TuningTask, task_of

_PROGRAM, _CANDIDATE = "program.bin", "candidate.json"


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
    why_not = refuses or (lambda task, decisions: reason_against(task, accelerator, decisions))
    return ms.space_generator.ScheduleFn(
        lambda sch: space(task_of(sch.mod)).schedule(sch),
        sch_rules=[],
        postprocs=[RejectMisfits(why_not)],
        mutator_probs={MutateKnob(seed): 1.0},
    )


def evolution(random_share: float = 0.13) -> Any:
    """MetaSchedule's evolutionary search, sized for spaces of some thousand points."""
    return ms.search_strategy.EvolutionarySearch(
        population_size=64,
        init_measured_ratio=0.25,
        init_min_unmeasured=1,
        max_fail_count=20,
        genetic_num_iters=3,
        genetic_mutate_prob=0.85,
        genetic_max_fail_count=10,
        eps_greedy=random_share,
    )


def search_strategy(target: str | tvm.target.Target | Accelerator) -> Any:
    """`evolution` after a first trial of the default schedule, so that nothing worse is chosen."""
    return DefaultFirst(Accelerator.from_target(target))


@derived_object
class DefaultFirst(ms.search_strategy.PySearchStrategy):
    """See `search_strategy`."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self.accelerator = accelerator
        self.evolution = evolution()
        self.mod: Any = None
        self.measuring_default = self.done = False

    def _initialize_with_tune_context(self, context: Any) -> None:
        self.mod = context.mod
        self.evolution._initialize_with_tune_context(context)

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Any,
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        """Begin."""
        self.done = database is not None and database.has_workload(self.mod)
        self.evolution.pre_tuning(
            max_trials, num_trials_per_iter, design_spaces, database, cost_model
        )

    def post_tuning(self) -> None:
        """End."""
        self.evolution.post_tuning()

    def generate_measure_candidates(self) -> Any:
        """The default, then what evolution finds."""
        if self.done:
            self.measuring_default = False
            return self.evolution.generate_measure_candidates()
        self.done = self.measuring_default = True
        task, sch = task_of(self.mod), s_tir.Schedule(self.mod)
        make_space(task, self.accelerator).schedule(sch, default_of(task, self.accelerator))
        arguments = ms.arg_info.ArgInfo.from_entry_func(self.mod, remove_preproc=True)
        return [ms.search_strategy.MeasureCandidate(sch, arguments)]

    def notify_runner_results(self, candidates: Any, results: Any) -> None:
        """Tell evolution what its candidates cost."""
        if not self.measuring_default:
            self.evolution.notify_runner_results(candidates, results)

    def clone(self) -> Any:
        """Another one of the same."""
        return DefaultFirst(self.accelerator)


def builder() -> Any:
    """Makes verified programs of candidates, for the accelerator of the target (`ms.builder`)."""
    return ProgramBuilder()


@derived_object
class ProgramBuilder(ms.builder.PyBuilder):
    """See `builder`. The artifact is a folder with the program, the task and the decisions."""

    def build(self, build_inputs: Any) -> list[Any]:
        """A result for each input: the path of the program, or why there is none."""
        return [self._built(each.mod, each.target) for each in build_inputs]

    def _built(self, mod: tvm.IRModule, target: Any) -> Any:
        try:
            task, decisions = task_of(mod), decisions_of(mod)
            program = Meter(Accelerator.from_target(target)).build(task, decisions)
        except SparqleError as error:
            return ms.builder.BuilderResult(None, str(error))
        folder = Path(tempfile.mkdtemp(prefix="sparqle-candidate-"))
        (folder / _PROGRAM).write_bytes(program.to_bytes())
        write_json(folder / _CANDIDATE, {"task": task.to_json(), "decisions": asdict(decisions)})
        return ms.builder.BuilderResult(str(folder / _PROGRAM), None)


def runner(
    objective: Objective | str = "latency",
    *,
    data: ActivationData | None = None,
    engine: Counting = "simulator",
    table: EnergyTable | None = None,
) -> Any:
    """Measures programs on the simulator (`ms.runner`); where TVM has seconds, is the objective.

    Parameters
    ----------
    objective : Objective or str
        As for `sparqle_tvm.tune`.
    data : ActivationData, optional
        What runs through the ops.
    engine : {"simulator", "analytical"}
        What measures.
    table : EnergyTable, optional
        What events cost, by default the accelerator's.
    """
    return ProgramRunner(Objective.parse(objective), data or ActivationData(), engine, table)


@derived_object
class ProgramRunner(ms.runner.PyRunner):
    """See `runner`."""

    def __init__(
        self,
        objective: Objective,
        data: ActivationData,
        engine: Counting,
        table: EnergyTable | None,
    ) -> None:
        super().__init__()
        self.objective = objective
        self._meter = cache(lambda accelerator: Meter(accelerator, data, engine, table))
        self._defaults: dict[tuple[Accelerator, TuningTask], Measurement] = {}

    def run(self, runner_inputs: Any) -> list[Any]:
        """A future for each input; all are done."""
        return [_Done(self._measured(Path(str(each.artifact_path)))) for each in runner_inputs]

    def _measured(self, path: Path) -> Any:
        try:
            program = Program.from_bytes(path.read_bytes())
            given = read_json(path.with_name(_CANDIDATE), TuningError, "a candidate")
            task = TuningTask.from_json(given["task"])
            decisions = typed(given["decisions"], Decisions, "its decisions", TuningError)
            accelerator = program.header.accelerator
            meter = self._meter(accelerator)
            if meter.engine == "analytical":
                cost = meter.count(task, decisions)
            else:
                cost = meter.run(task, program)
            return ms.runner.RunnerResult([self._value(meter, task, cost)], None)
        except SparqleError as error:
            return ms.runner.RunnerResult(None, str(error))

    def _value(self, meter: Meter, task: TuningTask, cost: Measurement) -> float:
        key = meter.accelerator, task
        if self.objective.kind == "weighted" and key not in self._defaults:
            self._defaults[key] = meter.measure(task, default_of(task, meter.accelerator))
        return self.objective.value(cost, self._defaults.get(key, cost))


@derived_object
class _Done(ms.runner.PyRunnerFuture):
    """A result that is there."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def done(self) -> bool:
        """It is."""
        return True

    def result(self) -> Any:
        """The result."""
        return self.found


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


def _predictors(
    target: str | tvm.target.Target | Accelerator, data: ActivationData | None
) -> Callable[[TuningTask], Predictor]:
    accelerator, drawn = Accelerator.from_target(target), data or ActivationData()
    return cache(lambda task: Predictor(task, accelerator, drawn.draw(task)[0]))
