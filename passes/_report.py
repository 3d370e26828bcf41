"""What the passes did, and what they left alone and why."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

LOG = logging.getLogger("sparqle_tvm.passes")


@dataclass(frozen=True)
class Skipped:
    """One op that a pass looked at and left as it was."""

    pass_name: str
    op: str
    label: str
    reason: str


@dataclass
class PassReport:
    """Collects, over the passes of a pipeline, what was rewritten and what was skipped.

    Attributes
    ----------
    rewritten : Counter[str]
        Number of rewrites by pass name.
    skipped : list of Skipped
        One entry for each op left alone, in program order.
    """

    rewritten: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, pass_name: str, op: str, label: str, reason: str) -> None:
        """Note (and log) that ``op`` was left alone; the same note is kept once."""
        entry = Skipped(pass_name, op, label, reason)
        if entry not in self.skipped:
            self.skipped.append(entry)
            LOG.info("%s left %s %s alone: %s", pass_name, op, label, reason)

    def rewrite(self, pass_name: str, count: int = 1) -> None:
        """Note ``count`` rewrites by ``pass_name``."""
        self.rewritten[pass_name] += count

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON data."""
        return {
            "rewritten": dict(self.rewritten),
            "skipped": [asdict(entry) for entry in self.skipped],
        }
