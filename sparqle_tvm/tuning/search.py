"""The rules of the search as MetaSchedule's objects: what a task tries first, and whose turn it is.

MetaSchedule's loop asks a task scheduler for a task, and that task's search strategy for
candidates. Ours share a `Plan`, so that all trials together are as many as were asked for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import s_tir
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.tuning.measure import Meter
from sparqle_tvm.tuning.predict import Predictor
from sparqle_tvm.tuning.ranking import Ranking
from sparqle_tvm.tuning.space import Space, decisions_of, decisions_of_trace, default_of
from sparqle_tvm.tuning.task import TuningTask, outline, task_of

# Points of which the prediction chooses what is measured first.
_DRAWN = 3000

# Batches that are measured while the next one is searched for, each of another task.
_AHEAD = 2

# Batches of evolution with nothing new before a space counts as exhausted.
_EMPTY_BATCHES = 5


@dataclass
class Turns:
    """What was found of a task so far.

    Attributes
    ----------
    weight : float
        How often the op occurs.
    seen : set of Decisions
        What was measured, or is being measured.
    default_value : float
        The objective of the default schedule; infinite before it is known.
    guessed : bool
        Whether it had its first guesses.
    best : float
        Of what evolution found.
    rounds, stale : int
        Batches of evolution, and those that brought nothing.
    """

    weight: float = 1.0
    seen: set[Decisions] = field(default_factory=set)
    default_value: float = math.inf
    guessed: bool = False
    best: float = math.inf
    rounds: int = 0
    stale: int = 0

    @property
    def urgency(self) -> tuple[float, ...]:
        """Defaults first, then first guesses; then what is worth most.

        Worth is the objective of all ops that the task stands for, divided by the rounds it had
        and halved for each that brought nothing.
        """
        if math.isinf(self.default_value) or not self.guessed:
            return 1.0, float(math.isinf(self.default_value)), 0.0
        return 0.0, 0.0, self.weight * self.default_value / (1 + self.rounds) / 2**self.stale


@dataclass
class Plan:
    """What the strategies of all tasks and the scheduler know of each other.

    Attributes
    ----------
    left : float
        Trials that nobody has taken yet; without our scheduler nobody counts them.
    first_guesses : float
        How many good guesses each task begins with, at most.
    turns : dict of TuningTask to Turns
        The tasks.
    """

    left: float = math.inf
    first_guesses: float = math.inf
    turns: dict[TuningTask, Turns] = field(default_factory=dict)

    def of(self, task: TuningTask) -> Turns:
        """Of a task, made when it is first asked for."""
        return self.turns.setdefault(task, Turns())


@dataclass(frozen=True)
class Rules:
    """What the strategy of every task knows.

    Attributes
    ----------
    meter : Meter
        Measures; what it refuses is no candidate.
    space_of, predictor_of : callable
        Space and predictor of a task.
    ranking : {"learned", "predicted", "random"}
        As for `CandidateModel`; ``random`` draws points without evolution.
    seed : int
        Of all random numbers, with what the task is.
    """

    meter: Meter
    space_of: Callable[[TuningTask], Space]
    predictor_of: Callable[[TuningTask], Predictor]
    ranking: Ranking = "learned"
    seed: int = 0


@derived_object
class Strategy(ms.search_strategy.PySearchStrategy):
    """The default schedule, then what the prediction likes best, then evolution.

    So nothing worse than the default is ever chosen, and evolution begins well. What an earlier
    run put into the database is not measured again, and the cost model learns from it.
    """

    def __init__(self, rules: Rules, plan: Plan) -> None:
        super().__init__()
        self.rules, self.plan = rules, plan
        self.evolution = _evolution(1.0 if rules.ranking == "random" else 0.13)
        self.context: Any = None
        self.alone: Any = None
        self.evolving, self.foreign = False, 1

    def _initialize_with_tune_context(self, context: Any) -> None:
        self.context, self.mod = context, context.mod
        self.task = task_of(self.mod)
        self.arguments = ms.arg_info.ArgInfo.from_entry_func(self.mod, remove_preproc=True)
        # Evolution on several threads finds something else every time. It replays hundreds of
        # traces for a batch: on outlines, in a database of its own.
        seed = _seed(self.rules.seed, self.task)
        bare, generator = outline(self.mod), context.space_generator
        self.alone = tune_context(self.task, context.target, generator, None, seed, mod=bare)
        self.evolution._initialize_with_tune_context(self.alone)
        self.measured = ms.database.MemoryDatabase()
        self.workload = self.measured.commit_workload(bare)

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Any,
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        """Begin, with what is known."""
        self.turns, self.batch = self.plan.of(self.task), num_trials_per_iter
        self._recall(database, cost_model)
        self.most = min(self.plan.first_guesses, num_trials_per_iter, max_trials // 2)
        self.evolution.pre_tuning(
            max_trials, num_trials_per_iter, design_spaces, self.measured, cost_model
        )

    def _recall(self, database: Any, cost_model: Any) -> None:
        """Take what earlier runs measured."""
        workload = database.commit_workload(self.mod)
        records = database.get_all_tuning_records()
        mine = [record for record in records if record.workload.same_as(workload)]
        if not mine:
            return
        values = {decisions_of_trace(each.trace): float(each.run_secs[0]) for each in mine}
        default = default_of(self.task, self.rules.meter.accelerator)
        self.turns.seen |= set(values)
        self.foreign = len(values)
        self.turns.default_value = values.get(default, max(values.values()))
        self.turns.guessed = True
        for each in mine:
            self._keep(each.trace, float(each.run_secs[0]))
        if len(mine) > 1:
            results = [ms.runner.RunnerResult(list(each.run_secs), None) for each in mine]
            known = [each.as_measure_candidate() for each in mine]
            cost_model.update(self.context, known, results)

    def _keep(self, trace: Any, figure: float) -> None:
        """Let evolution begin with what was measured."""
        self.measured.commit_tuning_record(
            ms.database.TuningRecord(
                trace, self.workload, [figure], self.context.target, self.arguments
            )
        )

    def post_tuning(self) -> None:
        """End."""
        self.evolution.post_tuning()
        self.context = self.alone = None  # they hold this

    def generate_measure_candidates(self) -> Any:
        """The next batch, None if there is no trial left or nothing new to try."""
        candidates = self._generate() if self.plan.left > 0 else []
        candidates = candidates[: int(min(self.plan.left, len(candidates)))]
        if not candidates:
            return None
        self.plan.left -= len(candidates)
        self.turns.seen |= {decisions_of(candidate.sch.mod) for candidate in candidates}
        return candidates

    def _generate(self) -> list[Any]:
        if math.isinf(self.turns.default_value):
            return [self._candidate(default_of(self.task, self.rules.meter.accelerator))]
        if not self.turns.guessed:
            self.turns.guessed = True
            self.foreign += int(self.most)
            if guesses := self._guesses(int(self.most)):
                return [self._candidate(decisions) for decisions in guesses]
        self.evolving = True
        if self.rules.space_of(self.task).size == 1:
            return []
        # Evolution may come back to everything that it did not propose itself.
        for _ in range(_EMPTY_BATCHES + self.foreign // self.batch):
            found = self.evolution.generate_measure_candidates()
            if found is None:
                break
            if new := [c.sch for c in found if decisions_of(c.sch.mod) not in self.turns.seen]:
                return [self._candidate(sch.trace) for sch in new]
        return []

    def _candidate(self, chosen: Decisions | s_tir.schedule.Trace) -> Any:
        sch = s_tir.Schedule(self.mod, seed=1, debug_mask="none")
        if isinstance(chosen, Decisions):
            self.rules.space_of(self.task).schedule(sch, chosen)
        else:
            chosen.apply_to_schedule(sch, remove_postproc=True)
        return ms.search_strategy.MeasureCandidate(sch, self.arguments)

    def _guesses(self, count: int) -> list[Decisions]:
        """What the prediction likes best of many points.

        Ops that share their K chunk with others try some of every chunk.
        """
        task, space = self.task, self.rules.space_of(self.task)
        if self.rules.ranking == "random" or space.size == 1:
            return []
        predictor = self.rules.predictor_of(task)
        points = space.draw(np.random.default_rng((self.rules.seed, 1)), _DRAWN)
        shared = len(set(task.group)) > 1
        per_chunk = -(-count // len(space.knobs["k"])) if shared else count
        left = dict.fromkeys(space.knobs["k"], per_chunk)
        chosen = list[Decisions]()
        for point in predictor.best_first(points):
            if len(chosen) == count:
                break
            if point in self.turns.seen or left[point.k] < 1:
                continue
            if self.rules.meter.refuses(task, point) is None:
                left[point.k] -= 1
                chosen.append(point)
        return chosen

    def notify_runner_results(self, candidates: Any, results: Any) -> None:
        """Take what candidates cost."""
        values = []
        for candidate, result in zip(candidates, results, strict=True):
            if result.run_secs is not None:
                values.append(float(result.run_secs[0]))
                self._keep(candidate.sch.trace, values[-1])
        turns, best = self.turns, min(values, default=math.inf)
        if math.isinf(turns.default_value):
            # Without a figure for the default the op has no worth, but gets its turns.
            turns.default_value = best if values else 0.0
        if self.evolving:
            turns.rounds += 1
            turns.stale += best >= turns.best
            turns.best = min(best, turns.best)
            self.evolution.notify_runner_results(candidates, results)

    def clone(self) -> Any:
        """Another one of the same."""
        return Strategy(self.rules, self.plan)


@derived_object
class Scheduler(ms.task_scheduler.PyTaskScheduler):
    """MetaSchedule's loop, with our rule of whose turn it is, and exactly as many trials as asked.

    Parameters
    ----------
    plan : Plan
        That of the strategies.
    within : context manager, optional
        Entered for the time of the loop: the workers.
    """

    def __init__(self, plan: Plan, within: AbstractContextManager[Any] | None = None) -> None:
        super().__init__()
        self.plan, self.within = plan, within or nullcontext()

    def tune(
        self,
        tasks: Sequence[Any],
        task_weights: Sequence[Any],
        max_trials_global: int,
        max_trials_per_task: int,
        num_trials_per_iter: int,
        builder: Any,
        runner: Any,
        measure_callbacks: Any,
        database: Any,
        cost_model: Any,
    ) -> None:
        """Tune, see `ms.task_scheduler.TaskScheduler.tune`."""
        # The order in which tasks come must not matter.
        found = [(task_of(context.mod), context) for context in tasks]
        order = sorted(range(len(found)), key=lambda number: repr(found[number][0]))
        keys, contexts = zip(*(found[number] for number in order), strict=True)
        weights = [float(task_weights[number]) for number in order]
        self.plan.turns = {key: Turns(weight) for key, weight in zip(keys, weights, strict=True)}
        self.plan.left = max_trials_global
        free = max_trials_global - len(keys)
        self.plan.first_guesses = max(free // (2 * len(keys)), 0)
        batch = max(1, min(num_trials_per_iter, free // (2 * len(keys))))
        with self.within:
            _Loop(self.plan, keys).tune(
                *(list(contexts), weights, max_trials_global, max_trials_per_task, batch),
                *(builder, runner, list(measure_callbacks), database, cost_model),
            )

    def next_task_id(self) -> int:
        """Never asked: the loop is that of `_Loop`."""
        return -1


@derived_object
class _Loop(ms.task_scheduler.PyTaskScheduler):
    """What asks the plan whose turn it is.

    While workers measure `_AHEAD` batches, the next one, of another task, is chosen; always in
    this order, so that what is found does not depend on who is ready first.
    """

    def __init__(self, plan: Plan, keys: Sequence[TuningTask]) -> None:
        super().__init__()
        self.turns = [plan.of(key) for key in keys]
        self.measuring: list[int] = []

    def next_task_id(self) -> int:
        """The task whose batch is next; -1 if all are done."""
        outer = self._outer()
        alive = {i for i, task in enumerate(outer.tasks_) if not task.is_terminated}
        self.measuring = [i for i in self.measuring if i in alive]
        while len(self.measuring) > _AHEAD or (self.measuring and not alive - {*self.measuring}):
            outer.join_running_task(self.measuring.pop(0))
        free = alive - {*self.measuring}
        if not free:
            return -1
        chosen = max(free, key=lambda i: (self.turns[i].urgency, -i))
        self.measuring.append(chosen)
        return chosen


def _evolution(random_share: float) -> Any:
    """MetaSchedule's evolutionary search, sized for spaces of some thousand points."""
    return ms.search_strategy.EvolutionarySearch(
        population_size=64,
        init_measured_ratio=0.25,
        init_min_unmeasured=1,
        max_fail_count=20,
        genetic_num_iters=2,
        genetic_mutate_prob=0.85,
        genetic_max_fail_count=10,
        eps_greedy=random_share,
    )


