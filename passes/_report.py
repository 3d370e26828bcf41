"""What the passes did, and what they left alone and why."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

LOG = logging.getLogger("sparqle_tvm.passes")


@dataclass(frozen=True)
class Skipped:
    """One op that a pass looked at and left as it was.

    Attributes
    ----------
    function, label : str
        The function that holds it and its name there; empty for what no function has.
    """

    pass_name: str
    function: str
    op: str
    label: str
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        where = f" of {self.function}" if self.function else ""
        return f"{self.pass_name} left {self.op} {self.label}{where} alone: {self.reason}"


@dataclass
class PassReport:
    """Collects, over the passes of a pipeline, what was rewritten and what was skipped.

    Attributes
    ----------
    rewritten : Counter[str]
        Number of rewrites by pass name.
    skipped : list of Skipped
        One entry for each op left alone, in program order; none if all is rewritten.
    tuned : list of str
        Labels of the ops with schedules from a tuning database, in program order.
    """

    rewritten: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    tuned: list[str] = field(default_factory=list)

    def skip(self, entry: Skipped) -> None:
        """Note (and log) that an op was left alone; the same note is kept once."""
        if entry not in self.skipped:
            self.skipped.append(entry)
            LOG.info("%s", entry)

    def rewrite(self, pass_name: str, count: int = 1) -> None:
        """Note ``count`` rewrites by ``pass_name``."""
        self.rewritten[pass_name] += count

    def note_tuned(self, label: str) -> None:
        """Note (and log) that an op has a schedule from a tuning database."""
        if label not in self.tuned:
            self.tuned.append(label)
            LOG.info("%s: schedule from the tuning database", label)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON data."""
        return {
            "rewritten": dict(self.rewritten),
            "skipped": [asdict(entry) for entry in self.skipped],
            "tuned": list(self.tuned),
        }
