"""Which bytes each instruction touches, and as what: the table that the verifier checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa import (
    Drain,
    Instruction,
    LdAct,
    LdChn,
    LdGrp,
    LdLsb,
    LdMsb,
    LdPbm,
    LdRow,
    LdSum,
    LdWgt,
    MmaDns,
    MmaLsb,
    MmaMin,
    MmaMsb,
    Signal,
    StEnc,
    StOut,
    Wait,
)
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.program.structure import buffer_of
from sparqle_tvm.target.verify.bound import Run, Steps
from sparqle_tvm.target.verify.tables import Kind, Mode, Tag, TouchColumn

_ByteCount = Callable[[Header, Any, Any], Any]


@dataclass(frozen=True)
class Touch:
    """One tile that an instruction touches.

    Attributes
    ----------
    operand : str
        Its address.
    mode : Mode
        How (accumulators of an MMA: WRITE where `zero` is set).
    tag : Tag
        As what.
    nbytes : callable
        Bytes of the tile from (header, rows, columns).
    rows, cols : str
        Operands with its extents; "" for no columns.
    row, col : str
        Operands with its place in the tensor; "" where it follows from what lies there.
    """

    operand: str
    mode: Mode
    tag: Tag
    nbytes: _ByteCount
    rows: str = "rows"
    cols: str = "cols"
    row: str = ""
    col: str = ""

    def element_bytes(self, header: Header) -> int:
        """Bytes of an element: addresses are multiples of it."""
        sizes = {
            Tag.SUM: header.sum_bytes,
            Tag.ROW: 4,
            Tag.ORDERED: 4,
            Tag.GRP: 2,
            Tag.CHN: 8 if header.op.group_size else 4,
            Tag.ACC: header.accumulator_bytes,
        }
        return sizes.get(self.tag, 1)


def _accumulators(header: Header, rows: Any, cols: Any) -> Any:
    return rows * cols * header.accumulator_bytes


def _row_parameters(header: Header, rows: Any, cols: Any) -> Any:
    return LdRow.onchip_bytes(header, rows)


def _channels(header: Header, rows: Any, cols: Any) -> Any:
    return LdChn.onchip_bytes(header, rows)


def _loaded(operand: str, tag: Tag, nbytes: _ByteCount) -> Touch:
    return Touch(operand, Mode.WRITE, tag, nbytes, row="row", col="col")


def _activations(operand: str, tag: Tag, nbytes: _ByteCount) -> Touch:
    return Touch(operand, Mode.READ, tag, nbytes, "m", "k")


_WEIGHTS = Touch("wgt", Mode.READ, Tag.WGT, LdWgt.onchip_bytes, "n", "k")
_GROUPS = Touch("grp", Mode.READ, Tag.GRP, LdGrp.onchip_bytes, "n", "k")
_ADD = Touch("acc", Mode.UPDATE, Tag.ACC, _accumulators, "m", "n")

# Accumulators last: their rows and channels follow from the operands.
TOUCHES: Mapping[type[Instruction], tuple[Touch, ...]] = MappingProxyType(
    {
        LdLsb: (_loaded("dst", Tag.LSB, LdLsb.onchip_bytes),),
        LdPbm: (_loaded("dst", Tag.PBM, LdPbm.onchip_bytes),),
        LdMsb: (_loaded("dst", Tag.MSB, LdMsb.onchip_bytes),),
        LdSum: (_loaded("dst", Tag.SUM, LdSum.onchip_bytes),),
        LdWgt: (_loaded("dst", Tag.WGT, LdWgt.onchip_bytes),),
        LdGrp: (_loaded("dst", Tag.GRP, LdGrp.onchip_bytes),),
        LdAct: (
            _loaded("lsb", Tag.LSB, LdAct.plane_bytes),
            _loaded("msb", Tag.DNS, LdAct.plane_bytes),
        ),
        LdRow: (Touch("dst", Mode.WRITE, Tag.ROW, _row_parameters, cols="", row="row"),),
        LdChn: (Touch("dst", Mode.WRITE, Tag.CHN, _channels, cols="", row="row"),),
        MmaLsb: (_activations("lsb", Tag.LSB, LdLsb.onchip_bytes), _WEIGHTS, _GROUPS, _ADD),
        MmaMsb: (
            _activations("pbm", Tag.PBM, LdPbm.onchip_bytes),
            _activations("msb", Tag.MSB, LdMsb.onchip_bytes),
            *(_WEIGHTS, _GROUPS, _ADD),
        ),
        MmaDns: (_activations("msb", Tag.DNS, LdAct.plane_bytes), _WEIGHTS, _GROUPS, _ADD),
        MmaMin: (_activations("sum", Tag.SUM, LdSum.onchip_bytes), _GROUPS, _ADD),
        Drain: (
            Touch("row", Mode.READ, Tag.ROW, _row_parameters, "m", ""),
            Touch("chn", Mode.READ, Tag.CHN, _channels, "n", ""),
            Touch("acc", Mode.UPDATE, Tag.ACC, _accumulators, "m", "n"),
        ),
        StOut: (
            Touch("order", Mode.READ, Tag.ROW, _row_parameters, cols=""),
            Touch("acc", Mode.READ, Tag.ACC, _accumulators, row="row", col="col"),
        ),
        StEnc: (Touch("acc", Mode.READ, Tag.ACC, _accumulators, row="row", col="col"),),
    }
)
"""What every instruction class touches, in the order in which it is checked."""

KINDS: Mapping[type[Instruction], Kind] = MappingProxyType(
    {
        Wait: Kind.WAIT,
        Signal: Kind.SIGNAL,
        **dict.fromkeys((MmaLsb, MmaMsb, MmaDns, MmaMin), Kind.MMA),
        Drain: Kind.DRAIN,
        **dict.fromkeys((StOut, StEnc), Kind.STORE),
    }
)
"""What a class does; loads are not listed."""

PASSES: Mapping[type[Instruction], int] = MappingProxyType(
    {MmaLsb: 0, MmaMsb: 1, MmaDns: 1, MmaMin: 2}
)
"""Pass of an MMA: LSB, MSB, minima."""


def touches_of(header: Header, cls: type[Instruction]) -> tuple[Touch, ...]:
    """What a class touches in programs with this header: operands that are None do not count."""
    absent = set()
    if not header.op.group_size:
        absent.add("grp")
    if cls is Drain and not header.op.scaled:
        absent.add("row")
    if not header.channel_bytes:
        absent.add("chn")
    if not header.op.block_rows:
        absent.add("order")
    return tuple(touch for touch in TOUCHES.get(cls, ()) if touch.operand not in absent)


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


def touch_table(run: Run, classes: Mapping[type[Instruction], Steps]) -> TouchTable:
    """Build the table for `classes`, all classes that occur."""
    steps = len(run.trace)
    kinds = np.full(steps, Kind.LOAD, dtype=np.int32)
    args = np.zeros(steps, dtype=np.int32)
    counts = np.zeros(steps + 1, dtype=np.int32)
    for cls, group in classes.items():
        kinds[group.index] = KINDS.get(cls, Kind.LOAD)
        if cls in (Wait, Signal):
            args[group.index] = group["queue"]
        args[group.index] += PASSES.get(cls, 0)
        if cls in (StOut, StEnc):
            args[group.index] = np.arange(len(group.index))
        counts[group.index + 1] = len(touches_of(run.header, cls))
    firsts = np.cumsum(counts, dtype=np.int32)
    touches = np.zeros((int(firsts[-1]), len(TouchColumn)), dtype=np.int64)
    for cls, group in classes.items():
        for number, touch in enumerate(touches_of(run.header, cls)):
            touches[firsts[group.index] + number] = touch_rows(run.header, group, touch)
    return TouchTable(kinds, args, firsts, touches)


def touch_rows(header: Header, steps: Steps, touch: Touch) -> NDArray[np.int64]:
    """Rows of the table for one touch of all steps of a class."""
    count = len(steps.index)
    table = np.zeros((count, len(TouchColumn)), dtype=np.int64)
    zero = np.zeros(count, dtype=np.int64)
    rows = steps[touch.rows]
    cols = steps[touch.cols] if touch.cols else zero
    low = steps[touch.operand]
    mode: Any = int(touch.mode)
    if touch.operand == "acc" and "zero" in steps.cls.TRACE:
        mode = np.where(steps["zero"] != 0, int(Mode.WRITE), mode)
    table[:, TouchColumn.MODE] = mode
    table[:, TouchColumn.BUFFER] = buffer_of(steps.cls, touch.operand)
    table[:, TouchColumn.LO] = low
    table[:, TouchColumn.HI] = low + touch.nbytes(header, rows, cols)
    ordered = touch.tag == Tag.ROW and header.op.block_rows
    table[:, TouchColumn.TAG] = Tag.ORDERED if ordered else touch.tag
    table[:, TouchColumn.ROW] = steps[touch.row] if touch.row else zero
    table[:, TouchColumn.ROWS] = rows
    table[:, TouchColumn.COL] = steps[touch.col] if touch.col else zero
    table[:, TouchColumn.COLS] = cols
    return table
