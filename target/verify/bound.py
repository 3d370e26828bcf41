"""A program bound to a number of rows, as the verifier looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa import (
    TRACE_ENGINE,
    TRACE_INSTRUCTION,
    TRACE_OPCODE,
    TRACE_OPERANDS,
    Instruction,
)
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.program.expand import expand, place
from sparqle_tvm.target.program.structure import instruction_error


@dataclass(frozen=True, eq=False)
class Steps:
    """All steps of one instruction class.

    Attributes
    ----------
    cls : type of Instruction
        The class.
    index : ndarray of int64, shape (n,)
        Their place in the trace.
    operands : ndarray of int64, shape (operands, n)
        Evaluated, in the order of `TRACE`.
    """

    cls: type[Instruction]
    index: NDArray[np.int64]
    operands: NDArray[np.int64]

    def __getitem__(self, operand: str) -> NDArray[np.int64]:
        """Values of an operand."""
        return np.asarray(self.operands[self.cls.TRACE.index(operand)])


@dataclass(frozen=True, eq=False)
class Run:
    """A program bound to `rows` rows.

    Attributes
    ----------
    header : Header
        Of the program.
    instructions : tuple of Instruction
        Of the program.
    rows : int
        M.
    """

    header: Header
    instructions: tuple[Instruction, ...]
    rows: int

    @cached_property
    def trace(self) -> NDArray[np.int64]:
        """The steps, see `Program.bind`."""
        return expand(self.header, self.instructions, self.rows)

    @cached_property
    def opcodes(self) -> NDArray[np.int64]:
        """Opcode of every step."""
        return np.ascontiguousarray(self.trace[:, TRACE_OPCODE])

    @cached_property
    def engines(self) -> NDArray[np.int32]:
        """Engine of every step."""
        return self.trace[:, TRACE_ENGINE].astype(np.int32)

    def steps_of(self, cls: type[Instruction]) -> Steps:
        """All steps of a class."""
        index = np.flatnonzero(self.opcodes == cls.OPCODE)
        columns = slice(TRACE_OPERANDS, TRACE_OPERANDS + len(cls.TRACE))
        operands = np.ascontiguousarray(self.trace[index, columns].T)
        return Steps(cls, index, operands)

    def instruction_at(self, step: int) -> Instruction:
        """The instruction of a step."""
        return self.instructions[int(self.trace[step, TRACE_INSTRUCTION])]

    def where(self, step: int) -> str:
        """``step 12 (i0 = 1, i1 = 0)``."""
        index = int(self.trace[step, TRACE_INSTRUCTION])
        placed = next(p for p in place(self.instructions, self.rows) if p.index == index)
        loops = ", ".join(f"i{loop} = {i}" for loop, i in placed.iteration(step).items())
        return f"step {step}" + (f" ({loops})" if loops else "")

    def name(self, step: int) -> str:
        """``instruction 3 `SIGNAL LOAD, ACT_READY` at step 12 (i0 = 1)``."""
        index = int(self.trace[step, TRACE_INSTRUCTION])
        return f"instruction {index} `{self.instructions[index]}` at {self.where(step)}"

    def error(self, step: int, problem: str) -> ProgramError:
        """Error that names the instruction of a step, the step, and the number of rows."""
        index = int(self.trace[step, TRACE_INSTRUCTION])
        where = f"{self.where(step)}, M = {self.rows}: "
        return instruction_error(index, self.instructions[index], where + problem)
