"""Programs of dense ops for one accelerator, each generated and verified once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.cost.tiling import choose_drained, choose_schedules, schedule_of_chunk
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program


class Schedules(Protocol):
    """Where better schedules than the default ones come from: a tuning database."""

    def schedules(
        self, group: Sequence[DenseOp], rows: int | None = None
    ) -> tuple[Decisions, ...] | None:
        """Schedules of all ops that read one encoding, None if there are none.

        `rows` are the tokens, if they are known.
        """
        ...


@dataclass
class ProgramLibrary:
    """Programs by op and schedule: ops that read one encoding share the K chunk.

    In its methods `readers` are all ops that read the encoding, the op among them. Those that no
    tile of their own fits do not count: they run elsewhere. `rows` are the tokens, if they are
    known, `k_chunk` is the chunk, if the program that makes the encoding determines it, and
    `density` is the share of stored digits to expect. Where no tile fits the buffers, all raise
    TargetError.

    Attributes
    ----------
    accelerator : Accelerator
        The machine.
    tuned : Schedules, optional
        Schedules to prefer to the default ones.
    programs : dict of (DenseOp, Decisions) to Program
        Every program so far, by its op and its schedule.
    """

    accelerator: Accelerator
    tuned: Schedules | None = None
    programs: dict[tuple[DenseOp, Decisions], Program] = field(default_factory=dict)

    def from_database(
        self, op: DenseOp, readers: Sequence[DenseOp], rows: int | None = None
    ) -> Decisions | None:
        """The tuned schedule of an op, None if there is none."""
        found = self.tuned.schedules(readers, rows) if self.tuned is not None else None
        return found[list(readers).index(op)] if found is not None else None

    def decisions(
        self,
        op: DenseOp,
        readers: Sequence[DenseOp],
        rows: int | None = None,
        density: float = TYPICAL_DENSITY,
    ) -> Decisions:
        """The schedule of an op that shares its K chunk with the other readers of its encoding."""
        tuned = self.from_database(op, readers, rows)
        if tuned is not None:
            return tuned
        return self.default(op, readers, density=density)

    def default(
        self,
        op: DenseOp,
        readers: Sequence[DenseOp],
        k_chunk: int | None = None,
        density: float = TYPICAL_DENSITY,
    ) -> Decisions:
        """The default schedule of an op that shares its K chunk with the other readers."""
        if k_chunk is not None:
            return schedule_of_chunk(op, k_chunk, self.accelerator, op.scheme)
        try:
            return self._joint(op, readers, density)
        except TargetError:
            return self._joint(op, [r for r in readers if r == op or self._fits(r)], density)

    def _joint(
        self, op: DenseOp, readers: Sequence[DenseOp], density: float = TYPICAL_DENSITY
    ) -> Decisions:
        schedules = choose_schedules(readers, self.accelerator, op.scheme, density)
        return schedules[list(readers).index(op)]

    def _fits(self, op: DenseOp) -> bool:
        try:
            self._joint(op, [op])
        except TargetError:
            return False
        return True

    def chained(
        self,
        op: DenseOp,
        readers: Sequence[DenseOp],
        k_chunk: int | None,
        out_readers: Sequence[DenseOp],
    ) -> tuple[DenseOp, Decisions]:
        """The op and its schedule if it or its neighbour encodes its outputs.

        `out_readers` are to encoded outputs what `readers` are to the activations. In the op that
        is returned, encoded outputs have their chunk; the schedule is the default one.
        """
        decisions = self.default(op, readers, k_chunk)
        if op.output == "encoded":
            shapes = tuple(reader for reader in out_readers if self._fits(reader))
            decisions = choose_drained(op, decisions.k, shapes, self.accelerator)
            op = replace(op, out_chunk=decisions.n)
        return op, decisions

    def program(self, op: DenseOp, decisions: Decisions) -> Program:
        """The program of an op with a schedule; the first op that needs it names it in listings.

        Raises
        ------
        CompileError
            If the op is not one that programs exist for.
        """
        key = (op, decisions)
        if key not in self.programs:
            scheduled = schedule_with(op, self.accelerator, decisions)
            self.programs[key] = generate(scheduled, op, self.accelerator)
        return self.programs[key]
