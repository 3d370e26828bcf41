from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from handmade import Tiles, dense_program, make_header
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import End, Loop, Wait
from sparqle_tvm.target.isa.compute import MmaLsb
from sparqle_tvm.target.isa.load import LdLsb
from sparqle_tvm.target.isa.operands import (
    Address,
    Affine,
    Buffer,
    Condition,
    Extent,
    M,
    When,
)
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program import expand as expand_module
from sparqle_tvm.target.program.expand import MAX_STEPS, place

HEADER = make_header(20, 10, 40, 16)


def run(program: Program, rows: int) -> list[list[int]]:
    """The trace, by running the loops one iteration after the other."""
    code = program.instructions
    trips = {
        i.loop: math.ceil((rows if i.limit == M else i.limit) / i.step)
        for i in code
        if isinstance(i, Loop)
    }
    steps: list[list[int]] = []

    def value(operand: Any, at: dict[int, int]) -> int:
        if isinstance(operand, Affine):
            return operand.const + sum(c * at[loop] for loop, c in operand.terms)
        if isinstance(operand, Extent):
            limit = rows if operand.limit == M else operand.limit
            whole = operand.size
            return whole if limit is None else min(whole, limit - value(operand.start, at))
        if isinstance(operand, Address):
            visit = 0
            for loop in operand.rotate:
                visit = visit * trips[loop] + at[loop]
            slot = operand.slot_bytes * (visit % operand.slots)
            return operand.base + slot + value(operand.offset, at)
        if isinstance(operand, Condition):
            first, last = at.get(operand.loop) == 0, False
            if operand.when == When.LAST:
                last = at[operand.loop] == trips[operand.loop] - 1
            return int({0: False, 1: True, 2: first, 3: last}[operand.when])
        return -1 if operand is None else int(operand)

    def block(index: int, at: dict[int, int]) -> int:
        """Run from `index` to the end of its block; returns the index behind it."""
        while index < len(code):
            i = code[index]
            if isinstance(i, End):
                return index + 1
            if isinstance(i, Loop):
                for number in range(trips[i.loop]):
                    behind = block(index + 1, at | {i.loop: number})
                index = behind
                continue
            operands = [value(getattr(i, field.name), at) for field in fields(i)]
            row = [i.OPCODE, index, i.engine, *operands]
            steps.append(row + [0] * (16 - len(row)))
            index += 1
        return index

    block(0, {})
    return steps


@pytest.mark.parametrize("rows", [1, 7, 8, 13, 20])
@pytest.mark.parametrize("tiles", [Tiles(8, 4), Tiles(4, 3, rows_outer=False, slots=3)])
def test_a_trace_is_what_the_loops_do(rows, tiles):
    program = dense_program(HEADER, tiles)
    assert program.bind(rows).tolist() == run(program, rows)


numbers = st.integers(-100, 100)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Loops around loads and MMAs, in any nesting, with any operands."""
    code: list[Any] = []
    count = 0

    def affine(loops: list[int]) -> Affine:
        terms = draw(st.lists(st.tuples(st.sampled_from(loops), numbers), max_size=3))
        return Affine(draw(numbers), tuple(terms))

    def address(buffer: Buffer, loops: list[int]) -> Address:
        rotate = draw(st.lists(st.sampled_from(loops), unique=True, max_size=3))
        slots, slot_bytes = draw(st.integers(1, 4)), draw(st.integers(0, 99))
        return Address(buffer, draw(numbers), tuple(rotate), slots, slot_bytes, affine(loops))

    def extent(loops: list[int]) -> Extent:
        limit = draw(st.one_of(st.none(), st.just(M), st.integers(0, 50)))
        return Extent(draw(st.integers(1, 50)), limit, affine(loops))

    def block(loops: list[int], depth: int) -> None:
        nonlocal count
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["loop", "load", "mma", "wait"]))
            if kind == "loop" and depth < 4:
                loop, count = count, count + 1
                limit = draw(st.one_of(st.just(M), st.integers(1, 9)))
                code.append(Loop(loop, limit, draw(st.integers(3, 9))))
                block([*loops, loop], depth + 1)
                code.append(End())
            elif kind == "load" and loops:
                tile = (affine(loops), extent(loops), affine(loops), extent(loops))
                code.append(LdLsb(address(Buffer.ACT, loops), *tile))
            elif kind == "mma" and loops:
                zero = Condition(draw(st.sampled_from(When)), draw(st.sampled_from(loops)))
                act, wgt = address(Buffer.ACT, loops), address(Buffer.WGT, loops)
                sizes = (extent(loops), extent(loops), extent(loops))
                acc = address(Buffer.ACC, loops)
                code.append(MmaLsb(acc, act, wgt, None, *sizes, zero, draw(st.integers(1, 9))))
            else:
                code.append(Wait(draw(st.integers(0, 9))))

    block([], 0)
    return Program(HEADER, tuple(code))


@given(programs(), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_any_trace_is_what_the_loops_do(program, rows):
    assert program.bind(rows).tolist() == run(program, rows)
    assert Program.from_bytes(program.to_bytes()) == program


def test_places_of_an_instruction():
    program = dense_program(HEADER, Tiles(8, 4))
    trace = program.bind(13)
    for placed in place(program.instructions, {"M": 13}):
        for step in np.flatnonzero(trace[:, 1] == placed.index):
            at = placed.iteration(int(step))
            steps = zip(placed.loops, placed.strides, strict=True)
            assert placed.first + sum(at[loop] * stride for loop, stride in steps) == step
            assert all(at[loop] < n for loop, n in zip(placed.loops, placed.trips, strict=True))


@pytest.mark.parametrize("rows", [0, -1, 21])
def test_rows_out_of_range_are_refused(rows):
    with pytest.raises(ProgramError, match=f"takes 1 to 20 rows, it was bound to {rows}"):
        dense_program(HEADER, Tiles(8, 4)).bind(rows)


def test_a_program_without_end_is_refused():
    # 2^35 x 2^35 steps: counted, not run.
    loops = (Loop(0, 2**35, 1), Loop(1, 2**35, 1), Wait(0), End(), End())
    with pytest.raises(ProgramError, match=f"{2**70} steps for M = 1, at most {MAX_STEPS}"):
        Program(HEADER, loops).bind(1)
    # No step in it, no time in it.
    assert Program(HEADER, (*loops[:2], *loops[3:])).bind(1).shape == (0, 16)


def test_the_limit_of_steps_is_exact(monkeypatch):
    program = replace(dense_program(HEADER, Tiles(8, 4)))
    steps = len(program.bind(13))
    monkeypatch.setattr(expand_module, "MAX_STEPS", steps)
    assert len(program.bind(13)) == steps
    monkeypatch.setattr(expand_module, "MAX_STEPS", steps - 1)
    with pytest.raises(ProgramError, match="use larger tiles"):
        program.bind(13)
