"""What becomes of a pass if one field of the accelerator is doubled or halved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import plain, typed
from sparqle_tvm.results.estimate import Estimate


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

    @classmethod
    def from_json(cls, base: Estimate, data: Any, where: object = "the changes") -> Sensitivity:
        """Read what `to_json` gave; ResultFileError if it is not of that form."""
        return cls(base, typed(data, tuple[FieldChange, ...], where, ResultFileError))

    def to_json(self) -> list[Any]:
        """The changes in JSON form."""
        found: list[Any] = plain(self.changes)
        return found
