"""What a schedule costs: the objective, the data that it is measured with, and the measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sparqle_tvm.errors import InvalidArgumentError, TuningError, require_known
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.cost.analytical import dense_op_cost
from sparqle_tvm.target.cost.energy import energy
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.events import Events, simulated_events
from sparqle_tvm.target.cost.model import Counting
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.joint_op import part_labels
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.simulator import draw_nnz, simulate_timing
from sparqle_tvm.target.verify import verify_bound
from sparqle_tvm.tuning.space import reason_against
from sparqle_tvm.tuning.task import TuningTask

if TYPE_CHECKING:
    from sparqle_tvm.calibration import Calibration

ObjectiveKind = Literal["latency", "energy", "edp", "weighted"]

DEFAULT_DENSITY = 0.3
"""Share of MSB digits that are not zero: SmolLM2-135M on prose, signed window."""

# RowNnz counts columns by this many: every step of a PE row begins at a multiple.
_UNIT = 8


@dataclass(frozen=True)
class Objective:
    """What is made small.

    Attributes
    ----------
    kind : {"latency", "energy", "edp", "weighted"}
        Cycles; picojoules; cycles times microjoules; or a weighted mean of both figures relative
        to the default schedule's, in millionths.
    latency_weight : float
        Share of latency in ``weighted``, 0 to 1.
    """

    kind: ObjectiveKind = "latency"
    latency_weight: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is unknown."""
        if self.kind not in get_args(ObjectiveKind) or not 0 <= self.latency_weight <= 1:
            raise InvalidArgumentError(
                f"objective {self!s} is unknown; use latency, energy, edp, or weighted:W with a "
                "share W of latency from 0 to 1"
            )

    @classmethod
    def parse(cls, text: str | Objective) -> Objective:
        """Read ``latency``, ``energy``, ``edp``, ``weighted`` or ``weighted:0.3``.

        Raises InvalidArgumentError if it is none of them.
        """
        if isinstance(text, Objective):
            return text
        kind, _, weight = text.partition(":")
        try:
            share = float(weight) if weight else 0.5
        except ValueError:
            share = math.nan
        if weight and kind != "weighted":
            kind = text
        return cls(kind, share)  # type: ignore[arg-type]  # checked by the constructor

    def __str__(self) -> str:
        """As `parse` takes it."""
        return f"weighted:{self.latency_weight:g}" if self.kind == "weighted" else self.kind

    def value(self, cost: Measurement, reference: Measurement) -> float:
        """The figure to make small; `reference` is the default schedule."""
        if self.kind == "latency":
            return cost.cycles
        if self.kind == "energy":
            return cost.energy_pj
        if self.kind == "edp":
            return cost.cycles * cost.energy_pj * 1e-6
        latency, joules = cost.cycles / reference.cycles, cost.energy_pj / reference.energy_pj
        return 1e6 * (self.latency_weight * latency + (1 - self.latency_weight) * joules)


@dataclass(frozen=True)
class Measurement:
    """Cycles and energy (pJ) of one op, over all draws of the data."""

    cycles: float
    energy_pj: float


