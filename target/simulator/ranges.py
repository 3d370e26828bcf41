"""Which bytes on chip every step reads and writes, in one address space, for the timing.

Every requirement of the instructions is checked here, so that nothing the simulator does later can
leave buffers and tensors, whatever the program says.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparqle_tvm.target.isa.access import Mode
from sparqle_tvm.target.isa.header import ProgramHeader
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bound import BoundProgram, InstructionClass, Int64s
from sparqle_tvm.target.program.program import HeaderKind
from sparqle_tvm.target.verify.bounds import check_bounds

READS, WRITES = 5, 2
"""Most tiles that an instruction reads, and that it writes."""


@dataclass(frozen=True, eq=False)
class Ranges:
    """Ranges [begin, end) of on-chip bytes; ACT, WGT and ACC lie behind each other.

    Attributes
    ----------
    reads : ndarray of int64, shape (steps, READS, 2)
        What a step reads, in the order of its accesses. Empty ones are (0, 0).
    writes : ndarray of int64, shape (steps, WRITES, 2)
        What it writes; what it updates is here only.
    """

    reads: Int64s
    writes: Int64s


def position(cls: InstructionClass, header: ProgramHeader, operand: str) -> int:
    """Number of an operand among the ranges that its class reads, or among those it writes."""
    accesses = cls.accesses(header)
    mode = next(a.mode for a in accesses if a.operand == operand)
    same = [a.operand for a in accesses if (a.mode == Mode.READ) == (mode == Mode.READ)]
    return same.index(operand)


def buffer_base(header: ProgramHeader, buffer: Buffer) -> int:
    """Where a buffer begins in the common address space."""
    return sum(header.buffer_bytes(other) for other in Buffer if other < buffer)


_CACHED_STEPS = 1 << 19
"""Steps of all programs that are kept bound: some hundred bytes each."""

_bound: OrderedDict[tuple[Program[Any], str, int, int], BoundProgram[Any]] = OrderedDict()


def bind(program: Program[HeaderKind], rows: int, past: int = 0) -> BoundProgram[HeaderKind]:
    """Bind and check a program; those that were used last are kept.

    Raises
    ------
    ProgramError
        If it cannot be bound to these sizes, or an instruction leaves a buffer or a tensor.
    """
    # Programs whose ops differ in the label only are equal, but have different names.
    key = (program, program.header.label, rows, past)
    bound = _bound.get(key)
    if bound is None:
        bound = BoundProgram(program, rows, past)
        bound.once(find_ranges)
        _bound[key] = bound
        while len(_bound) > 1 and sum(map(len, _bound.values())) > _CACHED_STEPS:
            _bound.popitem(last=False)
    _bound.move_to_end(key)
    return bound


def find_ranges(bound: BoundProgram[Any]) -> Ranges:
    """The ranges of all steps, for `BoundProgram.once`; every requirement on them is checked."""
    header = bound.header
    reads = np.zeros((len(bound), READS, 2), dtype=np.int64)
    writes = np.zeros((len(bound), WRITES, 2), dtype=np.int64)
    for operands in bound.classes:
        check_bounds(bound, operands, slots=False)
        for access in operands.cls.accesses(header):
            ranges = reads if access.mode == Mode.READ else writes
            at = (operands.index, position(operands.cls, header, access.operand))
            begin = operands[access.operand] + buffer_base(header, access.tile.buffer)
            ranges[*at, 0] = begin
            ranges[*at, 1] = begin + access.nbytes(header, operands)
    return Ranges(reads, writes)
