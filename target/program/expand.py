"""Expansion of a program for a number of rows: every step with its evaluated operands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import (
    TRACE_COLUMNS,
    TRACE_ENGINE,
    TRACE_INSTRUCTION,
    TRACE_OPCODE,
    End,
    Instruction,
    Loop,
)
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.isa.operands import Address, Affine, Condition, Extent, M, When

MAX_STEPS = 2**21
"""Steps of one run: more are refused, so that no program runs away with the memory."""


@dataclass(frozen=True)
class Placed:
    """An instruction and where its steps are in the trace.

    Attributes
    ----------
    index : int
        Of the instruction in the program.
    instruction : Instruction
        The instruction, no LOOP or END.
    first : int
        Step of the first iteration.
    loops, trips, strides : tuple of int
        Loops around it, outermost first, their trip counts, and the steps from one iteration to
        the next.
    """

    index: int
    instruction: Instruction
    first: int
    loops: tuple[int, ...]
    trips: tuple[int, ...]
    strides: tuple[int, ...]

    def iteration(self, step: int) -> dict[int, int]:
        """Loop variables of a step of this instruction."""
        rest, variables = step - self.first, {}
        for loop, stride in zip(self.loops, self.strides, strict=True):
            variables[loop], rest = divmod(rest, stride)
        return variables


def trip_counts(instructions: tuple[Instruction, ...], rows: int) -> dict[int, int]:
    """Trip count of every loop for M = `rows`."""
    return {
        i.loop: math.ceil((rows if i.limit == M else i.limit) / i.step)
        for i in instructions
        if isinstance(i, Loop)
    }


def body_steps(instructions: tuple[Instruction, ...], trips: Mapping[int, int]) -> dict[int, int]:
    """Steps of one iteration of every loop; those of the program under -1."""
    sizes, counts = {}, [0]
    open_loops = [-1]
    for instruction in instructions:
        if isinstance(instruction, Loop):
            open_loops.append(instruction.loop)
            counts.append(0)
        elif isinstance(instruction, End):
            loop, count = open_loops.pop(), counts.pop()
            sizes[loop] = count
            counts[-1] += count * trips[loop]
        else:
            counts[-1] += 1
    return {**sizes, -1: counts[0]}


def place(instructions: tuple[Instruction, ...], rows: int) -> Iterator[Placed]:
    """Find the steps of every instruction for M = `rows`."""
    trips = trip_counts(instructions, rows)
    sizes = body_steps(instructions, trips)
    loops: list[int] = []
    starts, at = [], 0
    for index, instruction in enumerate(instructions):
        if isinstance(instruction, Loop):
            loops.append(instruction.loop)
            starts.append(at)
        elif isinstance(instruction, End):
            loop = loops.pop()
            at = starts.pop() + trips[loop] * sizes[loop]
        else:
            counts, strides = [trips[i] for i in loops], [sizes[i] for i in loops]
            yield Placed(index, instruction, at, tuple(loops), tuple(counts), tuple(strides))
            at += 1


def expand(header: Header, instructions: tuple[Instruction, ...], rows: int) -> NDArray[np.int64]:
    """Expand a program, see `Program.bind`."""
    if not 1 <= rows <= header.op.m:
        raise ProgramError(
            f"program {header.label!r} takes 1 to {header.op.m} rows, it was bound to {rows}"
        )
    trips = trip_counts(instructions, rows)
    steps = body_steps(instructions, trips)[-1]
    if steps > MAX_STEPS:
        raise ProgramError(
            f"program {header.label!r} has {steps} steps for {rows} rows, at most {MAX_STEPS} are "
            "allowed; use larger tiles"
        )
    trace = np.empty((steps, TRACE_COLUMNS), dtype=np.int64)
    for placed in place(instructions, rows):
        _fill(trace, placed, trips, rows)
    return trace


def _fill(trace: NDArray[np.int64], placed: Placed, trips: Mapping[int, int], rows: int) -> None:
    """Write all steps of one instruction."""
    row_bytes, column_bytes = trace.strides
    strides = (*(stride * row_bytes for stride in placed.strides), column_bytes)
    view = as_strided(trace[placed.first :], (*placed.trips, TRACE_COLUMNS), strides)
    depth = len(placed.loops)
    variables = {
        loop: np.arange(count).reshape(-1, *(1,) * (depth - 1 - level))
        for level, (loop, count) in enumerate(zip(placed.loops, placed.trips, strict=True))
    }
    # A block of whole rows first: the trace is written once, row by row, not column by column.
    block = np.zeros(view.shape, dtype=np.int64)
    instruction = placed.instruction
    block[..., TRACE_OPCODE] = instruction.OPCODE
    block[..., TRACE_INSTRUCTION] = placed.index
    block[..., TRACE_ENGINE] = instruction.engine
    for field in fields(instruction):
        value = evaluate(getattr(instruction, field.name), variables, trips, rows)
        block[..., instruction.column(field.name)] = value
    view[...] = block


def evaluate(
    operand: Any, variables: Mapping[int, Any], trips: Mapping[int, int], rows: int
) -> Any:
    """Value of an operand for loop variables given as numbers or arrays that broadcast."""
    if isinstance(operand, Affine):
        return operand.evaluate(variables)
    if isinstance(operand, Extent):
        if operand.limit is None:
            return operand.size
        limit = rows if operand.limit == M else operand.limit
        return np.minimum(operand.size, limit - operand.start.evaluate(variables))
    if isinstance(operand, Address):
        visit: Any = 0
        for loop in operand.rotate:
            visit = visit * trips[loop] + variables[loop]
        slot = operand.slot_bytes * (visit % operand.slots)
        return operand.base + slot + operand.offset.evaluate(variables)
    if isinstance(operand, Condition):
        if operand.when == When.FIRST:
            return variables[operand.loop] == 0
        if operand.when == When.LAST:
            return variables[operand.loop] == trips[operand.loop] - 1
        return operand.when == When.ALWAYS
    return -1 if operand is None else operand
