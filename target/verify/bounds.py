"""Bounds of every step: what its class requires, and bytes in their slots."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa.base import Requirement
from sparqle_tvm.target.isa.header import Allocation, ProgramHeader
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.program.bound import BoundProgram, Operands


def check_bounds(run: BoundProgram[Any], operands: Operands, *, slots: bool = True) -> None:
    """Check all steps of one instruction class.

    What it touches must lie in one slot of one allocation, without `slots` in the buffer.

    Raises
    ------
    ProgramError
        Names the first step that is out of bounds.
    """
    header = run.header
    for requirement in operands.cls.requirements(header, run.rows, operands):
        run.require(operands, requirement)
    for access in operands.cls.accesses(header):
        name, buffer = access.operand, access.tile.buffer
        element = access.tile.element_bytes(header)
        low, row_bytes = operands[name], access.row_bytes(header, operands)
        problem = f"{name} is not a multiple of {element} bytes"
        run.require(operands, Requirement(low % element == 0, problem))
        capacity = header.buffer_bytes(buffer)
        # Divided, because products of wrong numbers could overflow.
        fits = operands[access.rows] <= capacity // np.maximum(row_bytes, 1)
        high = low + np.where(fits, access.nbytes(header, operands), capacity + 1)
        inside = (low >= 0) & (high <= capacity)
        if slots:
            inside &= within_slot(header, buffer, low, high)
        where = f"its slot of {buffer.name}" if slots else f"{buffer.name} of {capacity} bytes"
        problem = f"{name} leaves {where}"
        run.require(operands, Requirement(inside, problem, low, high))


def within_slot(
    header: ProgramHeader, buffer: Buffer, low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether bytes [low, high) lie in one slot of one allocation of `buffer`."""
    parts = sorted(
        (a for a in header.allocations if a.buffer == buffer and a.slots and a.slot_bytes),
        key=lambda a: a.base,
    )
    if not parts:
        return np.zeros(low.shape, dtype=np.bool_)
    number = np.searchsorted([a.base for a in parts], low, side="right") - 1
    base, slots, slot_bytes = (
        _field(parts, name, number) for name in ("base", "slots", "slot_bytes")
    )
    slot = (low - base) // slot_bytes
    inside = (number >= 0) & (slot < slots) & (high <= base + (slot + 1) * slot_bytes)
    return np.asarray(inside)


def _field(parts: list[Allocation], name: str, number: NDArray[np.int64]) -> NDArray[np.int64]:
    values = np.array([getattr(part, name) for part in parts], dtype=np.int64)
    return np.asarray(values[np.maximum(number, 0)])
