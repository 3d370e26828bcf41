"""The instructions: meaning, operands, binary form, text and cost of each, in one place.

The engines execute a program beside each other, each its own instructions in order. LOAD moves
tiles from DRAM into the buffers ACT and WGT. MMA multiplies them into accumulators in ACC. STORE
drains accumulators into outputs and moves those to DRAM. VECTOR, in programs of attention, makes
probabilities of scores. Tokens order the engines.

A tile is (rows, columns) of a tensor in DRAM; "rows" are output channels for weights, "columns"
always count along K. `M` rows, `K` = `op.k`, `N` = `op.n`, k = `digit_bits`, g = `group_size`. On
chip a tile lies row by row, each row padded to a byte.

In the trace (`Program.bind`) a step is one row of int64: opcode, index of the instruction in
`Program.instructions`, engine, then the evaluated operands in the order of the class's `TRACE`,
and behind them what follows from those (`Instruction.DERIVED`).
An `Address` is evaluated to a byte address (-1 for None), a `Condition` to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa import attention, base, compute, load, vector
from sparqle_tvm.target.isa.base import Instruction
from sparqle_tvm.target.isa.operands import Reader

__all__ = ["INSTRUCTIONS", "read_instruction"]


def _instruction_classes() -> Iterator[type[Instruction]]:
    """Every class of the modules that has an opcode; the others are their bases."""
    for module in (base, load, compute, attention, vector):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Instruction) and value.OPCODE >= 0:
                yield value


INSTRUCTIONS: Mapping[int, type[Instruction]] = dict(
    sorted((cls.OPCODE, cls) for cls in _instruction_classes())
)
"""Every instruction class by its opcode."""


def read_instruction(reader: Reader) -> Instruction:
    """Read one instruction.

    Raises
    ------
    ProgramError
        If the opcode is unknown or an operand malformed.
    """
    opcode = reader.take(1)[0]
    if opcode not in INSTRUCTIONS:
        raise ProgramError(f"unknown opcode {opcode}")
    return INSTRUCTIONS[opcode].read(reader)