def _seed(seed: int, task: TuningTask) -> int:
    """Of a task's random numbers: the same in whatever order tasks come, 1 to 2^31 - 1."""
    drawn = np.random.default_rng((seed, *repr(task).encode())).integers(1, 2**31 - 1)
    return int(drawn)


def tune_context(
    task: TuningTask,
    target: Any,
    generator: Any,
    strategy: Any,
    seed: int,
    *,
    mod: tvm.IRModule | None = None,
) -> Any:
    """A `ms.TuneContext` of one thread, made by the constructor below its own.

    That of Python first imports TVM's tensor intrinsics for CUDA, ROCm and others, half a minute
    of parsing that nothing here needs.

    Parameters
    ----------
    task : TuningTask
        The op.
    target, generator, strategy
        As of TVM's constructor.
    seed : int
        Of its random numbers, 1 to 2^31 - 1.
    mod : IRModule, optional
        Instead of the task's workload.
    """
    context = ms.TuneContext.__new__(ms.TuneContext)
    logger = logging.getLogger("sparqle_tvm.tuning.metaschedule")
    logger.setLevel(logging.WARNING)  # what goes wrong; the rest is a table after every batch
    context.__init_handle_by_constructor__(
        ms._ffi_api.TuneContext,
        mod or task.workload(),
        target,
        generator,
        strategy,
        task.name,
        1,  # thread: candidates are checked and scored in Python
        seed,
        ms.logging.get_logging_func(logger),
    )
    return context
