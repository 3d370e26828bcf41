"""What the passes did, and what they left alone and why."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from sparqle_tvm.showing import html_table, text_table

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


@dataclass(frozen=True)
class Split:
    """A dense op in split-precision form.

    Attributes
    ----------
    function, label : str
        The function that holds it and its name there.
    form : str
        What was multiplied: ``int8 x int4, groups of 32``.
    window : str
        That of its activations.
    """

    function: str
    label: str
    form: str
    window: str


@dataclass(repr=False)
class PassReport:
    """Collects, over the passes of a pipeline, what was rewritten and what was skipped.

    Printed, it is a table of all dense ops; notebooks show it as one.

    Attributes
    ----------
    split : dict of (function, label) to Split
        The dense ops that are split, in program order.
    rewritten : Counter[str]
        Number of rewrites by pass name.
    skipped : list of Skipped
        One entry for each op left alone, in program order; none if all is rewritten.
    tuned : list of str
        Labels of the ops with schedules from a tuning database, in program order.
    """

    HEAD: ClassVar = ("function", "op", "form", "window", "why not")

    split: dict[tuple[str, str], Split] = field(default_factory=dict)
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

    def note_split(self, op: Split) -> None:
        """Note a dense op that is split; what was noted of it before is replaced."""
        self.split[op.function, op.label] = op

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Of every op that was split or left alone: function, op, form, window, why not."""
        done = [(s.function, s.label, s.form, s.window, "") for s in self.split.values()]
        left = [
            (s.function, s.label or s.op, s.op if s.label else "", "", s.reason)
            for s in self.skipped
        ]
        return done + left

    def __repr__(self) -> str:
        """Counts."""
        counts = f"{len(self.split)} dense ops split, {len(self.skipped)} notes on ops left alone"
        return f"<PassReport: {counts}>"

    def __str__(self) -> str:
        """The table."""
        return text_table(self.HEAD, self.rows())

    def _repr_html_(self) -> str:
        return html_table(repr(self)[1:-1], self.HEAD, self.rows())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON data."""
        return {
            "split": [asdict(entry) for entry in self.split.values()],
            "rewritten": dict(self.rewritten),
            "skipped": [asdict(entry) for entry in self.skipped],
            "tuned": list(self.tuned),
        }
