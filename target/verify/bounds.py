"""Bounds of every step: tiles in their tensors, bytes in their slots. Vectorised over the steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa import (
    LdChn,
    LdGrp,
    LdMsb,
    LdWgt,
    StEnc,
    StOut,
)
from sparqle_tvm.target.isa.header import Allocation, Header
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.program.structure import buffer_of
from sparqle_tvm.target.verify.bound import Run, Steps
from sparqle_tvm.target.verify.tables import TouchColumn
from sparqle_tvm.target.verify.touches import touch_rows, touches_of

_EXTENTS = ("rows", "cols", "m", "n", "k")


def check_bounds(run: Run, steps: Steps) -> None:
    """Check all steps of one instruction class.

    Raises
    ------
    ProgramError
        Names the first step that is out of bounds.
    """
    names = steps.cls.TRACE
    for name in _EXTENTS:
        if name in names:
            _require(run, steps, steps[name] >= 1, f"{name} is empty")
            limit = _extent_limit(run, steps, name)
            _require(run, steps, steps[name] <= limit, f"{name} is larger than its tensor")
    if "rows" in names:
        _check_tile(run, steps)
    if "row_split" in names:
        array_rows = run.header.accelerator.rows
        split = steps["row_split"]
        fits = (split == 1) | (split <= array_rows // steps["m"])
        _require(run, steps, fits, f"m * row_split is larger than the {array_rows} rows of PEs")
    for touch in touches_of(run.header, steps.cls):
        table = touch_rows(run.header, steps, touch)
        low, high = table[:, TouchColumn.LO], table[:, TouchColumn.HI]
        element = touch.element_bytes(run.header)
        aligned = low % element == 0
        _require(run, steps, aligned, f"{touch.operand} is not a multiple of {element} bytes")
        buffer = buffer_of(steps.cls, touch.operand)
        inside = within_slot(run.header, buffer, low, high)
        _require(run, steps, inside, f"{touch.operand} leaves its slot of {buffer.name}", low, high)


def _extent_limit(run: Run, steps: Steps, name: str) -> int:
    """Extent of the tensor dimension behind an operand."""
    header = run.header
    if name == "k":
        return header.op.k
    if name == "cols":
        return header.op.n if steps.cls in (StOut, StEnc) else header.op.k
    channels = name == "n" or (name == "rows" and steps.cls in (LdWgt, LdGrp, LdChn))
    return header.op.n if channels else run.rows


def _check_tile(run: Run, steps: Steps) -> None:
    """Tiles of loads and stores lie within their tensor; K chunks are whole."""
    header = run.header
    row, rows = steps["row"], steps["rows"]
    limit = _extent_limit(run, steps, "rows")
    inside = (row >= 0) & (row + rows <= limit)
    _require(run, steps, inside, f"rows leave the tensor's {limit}", row, row + rows)
    if steps.cls in (LdMsb, StEnc):
        unit = header.accelerator.rows
        on_pointer = (row % unit == 0) & ((rows % unit == 0) | (row + rows == limit))
        _require(run, steps, on_pointer, f"there are tile pointers every {unit} rows only")
    if "cols" not in steps.cls.TRACE:
        return
    col, cols = steps["col"], steps["cols"]
    limit = _extent_limit(run, steps, "cols")
    inside = (col >= 0) & (col + cols <= limit)
    _require(run, steps, inside, f"columns leave the tensor's {limit}", col, col + cols)
    if steps.cls is not StOut:
        chunk = header.op.out_chunk if steps.cls is StEnc else header.k_chunk
        whole = (col % chunk == 0) & (cols == np.minimum(chunk, limit - col))
        _require(run, steps, whole, f"not a whole chunk of {chunk} columns", col, col + cols)


def within_slot(
    header: Header, buffer: Buffer, low: NDArray[np.int64], high: NDArray[np.int64]
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


def _require(
    run: Run,
    steps: Steps,
    holds: NDArray[np.bool_],
    problem: str,
    first: NDArray[np.int64] | None = None,
    last: NDArray[np.int64] | None = None,
) -> None:
    """Refuse the first step for which `holds` is false; [first, last) is what it wanted."""
    if holds.all():
        return
    at = int(np.argmin(holds))
    if first is not None and last is not None:
        problem += f": [{first[at]}, {last[at]})"
    raise run.error(int(steps.index[at]), problem)
