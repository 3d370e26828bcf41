"""Checks that hold for every program, whatever it computes: made when it is constructed.

After them a program can be printed, saved and expanded without surprises: loops are balanced,
operands depend only on loops around them, buffers, queues and numbers exist, and each instruction
is one that the header's scheme and formats know.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import End, If, Instruction, Loop, Presence, Signal, Wait
from sparqle_tvm.target.isa.header import ProgramHeader, Queue
from sparqle_tvm.target.isa.operands import (
    BLOCKS,
    KEYS,
    MAX_LOOPS,
    MAX_NUMBER,
    Address,
    Affine,
    Extent,
)

MAX_SLOTS = 2**16
MAX_INSTRUCTIONS = 2**16


def instruction_error(index: int, instruction: Instruction, problem: str) -> ProgramError:
    """Error that names an instruction by index and text."""
    return ProgramError(f"instruction {index} `{instruction}`: {problem}")


def check_structure(header: ProgramHeader, instructions: tuple[Instruction, ...]) -> None:
    """Check a program, see the module.

    Raises
    ------
    ProgramError
        Names the instruction.
    """
    if len(instructions) > MAX_INSTRUCTIONS:
        raise ProgramError(f"{len(instructions)} instructions; at most {MAX_INSTRUCTIONS}")
    # Conditions are noted as -1: they have no variable.
    open_loops: list[int] = []
    loops = 0
    for index, instruction in enumerate(instructions):
        problem = _problem(header, instruction, open_loops, loops)
        if problem:
            raise instruction_error(index, instruction, problem)
        if isinstance(instruction, Loop):
            open_loops.append(loops)
            loops += 1
        elif isinstance(instruction, If):
            open_loops.append(-1)
        elif isinstance(instruction, End):
            open_loops.pop()
    if open_loops and open_loops[-1] < 0:
        raise ProgramError("an IF has no END")
    if open_loops:
        raise ProgramError(f"loop i{open_loops[-1]} has no END")


def _problem(
    header: ProgramHeader, instruction: Instruction, open_loops: list[int], loops: int
) -> str | None:
    """What is wrong with an instruction, given the loops around it and the loops before it."""
    if instruction.SERVES not in ("", header.KIND):
        return f"is an instruction of {instruction.SERVES} programs, this one is {header.KIND}"
    if isinstance(instruction, Loop):
        return _loop_problem(header, instruction, loops)
    if isinstance(instruction, End):
        return None if open_loops else "no loop is open"
    if isinstance(instruction, Wait | Signal):
        known = instruction.queue in tuple(Queue)
        return None if known else f"queue {instruction.queue} does not exist"
    if isinstance(instruction, If) and instruction.what not in tuple(Presence):
        return f"there is no condition {instruction.what}"
    for field in fields(instruction):
        problem = _operand_problem(instruction, field.name, open_loops)
        if problem:
            return f"{field.name}: {problem}"
    return _format_problem(header, instruction)


def _loop_problem(header: ProgramHeader, loop: Loop, loops: int) -> str | None:
    if loop.loop != loops or loops >= MAX_LOOPS:
        return f"loops are numbered in order, this is i{loops}, of at most {MAX_LOOPS}"
    if loop.step < 1 or (not isinstance(loop.limit, str) and loop.limit < 1):
        return "limit and step must be at least 1"
    if loop.limit in (BLOCKS, KEYS) and header.KIND != "attention":
        return f"a {header.KIND} program has no {loop.limit}"
    return None


def _operand_problem(instruction: Instruction, name: str, open_loops: list[int]) -> str | None:
    value: Any = getattr(instruction, name)
    outside = [loop for loop in getattr(value, "loops", ()) if loop not in open_loops]
    if outside:
        return f"loop i{outside[0]} is not open here"
    if any(abs(number) >= MAX_NUMBER for number in _numbers(value)):
        return "a number is too large"
    if isinstance(value, Extent) and value.size < 1:
        return "an extent must be at least 1"
    if isinstance(value, int) and value < 1:
        return "must be at least 1"
    if not isinstance(value, Address):
        return None
    buffer = next(a.tile.buffer for a in instruction.ACCESSES if a.operand == name)
    if value.buffer != buffer:
        return f"must lie in {buffer.name}"
    if not 1 <= value.slots <= MAX_SLOTS:
        return f"{value.slots} slots; there must be 1 to {MAX_SLOTS}"
    if len(set(value.rotate)) != len(value.rotate):
        return "a loop rotates twice"
    return None


def _numbers(value: Any) -> list[int]:
    if isinstance(value, Affine):
        return [value.const, *(c for _, c in value.terms)]
    if isinstance(value, Extent):
        limit = [value.limit] if isinstance(value.limit, int) else []
        return [value.size, *limit, *_numbers(value.start)]
    if isinstance(value, Address):
        return [value.base, value.slot_bytes, value.ahead, *_numbers(value.offset)]
    return [value] if isinstance(value, int) else []


def _format_problem(header: ProgramHeader, instruction: Instruction) -> str | None:
    """Whether the header's scheme and formats have this instruction, with these operands."""
    problem = instruction.problem(header)
    if problem:
        return problem
    optional = {field.name for field in fields(instruction) if "None" in str(field.type)}
    for access in instruction.ACCESSES:
        lacking = access.tile.lacking(header)
        if access.operand not in optional and lacking:
            return lacking
    for access in instruction.ACCESSES:
        exists, given = access.exists(header), getattr(instruction, access.operand) is not None
        if access.operand in optional and exists != given:
            return f"{access.operand}: must {'not be' if exists else 'be'} none with this header"
    return None
