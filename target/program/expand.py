"""Expansion of a program for the sizes of a run: every step with its evaluated operands."""

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
    If,
    Instruction,
    Loop,
)
from sparqle_tvm.target.isa.header import ProgramHeader
from sparqle_tvm.target.isa.operands import Address, Affine, Condition, Extent, When

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
    guards : tuple of If
        Conditions around it. Steps are numbered as if all held.
    """

    index: int
    instruction: Instruction
    first: int
    loops: tuple[int, ...]
    trips: tuple[int, ...]
    strides: tuple[int, ...]
    guards: tuple[If, ...] = ()

    @property
    def variables(self) -> dict[int, NDArray[np.int64]]:
        """Loop variables of all its steps, as arrays that broadcast to the trip counts."""
        depth = len(self.loops)
        return {
            loop: np.arange(count).reshape(-1, *(1,) * (depth - 1 - level))
            for level, (loop, count) in enumerate(zip(self.loops, self.trips, strict=True))
        }

    def iteration(self, step: int) -> dict[int, int]:
        """Loop variables of a step of this instruction."""
        rest, variables = step - self.first, {}
        for loop, stride in zip(self.loops, self.strides, strict=True):
            variables[loop], rest = divmod(rest, stride)
        return variables


def trip_counts(instructions: tuple[Instruction, ...], limits: Mapping[str, int]) -> dict[int, int]:
    """Trip count of every loop, given the sizes of a run."""
    return {
        i.loop: math.ceil((limits[i.limit] if isinstance(i.limit, str) else i.limit) / i.step)
        for i in instructions
        if isinstance(i, Loop)
    }


def body_steps(instructions: tuple[Instruction, ...], trips: Mapping[int, int]) -> dict[int, int]:
    """Steps of one iteration of every loop; those of the program under -1."""
    sizes, counts = {}, [0]
    scopes: list[Loop | If] = []
    for instruction in instructions:
        if isinstance(instruction, Loop | If):
            scopes.append(instruction)
            counts.append(0)
        elif isinstance(instruction, End):
            scope, count = scopes.pop(), counts.pop()
            if isinstance(scope, Loop):
                sizes[scope.loop] = count
                count *= trips[scope.loop]
            counts[-1] += count
        else:
            counts[-1] += 1
    return {**sizes, -1: counts[0]}


def place(instructions: tuple[Instruction, ...], limits: Mapping[str, int]) -> Iterator[Placed]:
    """Find the steps of every instruction, as if all conditions held."""
    trips = trip_counts(instructions, limits)
    sizes = body_steps(instructions, trips)
    scopes: list[Loop | If] = []
    starts, at = [], 0
    for index, instruction in enumerate(instructions):
        if isinstance(instruction, Loop | If):
            scopes.append(instruction)
            starts.append(at)
        elif isinstance(instruction, End):
            scope, start = scopes.pop(), starts.pop()
            if isinstance(scope, Loop):
                at = start + trips[scope.loop] * sizes[scope.loop]
        else:
            loops = tuple(scope.loop for scope in scopes if isinstance(scope, Loop))
            counts, strides = [trips[i] for i in loops], [sizes[i] for i in loops]
            guards = tuple(scope for scope in scopes if isinstance(scope, If))
            yield Placed(index, instruction, at, loops, tuple(counts), tuple(strides), guards)
            at += 1


def expand(
    header: ProgramHeader, instructions: tuple[Instruction, ...], limits: Mapping[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Expand a program for the sizes of a run.

    Returns
    -------
    trace : ndarray of int64, shape (steps, 16)
        See `Program.bind`.
    places : ndarray of int64, shape (steps,), or None
        Numbers of the steps as `place` has them, if conditions leave some out.

    Raises
    ------
    ProgramError
        If there are too many steps.
    """
    trips = trip_counts(instructions, limits)
    steps = body_steps(instructions, trips)[-1]
    if steps > MAX_STEPS:
        sizes = ", ".join(f"{name} = {size}" for name, size in limits.items())
        raise ProgramError(
            f"program {header.label!r} has {steps} steps for {sizes}, at most {MAX_STEPS} are "
            "allowed; use larger tiles"
        )
    trace = np.empty((steps, TRACE_COLUMNS), dtype=np.int64)
    present = None
    if any(isinstance(instruction, If) for instruction in instructions):
        present = np.ones(steps, dtype=np.int64)
    for placed in place(instructions, limits):
        _fill(header, trace, placed, trips, limits)
        if present is not None and placed.guards:
            _steps_of(present, placed)[...] = _is_present(header, placed, limits)
    if present is None:
        return trace, None
    places = np.flatnonzero(present)
    return np.ascontiguousarray(trace[places]), places


def _steps_of(table: NDArray[np.int64], placed: Placed, *columns: int) -> NDArray[np.int64]:
    """What a table of all steps has of one instruction's, as an array of its loops."""
    strides = (*(stride * table.strides[0] for stride in placed.strides), *table.strides[1:])
    return as_strided(table[placed.first :], (*placed.trips, *columns), strides)


def _is_present(header: ProgramHeader, placed: Placed, limits: Mapping[str, int]) -> Any:
    """Whether all conditions around an instruction hold, for each of its steps."""
    variables = placed.variables
    holds: Any = True
    for guard in placed.guards:
        block, chunk = (value.evaluate(variables) for value in (guard.block, guard.chunk))
        holds = holds & header.has(guard.what, limits, block, chunk)
    return holds


def _fill(
    header: ProgramHeader,
    trace: NDArray[np.int64],
    placed: Placed,
    trips: Mapping[int, int],
    limits: Mapping[str, int],
) -> None:
    """Write all steps of one instruction."""
    view = _steps_of(trace, placed, TRACE_COLUMNS)
    variables = placed.variables
    # A block of whole rows first: the trace is written once, row by row, not column by column.
    block = np.zeros(view.shape, dtype=np.int64)
    instruction = placed.instruction
    block[..., TRACE_OPCODE] = instruction.OPCODE
    block[..., TRACE_INSTRUCTION] = placed.index
    block[..., TRACE_ENGINE] = instruction.engine
    operands = {}
    for field in fields(instruction):
        value = evaluate(getattr(instruction, field.name), variables, trips, limits)
        block[..., instruction.column(field.name)] = operands[field.name] = value
    for name, value in instruction.derive(header, limits, operands).items():
        block[..., instruction.column(name)] = value
    view[...] = block


def evaluate(
    operand: Any,
    variables: Mapping[int, Any],
    trips: Mapping[int, int],
    limits: Mapping[str, int],
) -> Any:
    """Value of an operand for loop variables given as numbers or arrays that broadcast."""
    if isinstance(operand, Affine):
        return operand.evaluate(variables)
    if isinstance(operand, Extent):
        if operand.limit is None:
            return operand.size
        limit = limits[operand.limit] if isinstance(operand.limit, str) else operand.limit
        return np.minimum(operand.size, limit - operand.start.evaluate(variables))
    if isinstance(operand, Address):
        visit: Any = operand.ahead
        for level, loop in enumerate(operand.rotate):
            visit = visit * (trips[loop] if level else 1) + variables[loop]
        slot = operand.slot_bytes * (visit % operand.slots)
        return operand.base + slot + operand.offset.evaluate(variables)
    if isinstance(operand, Condition):
        if operand.when == When.FIRST:
            return variables[operand.loop] == 0
        if operand.when == When.LAST:
            return variables[operand.loop] == trips[operand.loop] - 1
        return operand.when == When.ALWAYS
    return -1 if operand is None else operand
