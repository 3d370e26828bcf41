"""The space of schedules of a dense op, in the words of MetaSchedule.

Every knob is one ``sample_categorical`` of the trace; its value is kept as an annotation of the
root block. Loops are not touched while the search looks for candidates, as MetaSchedule does
it with unrolling and tensorization: a trace is replayed thousands of times, and the primitives of
one schedule take 60 ms. `target.compile.schedule.schedule_with` applies what was chosen, when
a candidate is built and when the database is applied.

What a tile may be follows from the array: multiples of its rows, columns and lanes that split the
op evenly. Dataflow is loop order and `keep_outer` together: activation-stationary (rows outside,
kept), weight-stationary (columns outside, kept), output-stationary (nothing kept).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import lcm, prod
from typing import Any, get_type_hints

import numpy as np
import tvm
from tvm import s_tir
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.errors import CompileError, InvalidArgumentError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.library import ProgramLibrary
from sparqle_tvm.target.compile.schedule import check_decisions
from sparqle_tvm.target.cost.schedule import Decisions, even_splits, overflows
from sparqle_tvm.tuning.task import TuningTask, task_of

KNOB_ATTR = "sparqle.knob."
"""Annotations of the root block: the decision of every knob."""

_KINDS = get_type_hints(Decisions)

KNOBS = tuple(_KINDS)
"""The fields of `Decisions`, in the order in which a trace samples them."""

_DEPTHS = (1, 2, 3)


@dataclass(frozen=True)
class Space:
    """Values that each knob may take.

    Attributes
    ----------
    knobs : mapping of str to tuple of int
        For every name of `KNOBS`; flags are 0 and 1.
    """

    knobs: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        """Refuse knobs without values, and unknown ones."""
        if tuple(self.knobs) != KNOBS or not all(self.knobs.values()):
            raise InvalidArgumentError(f"a space needs values for {', '.join(KNOBS)}, in order")

    @property
    def size(self) -> int:
        """Combinations, with those that do not fit."""
        return prod(len(values) for values in self.knobs.values())

    def points(self) -> Iterator[Decisions]:
        """All combinations."""
        return map(decisions_from, product(*self.knobs.values()))

    def draw(self, rng: np.random.Generator, count: int) -> list[Decisions]:
        """Up to `count` different points: all of a smaller space, in any case none twice."""
        if self.size <= count:
            return list(self.points())
        drawn = [rng.choice(values, count).tolist() for values in self.knobs.values()]
        return [decisions_from(values) for values in dict.fromkeys(zip(*drawn, strict=True))]

    def __contains__(self, decisions: object) -> bool:
        """Whether decisions are a combination of the space."""
        return isinstance(decisions, Decisions) and all(
            int(getattr(decisions, knob)) in values for knob, values in self.knobs.items()
        )

    def schedule(self, sch: s_tir.Schedule, decisions: Decisions | None = None) -> None:
        """Sample every knob: the space generator of MetaSchedule (`ms.space_generator.ScheduleFn`).

        Parameters
        ----------
        sch : s_tir.Schedule
            Of `TuningTask.workload`.
        decisions : Decisions, optional
            A point of the space, as if it had been sampled.
        """
        block = sch.get_sblock("root")
        for knob, values in self.knobs.items():
            index = None if decisions is None else values.index(int(getattr(decisions, knob)))
            shares = [1.0 / len(values)] * len(values)
            chosen = sch.sample_categorical(list(values), shares, decision=index)
            sch.annotate(block, KNOB_ATTR + knob, chosen)

    def trace(self, task: TuningTask, decisions: Decisions) -> s_tir.schedule.Trace:
        """The trace that makes exactly these decisions; InvalidArgumentError without such."""
        if decisions not in self:
            raise InvalidArgumentError(f"{task.name}: {decisions} is not in the space")
        sch = s_tir.Schedule(task.workload(), seed=1, debug_mask="none")
        self.schedule(sch, decisions)
        return sch.trace


def make_space(
    task: TuningTask, accelerator: Accelerator, *, depths: tuple[int, ...] = _DEPTHS
) -> Space:
    """The space of a task: what the array can do, the default schedule always among it.

    Parameters
    ----------
    task, accelerator
        The op and the array.
    depths : tuple of int
        Buffer depths of activations and weights to choose from; accumulators have at most two.

    Raises
    ------
    TargetError
        As `default_of`.
    """
    default = default_of(task, accelerator)
    slots = {*depths, 2}
    # PE rows that may share an activation row: 1, 2, 4, ... while the bucket's rows exist.
    most = max(1, accelerator.rows // task.spec.m) if accelerator.rows_share_k else 1
    knobs: dict[str, Collection[int]] = {
        "m": {*even_splits(task.rows, accelerator.rows).tolist(), default.m},
        "n": {*even_splits(task.spec.n, accelerator.cols).tolist(), default.n},
        "k": task.chunks,
        "rows_outer": (0, 1),
        "keep_outer": (0, 1),
        "activation_slots": slots,
        "weight_slots": slots,
        "accumulator_slots": slots & {1, 2},
        "row_split": {*(1 << i for i in range(most.bit_length())), default.row_split},
    }
    return Space({name: tuple(sorted(values)) for name, values in knobs.items()})


def default_of(task: TuningTask, accelerator: Accelerator) -> Decisions:
    """What a compilation without a database does: tiles for all ops that read the encoding.

    Raises TargetError if not even the smallest tile fits the accelerator.
    """
    return ProgramLibrary(accelerator).decisions(task.spec, task.group)


def chunk_unit(group: tuple[Any, ...], accelerator: Accelerator) -> int:
    """Columns that a K chunk must be a multiple of, for all ops that read one encoding."""
    return lcm(8, accelerator.lanes, *(max(spec.group_size, 1) for spec in group))


def decisions_from(values: Iterable[int]) -> Decisions:
    """Decisions from the values of all knobs, in the order of `KNOBS`."""
    chosen = {knob: kind(v) for (knob, kind), v in zip(_KINDS.items(), values, strict=True)}
    return Decisions(**chosen)


Instruction = tuple[str, list[str], list[Any], list[str]]
Trace = tuple[list[Instruction], list[tuple[int, int]]]
"""A trace in MetaSchedule's JSON form: instructions, and the choice of those that sample."""


