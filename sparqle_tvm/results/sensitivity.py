"""What becomes of a pass if one field of the accelerator is doubled or halved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import plain, typed
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.target.cost.area import array_mm2, buffers_mm2
from sparqle_tvm.target.cost.baselines import Scheme, array_of


@dataclass(frozen=True)
class PartChange:
    """A part of the pass on the changed accelerator.

    Attributes
    ----------
    seconds, joules : mapping of str to float
        Time and energy by scheme, as shares of what they were: -0.2 is a fifth less.
    time_saved, energy_saved : float
        What ``sparqle`` saves of the baseline there, as a share.
    """

    seconds: Mapping[str, float]
    joules: Mapping[str, float]
    time_saved: float
    energy_saved: float


@dataclass(frozen=True)
class FieldChange:
    """One field of the accelerator, changed.

    Attributes
    ----------
    field : str
        Its name.
    factor : float
        What it is multiplied by.
    before, after : float
        Its values.
    parts : mapping of str to PartChange
        By `results.passes.PARTS`; empty if there is no such accelerator.
    impossible : str
        Why there is none; empty if there is one.
    """

    field: str
    factor: float
    before: float
    after: float
    parts: Mapping[str, PartChange]
    impossible: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """Every numeric field of an accelerator, changed one at a time, in the order of the fields.

    `base` is the estimate on the accelerator as it is, under ``dense`` and ``sparqle`` at least.
    """

    base: Estimate
    changes: tuple[FieldChange, ...]

    def time_area(self, change: FieldChange, scheme: Scheme) -> float:
        """Time x area of array and buffers under a scheme, as a share more than as it is.

        The time is that of the whole model.
        """
        machine = self.base.accelerator
        changed = replace(machine, **cast(Any, {change.field: change.after}))
        areas = (
            array_mm2(array_of(each, scheme), scheme) + buffers_mm2(each).mid
            for each in (machine, changed)
        )
        before, after = areas
        return (1 + change.parts["whole_model"].seconds[scheme]) * after / before - 1

    @classmethod
    def from_json(cls, base: Estimate, data: Any, where: object = "the changes") -> Sensitivity:
        """Read what `to_json` gave; ResultFileError if it is not of that form."""
        return cls(base, typed(data, tuple[FieldChange, ...], where, ResultFileError))

    def to_json(self) -> list[Any]:
        """The changes in JSON form."""
        found: list[Any] = plain(self.changes)
        return found
