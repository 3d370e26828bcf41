"""What tuning found, as ``sparqle tune --json`` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import Count, typed
from sparqle_tvm.target.cost.schedule import Decisions

KIND = "tuning"
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True)
class OpCost:
    """Cycles and energy of an op, or of all."""

    cycles: PositiveFloat
    energy_pj: PositiveFloat


@dataclass(frozen=True, kw_only=True)
class TunedSchedule(Decisions):
    """A schedule of an op, with its cycles and energy."""

    cycles: PositiveFloat
    energy_pj: PositiveFloat


@dataclass(frozen=True)
class TunedOp:
    """An op before and after; fields as in `tuning.result.TaskResult` and its task."""

    name: str
    labels: tuple[str, ...]
    weight: Count
    trials: Count
    failures: Count
    message: str
    default: TunedSchedule
    best: TunedSchedule


@dataclass(frozen=True)
class Machine:
    """The accelerator that was tuned for."""

    name: str


@dataclass(frozen=True)
class TuningSettings:
    """What was tuned for."""

    objective: str
    accelerator: Machine


@dataclass(frozen=True)
class Totals:
    """All ops, as often as they occur."""

    default: OpCost
    best: OpCost


@dataclass(frozen=True)
class TuningSummary:
    """What `tuning.TuningResult.to_json` gives."""

    settings: TuningSettings
    work_dir: str
    tasks: tuple[TunedOp, ...]
    total: Totals

    @classmethod
    def from_json(cls, data: Any, where: object = "the tuning") -> TuningSummary:
        """Read what ``to_json`` gave; ResultFileError if it is not of that form."""
        return typed(data, cls, where, ResultFileError, partial=True)
