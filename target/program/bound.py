"""A program bound to the sizes of a run: the steps, and operands of each instruction class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.base import (
    TRACE_ENGINE,
    TRACE_INSTRUCTION,
    TRACE_OPCODE,
    TRACE_OPERANDS,
    Instruction,
    Kind,
    Requirement,
)
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.program.expand import expand, place
from sparqle_tvm.target.program.program import HeaderKind, Program
from sparqle_tvm.target.program.structure import instruction_error

Int64s = NDArray[np.int64]
InstructionClass = type[Instruction]
Derived = TypeVar("Derived")


@dataclass(frozen=True, eq=False)
class Operands:
    """Evaluated operands of all steps of one instruction class, by name.

    Attributes
    ----------
    cls : type of Instruction
        The class.
    index : ndarray of int64, shape (n,)
        The steps: their places in the trace.
    values : ndarray of int64, shape (operands, n)
        In the order of `TRACE`.
    """

    cls: InstructionClass
    index: Int64s
    values: Int64s

    def __getitem__(self, operand: str, /) -> Int64s:
        """Values of an operand."""
        return np.asarray(self.values[self.cls.TRACE.index(operand)])

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.index)


@dataclass(frozen=True, eq=False)
class BoundProgram(Generic[HeaderKind]):
    """A program bound to M rows, and of attention to the tokens before them.

    Attributes
    ----------
    program : Program
        The program.
    rows : int
        M.
    past : int
        Tokens before the rows; 0 of a dense op.
    memo : dict
        What is derived from the steps and needed again in the next run, see `once`.

    Raises
    ------
    ProgramError
        When the steps are asked for and the program cannot be bound to such sizes.
    """

    program: Program[HeaderKind]
    rows: int
    past: int = 0
    memo: dict[Any, Any] = field(default_factory=dict)

    def once(self, derive: Callable[[BoundProgram[Any]], Derived]) -> Derived:
        """What `derive` makes of this program, made the first time only."""
        if derive not in self.memo:
            self.memo[derive] = derive(self)
        found: Derived = self.memo[derive]
        return found

    @property
    def header(self) -> HeaderKind:
        """Header of the program."""
        return self.program.header

    @cached_property
    def limits(self) -> Mapping[str, int]:
        """The sizes that limits of the program name."""
        return self.header.limits(self.rows, self.past)

    @cached_property
    def _expanded(self) -> tuple[Int64s, Int64s | None]:
        return expand(self.header, self.program.instructions, self.limits)

    @property
    def trace(self) -> Int64s:
        """The steps, see `Program.bind`."""
        return self._expanded[0]

    @cached_property
    def engines(self) -> NDArray[np.int32]:
        """Engine of every step."""
        return self.trace[:, TRACE_ENGINE].astype(np.int32)

    @cached_property
    def opcodes(self) -> Int64s:
        """Opcode of every step."""
        return np.ascontiguousarray(self.trace[:, TRACE_OPCODE])

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.trace)

    @cached_property
    def _operands(self) -> dict[InstructionClass, Operands]:
        return {}

    def of(self, cls: InstructionClass) -> Operands:
        """Operands of all steps of a class."""
        if cls not in self._operands:
            index = np.flatnonzero(self.opcodes == cls.OPCODE)
            columns = slice(TRACE_OPERANDS, TRACE_OPERANDS + len(cls.TRACE))
            values = np.ascontiguousarray(self.trace[index, columns].T)
            self._operands[cls] = Operands(cls, index, values)
        return self._operands[cls]

    @cached_property
    def classes(self) -> tuple[Operands, ...]:
        """Operands of every class that has steps, in the order of opcodes."""
        present = np.bincount(self.opcodes, minlength=max(INSTRUCTIONS) + 1)
        return tuple(self.of(INSTRUCTIONS[opcode]) for opcode in np.flatnonzero(present).tolist())

    def of_kind(self, kind: Kind) -> tuple[Operands, ...]:
        """Operands of the classes of a kind that have steps."""
        return tuple(operands for operands in self.classes if kind == operands.cls.KIND)

    @cached_property
    def queues(self) -> Int64s:
        """Queue of every WAIT and SIGNAL, -1 of other steps."""
        queues = np.full(len(self), -1, dtype=np.int64)
        for kind in (Kind.WAIT, Kind.SIGNAL):
            for operands in self.of_kind(kind):
                queues[operands.index] = operands["queue"]
        return queues

    @cached_property
    def goes_on(self) -> NDArray[np.bool_]:
        """Which loads go on with the transfer before, see `Instruction.PIECE`."""
        names = ("row", "rows", "col", "cols")
        tiles = np.full((len(self), 1 + len(names)), -1, dtype=np.int64)
        pieces = sorted({cls.PIECE for cls in INSTRUCTIONS.values()})
        for operands in self.classes:
            if operands.cls.PIECE:
                # What has no columns goes with those of the load before.
                columns = [
                    operands[name] if name in operands.cls.TRACE else np.full(len(operands), -2)
                    for name in names
                ]
                piece = np.full(len(operands), pieces.index(operands.cls.PIECE))
                tiles[operands.index] = np.stack([piece, *columns], axis=1)
        found = np.zeros(len(self), dtype=np.bool_)
        steps = np.flatnonzero(self.engines == Engine.LOAD)
        before, after = steps[:-1], steps[1:]
        open_ = np.flatnonzero(tiles[after, -1] == -2)
        tiles[after[open_], -2:] = tiles[before[open_], -2:]
        same = (tiles[before] == tiles[after]).all(axis=1) & (tiles[after, 0] >= 0)
        found[after] = same & (self.opcodes[before] != self.opcodes[after])
        return found

    def instruction_at(self, step: int) -> Instruction:
        """The instruction of a step."""
        return self.program.instructions[int(self.trace[step, TRACE_INSTRUCTION])]

    def where(self, step: int) -> str:
        """``step 12 (i0 = 1, i1 = 0)``."""
        index = int(self.trace[step, TRACE_INSTRUCTION])
        placed = next(p for p in place(self.program.instructions, self.limits) if p.index == index)
        places = self._expanded[1]
        number = step if places is None else int(places[step])
        loops = ", ".join(f"i{loop} = {i}" for loop, i in placed.iteration(number).items())
        return f"step {step}" + (f" ({loops})" if loops else "")

    def name(self, step: int) -> str:
        """``instruction 3 `SIGNAL LOAD, ACT_READY` at step 12 (i0 = 1)``."""
        index = int(self.trace[step, TRACE_INSTRUCTION])
        return f"instruction {index} `{self.instruction_at(step)}` at {self.where(step)}"

    def error(self, step: int, problem: str) -> ProgramError:
        """Error that names the instruction of a step, the step, and the number of rows."""
        index = int(self.trace[step, TRACE_INSTRUCTION])
        past = f" after {self.past}" if self.past else ""
        where = f"{self.where(step)}, M = {self.rows}{past}: "
        return instruction_error(index, self.instruction_at(step), where + problem)

    def require(self, operands: Operands, requirement: Requirement) -> None:
        """Check a requirement on all steps of a class.

        Raises
        ------
        ProgramError
            Names the first step where it does not hold, and the range that this one wanted.
        """
        holds, problem, first, last = requirement
        holds = np.broadcast_to(holds, operands.index.shape)
        if holds.all():
            return
        at = int(np.argmin(holds))
        if first is not None and last is not None:
            problem += f": [{first[at]}, {last[at]})"
        raise self.error(int(operands.index[at]), problem)