@dataclass(frozen=True)
class ActivationData:
    """Stored MSB digits that schedules are measured with.

    Attributes
    ----------
    density : float
        Share of digits that are stored, where there is no calibration: for all ops without one,
        and for those that it does not know, as the output layer's.
    calibration : Calibration, optional
        Measured rows by the label of an op.
    draws : int
        How many sets of activations are drawn. With a calibration each is of another of the
        equal ops that a task stands for, as far as there are.
    percentile : float, optional
        Cost of an op over the draws: this percentile (100: the worst); by default their mean.
    seed : int
        Of the random numbers. All schedules of an op are measured with the same draws.
    """

    density: float = DEFAULT_DENSITY
    calibration: Calibration | None = None
    draws: int = 1
    percentile: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not 0 <= self.density <= 1 or self.draws < 1:
            raise InvalidArgumentError(
                f"density {self.density} must lie in 0 to 1, and {self.draws} draws be at least 1"
            )
        if self.seed < 0:
            raise InvalidArgumentError(f"seed {self.seed} is negative; take 0 or more")
        if self.percentile is not None and not 0 <= self.percentile <= 100:
            raise InvalidArgumentError(f"percentile {self.percentile} must lie in 0 to 100")

    def draw(self, task: TuningTask) -> tuple[RowNnz, ...]:
        """Activations of an op; ops of one group get the same."""
        rows, columns = task.rows, task.spec.k
        known = self.calibration
        # The parts of a joint op read the same rows.
        firsts = [part_labels(label)[0] for label in task.labels]
        labels = [] if known is None else [name for name in firsts if name in known]
        if known is None or not labels:
            rng = np.random.default_rng((self.seed, rows, columns))
            return tuple(
                draw_nnz(rng, [self.density], rows, columns, _UNIT) for _ in range(self.draws)
            )
        chosen = [labels[i * len(labels) // self.draws] for i in range(self.draws)]
        return tuple(known.row_nnz(label, rows, self.seed + i) for i, label in enumerate(chosen))

    def combine(self, costs: list[float]) -> float:
        """One figure of those of all draws."""
        if self.percentile is None:
            return float(np.mean(costs))
        return float(np.percentile(costs, self.percentile))

    def to_json(self) -> dict[str, object]:
        """Everything but the seed; of a calibration, what tells it from others."""
        known = self.calibration
        return {
            "density": self.density,
            "calibration": None
            if known is None
            else {"model": known.fingerprint, "text": known.text_name, "tokens": known.tokens},
            "draws": self.draws,
            "percentile": self.percentile,
        }


@dataclass
class Meter:
    """Measures schedules on one accelerator, with one set of data.

    Attributes
    ----------
    accelerator : Accelerator
        The machine.
    data : ActivationData
        What runs through the ops.
    engine : {"simulator", "analytical"}
        What measures.
    table : EnergyTable, optional
        What an event costs; by default that of the accelerator.
    """

    accelerator: Accelerator
    data: ActivationData = field(default_factory=ActivationData)
    engine: Counting = "simulator"
    table: EnergyTable | None = None
    _drawn: dict[TuningTask, tuple[RowNnz, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse an unknown engine."""
        require_known("engine", self.engine, get_args(Counting))

    def bare(self) -> Meter:
        """The same without the activations that were drawn, for other processes."""
        return replace(self, _drawn={})

    @property
    def energy_table(self) -> EnergyTable:
        """What an event costs."""
        return self.table or default_table(self.accelerator)

    def activations(self, task: TuningTask) -> tuple[RowNnz, ...]:
        """The draws of an op, made once."""
        if task not in self._drawn:
            self._drawn[task] = self.data.draw(task)
        return self._drawn[task]

    def refuses(self, task: TuningTask, decisions: Decisions) -> str | None:
        """Why decisions cannot be measured, None if they can."""
        return reason_against(task, self.accelerator, decisions)

    def build(self, task: TuningTask, decisions: Decisions, *, verify: bool = True) -> Program:
        """Schedule and generate the program.

        With `verify` it is verified for all numbers of rows.
        Raises CompileError, TargetError or ProgramError if there is no such program.
        """
        spec = task.spec
        scheduled = schedule_with(spec, self.accelerator, decisions)
        spec = replace(spec, label=task.name)
        return generate(scheduled, spec, self.accelerator, verify=verify)

    def run(self, task: TuningTask, program: Program) -> Measurement:
        """Simulate a program with every draw of the data, and verify it for that many rows."""
        drawn = self.activations(task)
        digits = drawn if task.spec.scheme == "sparqle" else [None] * len(drawn)
        found = [simulate_timing(program, task.rows, d) for d in digits]
        for result in found:
            result.bound.once(verify_bound)
        return self._combined([simulated_events(result) for result in found])

    def count(self, task: TuningTask, decisions: Decisions) -> Measurement:
        """Cost by formula."""
        spec, shape = task.spec, task.shape
        costs = [
            dense_op_cost(shape, nnz, decisions, self.accelerator, spec.scheme, spec.block_rows)
            for nnz in self.activations(task)
        ]
        return self._combined([cost.events for cost in costs])

    def measure(self, task: TuningTask, decisions: Decisions) -> Measurement:
        """Cost of decisions with the engine; errors as `build`."""
        if self.engine == "analytical":
            return self.count(task, decisions)
        # What is chosen is verified for all rows when a model is built with it.
        return self.run(task, self.build(task, decisions, verify=False))

    def _combined(self, events: list[Events]) -> Measurement:
        table = self.energy_table
        joules = [energy(e, self.accelerator, table).total_pj.mid for e in events]
        return Measurement(
            self.data.combine([float(e.cycles) for e in events]), self.data.combine(joules)
        )


@dataclass
class RecordedMeter(Meter):
    """Knows measurements that were made before, and refuses all other decisions.

    A search over an enumerated space needs nothing measured a second time.

    Attributes
    ----------
    known : mapping of (TuningTask, Decisions) to Measurement
        What a `Meter` with the same settings measured.
    """

    known: Mapping[tuple[TuningTask, Decisions], Measurement] = field(default_factory=dict)

    def refuses(self, task: TuningTask, decisions: Decisions) -> str | None:
        """Why decisions cannot be measured, None if they were."""
        if (task, decisions) in self.known:
            return None
        return f"{task.name}: nobody measured {decisions}"

    def measure(self, task: TuningTask, decisions: Decisions) -> Measurement:
        """What was measured; TuningError if nothing was."""
        if reason := self.refuses(task, decisions):
            raise TuningError(reason)
        return self.known[task, decisions]