def read_trace(trace: Trace) -> Decisions:
    """The decisions of a trace that `Space.schedule` made; InvalidArgumentError if it is another.

    Nothing is replayed: the instructions must be those, and their values are looked up.
    """
    instructions, choices = trace
    chosen, values = dict(choices), []
    expected: list[Any] = [("GetSBlock", [], ["root", "main"], ["b0"])]
    for number, knob in enumerate(KNOBS, start=1):
        at = len(expected)
        among = instructions[at][2][0] if at < len(instructions) and instructions[at][2] else []
        index = chosen.get(at, -1)
        if not isinstance(among, list) or not 0 <= index < len(among):
            raise InvalidArgumentError(f"the schedule decides nothing for {knob!r}")
        values.append(among[index])
        shares = instructions[at][2][-1]
        whole = all(type(value) is int for value in among)
        even = isinstance(shares, list) and all(type(share) in (int, float) for share in shares)
        if not whole or not even or len(shares) != len(among):
            raise InvalidArgumentError(f"the schedule has other choices for {knob!r}")
        expected.append(("SampleCategorical", [], [among, shares], [f"v{number}"]))
        expected.append(("Annotate", ["b0", f"v{number}"], [KNOB_ATTR + knob], []))
    made = [i for i in instructions if i != ("EnterPostproc", [], [], [])]
    if made != expected or len(chosen) != len(choices) or len(chosen) != len(KNOBS):
        raise InvalidArgumentError("the schedule is not one of this search")
    return decisions_from(values)


def decisions_of_trace(trace: s_tir.schedule.Trace) -> Decisions:
    """The decisions of a trace that `Space.schedule` made; InvalidArgumentError if it is another.

    Nothing is replayed.
    """
    chosen = trace.decisions
    samples = [instruction for instruction in trace.insts if instruction in chosen]
    try:
        return decisions_from(int(each.attrs[0][int(chosen[each])]) for each in samples)
    except (ValueError, TypeError, IndexError) as error:
        raise InvalidArgumentError("the schedule is not one of this search") from error


def decisions_of(mod: tvm.IRModule) -> Decisions:
    """The decisions that a replayed trace left in its module; InvalidArgumentError if none."""
    annotations = mod["main"].body.block.annotations
    try:
        return decisions_from([int(annotations[KNOB_ATTR + knob]) for knob in KNOBS])
    except KeyError as error:
        raise InvalidArgumentError(f"the schedule decides nothing for {error}") from error


def reason_against(task: TuningTask, accelerator: Accelerator, decisions: Decisions) -> str | None:
    """Why no program can be made of decisions, None if it can: asked before anything is built."""
    try:
        check_decisions(task.spec, accelerator, decisions)
    except CompileError as error:
        return str(error)
    full = overflows(task.spec, accelerator, decisions)
    if full:
        names = ", ".join(buffer.name for buffer in full)
        return f"{task.name}: tiles of {decisions.tile} do not fit the {names} buffer"
    return None


@derived_object
class RejectMisfits(ms.postproc.PyPostproc):
    """Refuses candidates that cannot be measured, before they are: see `Meter.refuses`."""

    def __init__(self, refuses: Callable[[TuningTask, Decisions], str | None]) -> None:
        super().__init__()
        self.task: TuningTask | None = None
        self.refuses = refuses

    def _initialize_with_tune_context(self, context: Any) -> None:
        self.task = task_of(context.mod)

    def apply(self, sch: s_tir.Schedule) -> bool:
        """Whether the candidate may be built."""
        task = self.task or task_of(sch.mod)
        return self.refuses(task, decisions_of(sch.mod)) is None

    def clone(self) -> Any:
        """Another one of the same."""
        return RejectMisfits(self.refuses)


@derived_object
class MutateKnob(ms.mutator.PyMutator):
    """Changes one knob of a trace: to a neighbouring value, or to any other."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.rng = np.random.default_rng(seed)

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: s_tir.schedule.Trace, _: Any) -> s_tir.schedule.Trace | None:
        """A changed copy of the trace, None if no knob has a choice."""
        samples = [
            (inst, int(decision), len(inst.attrs[0]))
            for inst, decision in trace.decisions.items()
            if len(inst.attrs[0]) > 1
        ]
        if not samples:
            return None
        # The map has no order of its own; that of the trace makes equal seeds equal searches.
        order = {inst: index for index, inst in enumerate(trace.insts)}
        samples.sort(key=lambda sample: order[sample[0]])
        inst, index, count = samples[int(self.rng.integers(len(samples)))]
        if self.rng.random() < 0.5:
            other = index + (1 if self.rng.random() < 0.5 else -1)
            other = min(max(other, 0), count - 1)
        else:
            other = int(self.rng.integers(count))
        if other == index:
            other = (index + 1) % count
        return trace.with_decision(inst, other, remove_postproc=True)

    def clone(self) -> Any:
        """Another one with the same seed."""
        return MutateKnob(self.seed)
