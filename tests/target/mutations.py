"""Random damage to programs: every operand, every instruction, the tokens and the allocations."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from sparqle_tvm.target.isa.base import Instruction, Loop, Signal, Wait
from sparqle_tvm.target.isa.header import Allocation, Queue
from sparqle_tvm.target.isa.operands import Address, Affine, Condition, Extent, M, When
from sparqle_tvm.target.program import Program

_STEPS = (-64, -16, -8, -4, -2, -1, 1, 2, 4, 8, 16, 32, 64, 4096)


class Mutator:
    """Damages programs; equal seeds damage equally."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, program: Program) -> Program:
        """One to three random changes. Raises ProgramError where the structure is broken."""
        for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
            program = self._mutate(program)
        return program

    def _pick(self, items: Any) -> Any:
        return items[self.rng.integers(len(items))]

    def _mutate(self, program: Program) -> Program:
        code = list(program.instructions)
        at = int(self.rng.integers(len(code)))
        kind = self.rng.integers(12)
        if kind == 0:
            del code[at]
        elif kind == 1:
            other = int(self.rng.integers(len(code)))
            code[at], code[other] = code[other], code[at]
        elif kind == 2:
            code.insert(int(self.rng.integers(len(code) + 1)), code[at])
        elif kind == 3:
            tokens = list(program.header.tokens)
            queue = int(self.rng.integers(len(tokens)))
            tokens[queue] = max(0, tokens[queue] + int(self._pick((-1, 1))))
            return Program(replace(program.header, tokens=tuple(tokens)), program.instructions)
        elif kind == 4:
            return Program(self._allocations(program), program.instructions)
        else:
            code[at] = self._operand(code[at])
        return Program(program.header, tuple(code))

    def _allocations(self, program: Program) -> Any:
        allocations = list(program.header.allocations)
        at = int(self.rng.integers(len(allocations)))
        name = self._pick(("base", "slots", "slot_bytes"))
        changed: Allocation = replace(
            allocations[at], **{name: self._shift(getattr(allocations[at], name))}
        )
        allocations[at] = changed
        return replace(program.header, allocations=tuple(allocations))

    def _shift(self, value: int) -> int:
        return value + int(self._pick(_STEPS))

    def _operand(self, instruction: Instruction) -> Instruction:
        names = [field.name for field in fields(instruction)]
        if not names:
            return instruction
        name = self._pick(names)
        value = getattr(instruction, name)
        if isinstance(instruction, Wait | Signal):
            return replace(instruction, queue=self._pick(tuple(Queue)))
        if isinstance(instruction, Loop):
            name = self._pick(("limit", "step"))
            limit = self._pick((M, 10, 40, 13)) if name == "limit" else 0
            return replace(instruction, **{name: limit or max(1, self._shift(instruction.step))})
        return replace(instruction, **{name: self._value(value)})

    def _value(self, value: Any) -> Any:
        if isinstance(value, Address):
            return self._address(value)
        if isinstance(value, Extent):
            name = self._pick(("size", "limit", "start"))
            if name == "limit":
                return replace(value, limit=self._pick((None, M, 10, 40, 41, 9, 16)))
            return replace(value, **{name: self._value(getattr(value, name))})
        if isinstance(value, Affine):
            if not value.terms or self.rng.random() < 0.5:
                return value + self._pick(_STEPS)
            loop, _ = self._pick(value.terms)
            return value + Affine.loop(loop, int(self._pick(_STEPS)))
        if isinstance(value, Condition):
            return Condition(When(self.rng.integers(4)), int(self.rng.integers(3)))
        if isinstance(value, int):
            return self._shift(value)
        return value

    def _address(self, value: Address) -> Address:
        name = self._pick(("base", "slots", "slot_bytes", "offset", "rotate"))
        if name == "rotate":
            rotate = list(value.rotate)
            if rotate and self.rng.random() < 0.5:
                del rotate[int(self.rng.integers(len(rotate)))]
            else:
                self.rng.shuffle(rotate)
            return replace(value, rotate=tuple(rotate))
        return replace(value, **{name: self._value(getattr(value, name))})
