"""Which bytes every step touches, and as what: the table that the verifier checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.access import ACC, Access, Mode, Tile
from sparqle_tvm.target.isa.base import Kind
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.program.bound import BoundProgram, Operands


class Tag(IntEnum):
    """What lies in a tile, where that matters; other kinds of tiles have numbers from 1 on."""

    DEAD = -1
    ACC = 0


class TouchColumn(IntEnum):
    """Columns of the table of touches: bytes [LO, HI) of a buffer, as a tile of a tensor.

    AXIS: 0 if its rows are rows of activations, 1 for channels. DIVISIBLE: whether rows of it may
    be read alone. ROW and COL are -1 where they follow from the step's other operands.
    """

    MODE = 0
    BUFFER = 1
    LO = 2
    HI = 3
    TAG = 4
    ROW = 5
    ROWS = 6
    COL = 7
    COLS = 8
    AXIS = 9
    DIVISIBLE = 10


@dataclass(frozen=True, eq=False)
class TouchTable:
    """All touches of a run.

    Attributes
    ----------
    kinds, args : ndarray of int32, shape (steps,)
        `Kind` of every step; queue of WAIT and SIGNAL, pass of an MMA, number of a store.
    firsts : ndarray of int32, shape (steps + 1,)
        Where the touches of every step begin.
    touches : ndarray of int64, shape (touches, len(TouchColumn))
        See `TouchColumn`.
    """

    kinds: NDArray[np.int32]
    args: NDArray[np.int32]
    firsts: NDArray[np.int32]
    touches: NDArray[np.int64]


def touch_table(run: BoundProgram) -> TouchTable:
    """Build the table."""
    steps = len(run)
    kinds = np.full(steps, Kind.PLAIN, dtype=np.int32)
    args = np.maximum(run.queues, 0).astype(np.int32)
    counts = np.zeros(steps + 1, dtype=np.int32)
    stored = 0
    for operands in run.classes:
        cls, index = operands.cls, operands.index
        kinds[index] = cls.KIND
        if cls.KIND == Kind.MMA:
            args[index] = cls.PASS
        if cls.KIND == Kind.STORE:
            args[index] = stored + np.arange(len(index))
            stored += len(index)
        counts[index + 1] = len(cls.accesses(run.header))
    firsts = np.cumsum(counts, dtype=np.int32)
    touches = np.zeros((int(firsts[-1]), len(TouchColumn)), dtype=np.int64)
    tags = _tags()
    for operands in run.classes:
        for number, access in enumerate(operands.cls.accesses(run.header)):
            rows = firsts[operands.index] + number
            touches[rows] = _touch_rows(run.header, operands, access, tags)
    return TouchTable(kinds, args, firsts, touches)


def _tags() -> dict[Tile, int]:
    """Number of every kind of tile."""
    tiles = [ACC, *(access.tile for cls in INSTRUCTIONS.values() for access in cls.ACCESSES)]
    return {tile: Tag.ACC + number for number, tile in enumerate(dict.fromkeys(tiles))}


def _touch_rows(
    header: Header, operands: Operands, access: Access, tags: dict[Tile, int]
) -> NDArray[np.int64]:
    """Rows of the table for one access of all steps of a class."""
    mode: Any = int(access.mode)
    if access.mode == Mode.UPDATE and "zero" in operands.cls.TRACE:
        mode = np.where(operands["zero"] != 0, int(Mode.WRITE), mode)
    low, tile = operands[access.operand], access.tile
    columns: dict[TouchColumn, Any] = {
        TouchColumn.MODE: mode,
        TouchColumn.BUFFER: tile.buffer,
        TouchColumn.LO: low,
        TouchColumn.HI: low + access.nbytes(header, operands),
        TouchColumn.TAG: tags[tile],
        TouchColumn.ROW: operands[access.row] if access.row else -1,
        TouchColumn.ROWS: operands[access.rows],
        TouchColumn.COL: operands[access.col] if access.col else -1,
        TouchColumn.COLS: operands[access.cols] if access.cols else 0,
        TouchColumn.AXIS: tile.axis == "n",
        TouchColumn.DIVISIBLE: tile.divisible(header),
    }
    table = np.zeros((len(operands), len(TouchColumn)), dtype=np.int64)
    for column, values in columns.items():
        table[:, column] = values
    return table
