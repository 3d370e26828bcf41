"""A program bound to M rows, as arrays: what each step touches, waits for and costs.

Only what is the same for every input is here (`LD.MSB` and `MMA.MSB` depend on the bitmap, see
`digits`). Every address and tile is checked against buffers and tensors, so that nothing the
simulator does later can leave them, whatever the program says.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa import (
    INSTRUCTIONS,
    TRACE_INSTRUCTION,
    TRACE_OPCODE,
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
    TileLoad,
    Wait,
    stream_order,
)
from sparqle_tvm.target.isa.header import Header, Queue
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.structure import instruction_error
from sparqle_tvm.target.simulator.digits import row_splits

TILE_LOADS: tuple[type[TileLoad], ...] = (LdLsb, LdPbm, LdMsb, LdSum, LdWgt, LdGrp)
LOADS: tuple[type[Instruction], ...] = (*TILE_LOADS, LdAct, LdRow, LdChn)
MULTIPLIES: tuple[type[Instruction], ...] = (MmaLsb, MmaMsb, MmaDns)

Int64s = NDArray[np.int64]
InstructionClass = type[Instruction]

# Operands that a step reads are found in the range tables in this order.
ACT_OPERAND, MSB_OPERAND, WGT_OPERAND, GRP_OPERAND = range(4)
ORDER_OPERAND = MSB_OPERAND


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps of a program bound to M rows.

    Attributes
    ----------
    program : Program
        The program.
    rows : int
        M.
    trace : ndarray of int64, shape (steps, 16)
        From `Program.bind`.
    reads : ndarray of int64, shape (steps, 4, 2)
        Ranges [begin, end) of on-chip bytes that a step reads: activations (or sums, row scales,
        drained outputs), MSB stream (or row parameters of ST.OUT), weights, parameters of
        weights. Empty ones are (0, 0).
    writes : ndarray of int64, shape (steps, 2, 2)
        Ranges that it writes; accumulators of an MMA or DRAIN are read, too. ACT, WGT and ACC lie
        behind each other in one address space.
    memo : dict
        What other modules derive from the steps and need again in the next run.
    """

    program: Program
    rows: int
    trace: Int64s
    reads: Int64s
    writes: Int64s
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def header(self) -> Header:
        """Header of the program."""
        return self.program.header

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.trace)

    @cached_property
    def _by_opcode(self) -> dict[int, Int64s]:
        opcodes = self.trace[:, TRACE_OPCODE]
        return {opcode: np.flatnonzero(opcodes == opcode) for opcode in INSTRUCTIONS}

    def of(self, cls: InstructionClass) -> Int64s:
        """Indices of the steps of an instruction class."""
        return self._by_opcode[cls.OPCODE]

    def get(self, cls: InstructionClass, operand: str) -> Int64s:
        """Values of an operand in all steps of a class."""
        return np.asarray(self.trace[self.of(cls), cls.column(operand)])

    def require(self, cls: InstructionClass, holds: Any, problem: str) -> None:
        """Check a condition on all steps of a class.

        Raises
        ------
        ProgramError
            Names the instruction of the first step where it does not hold.
        """
        wrong = np.flatnonzero(~np.broadcast_to(holds, self.of(cls).shape))
        if wrong.size:
            raise self.error(int(self.of(cls)[wrong[0]]), problem)

    def error(self, step: int, problem: str) -> Exception:
        """Error that names the instruction of a step."""
        index = int(self.trace[step, TRACE_INSTRUCTION])
        instruction = self.program.instructions[index]
        return instruction_error(index, instruction, f"{problem} (step {step})")

    @cached_property
    def splits(self) -> tuple[int, ...]:
        """Values of `row_split` of the MMA.MSB instructions, sorted."""
        return row_splits(self.program)


def buffer_base(header: Header, buffer: Buffer) -> int:
    """Where a buffer begins in the common address space."""
    return sum(header.buffer_bytes(other) for other in Buffer if other < buffer)


_CACHED_STEPS = 1 << 19
"""Steps of all programs that are kept bound: some hundred bytes each."""

_bound: OrderedDict[tuple[Program, int], Steps] = OrderedDict()


def bind_steps(program: Program, rows: int) -> Steps:
    """Bind and check a program; those that were used last are kept.

    Raises
    ------
    ProgramError
        If it cannot be bound to `rows`, or an instruction leaves a buffer or a tensor.
    """
    key = (program, rows)
    steps = _bound.get(key)
    if steps is None:
        steps = _bind(program, rows)
        _bound[key] = steps
        while len(_bound) > 1 and sum(map(len, _bound.values())) > _CACHED_STEPS:
            _bound.popitem(last=False)
    _bound.move_to_end(key)
    return steps


def _bind(program: Program, rows: int) -> Steps:
    trace = program.bind(rows)
    shape = (len(trace),)
    steps = Steps(
        program,
        rows,
        trace,
        np.zeros((*shape, 4, 2), dtype=np.int64),
        np.zeros((*shape, 2, 2), dtype=np.int64),
    )
    for control in (Wait, Signal):
        known = steps.get(control, "queue") < len(Queue)
        steps.require(control, known, "the queue does not exist")
    for load in TILE_LOADS:
        _place_tile_load(steps, load)
    _place_other_loads(steps)
    for multiply in MULTIPLIES:
        _place_multiply(steps, multiply)
    _place_minima(steps)
    _place_store(steps)
    return steps


def _check_tile(steps: Steps, cls: InstructionClass, limit: int, columns: bool) -> None:
    row, rows = steps.get(cls, "row"), steps.get(cls, "rows")
    inside = (row >= 0) & (rows >= 1) & (row + rows <= limit)
    steps.require(cls, inside, f"rows leave the tensor, which has {limit}")
    if columns:
        header = steps.header
        col, cols = steps.get(cls, "col"), steps.get(cls, "cols")
        whole = np.minimum(header.k_chunk, header.op.k - col)
        holds = (col >= 0) & (col % header.k_chunk == 0) & (cols == whole) & (cols >= 1)
        steps.require(cls, holds, f"columns are not a chunk of {header.k_chunk}")


def _range(
    steps: Steps, cls: InstructionClass, operand: str, buffer: Buffer, nbytes: Any, align: int = 1
) -> Int64s:
    """Ranges [begin, end) of an address operand, checked: int64 (steps of the class, 2)."""
    header = steps.header
    begin = steps.get(cls, operand)
    end = begin + nbytes
    inside = (begin >= 0) & (end <= header.buffer_bytes(buffer))
    where = f"{operand} leaves {buffer.name} of {header.buffer_bytes(buffer)} bytes"
    steps.require(cls, inside, where)
    steps.require(cls, begin % align == 0, f"{operand} must be a multiple of {align}")
    base = buffer_base(header, buffer)
    return np.stack([begin + base, end + base], axis=-1)


def _place_tile_load(steps: Steps, cls: type[TileLoad]) -> None:
    weights = cls in (LdWgt, LdGrp)
    _check_tile(steps, cls, steps.header.op.n if weights else steps.rows, columns=True)
    if cls in (LdPbm, LdMsb):
        array_rows = steps.header.accelerator.rows
        row, rows = steps.get(cls, "row"), steps.get(cls, "rows")
        aligned = (row % array_rows == 0) & ((rows % array_rows == 0) | (row + rows == steps.rows))
        steps.require(cls, aligned, f"rows are not groups of {array_rows}")
    nbytes = cls.onchip_bytes(steps.header, steps.get(cls, "rows"), steps.get(cls, "cols"))
    buffer = Buffer.WGT if weights else Buffer.ACT
    steps.writes[steps.of(cls), 0] = _range(steps, cls, "dst", buffer, nbytes)


def _place_other_loads(steps: Steps) -> None:
    header = steps.header
    _check_tile(steps, LdAct, steps.rows, columns=True)
    plane = LdAct.plane_bytes(header, steps.get(LdAct, "rows"), steps.get(LdAct, "cols"))
    for i, operand in enumerate(("lsb", "msb")):
        steps.writes[steps.of(LdAct), i] = _range(steps, LdAct, operand, Buffer.ACT, plane)
    _check_tile(steps, LdRow, steps.rows, columns=False)
    nbytes = LdRow.onchip_bytes(header, steps.get(LdRow, "rows"))
    steps.writes[steps.of(LdRow), 0] = _range(steps, LdRow, "dst", Buffer.ACT, nbytes)
    _check_tile(steps, LdChn, header.op.n, columns=False)
    nbytes = LdChn.onchip_bytes(header, steps.get(LdChn, "rows"))
    steps.writes[steps.of(LdChn), 0] = _range(steps, LdChn, "dst", Buffer.WGT, nbytes)


def _accumulators(steps: Steps, cls: InstructionClass, rows: str, cols: str) -> Int64s:
    header, cell = steps.header, steps.header.accumulator_bytes
    m, n = steps.get(cls, rows), steps.get(cls, cols)
    sizes = (m >= 1) & (m <= steps.rows) & (n >= 1) & (n <= header.op.n)
    steps.require(cls, sizes, f"{rows} or {cols} is no number of rows or channels")
    fits = m <= header.buffer_bytes(Buffer.ACC) // cell // np.maximum(n, 1)
    steps.require(cls, fits, "the accumulators do not fit ACC")
    return _range(steps, cls, "acc", Buffer.ACC, m * n * cell, align=cell)


def _place_multiply(steps: Steps, cls: InstructionClass) -> None:
    header, at = steps.header, steps.of(cls)
    m, n, k = (steps.get(cls, operand) for operand in "mnk")
    steps.writes[at, 0] = _accumulators(steps, cls, "m", "n")
    steps.require(cls, (k >= 1) & (k <= header.op.k), "k is no number of columns")
    split = steps.get(cls, "row_split")
    fits = (split == 1) | ((split > 1) & (m * split <= header.accelerator.rows))
    steps.require(cls, fits, f"row_split needs m * row_split <= {header.accelerator.rows}")
    operands: dict[str, tuple[int, Any]] = {
        "lsb": (ACT_OPERAND, m * LdLsb.row_bytes(header, k)),
        "pbm": (ACT_OPERAND, m * LdPbm.row_bytes(header, k)),
        "msb": (MSB_OPERAND, m * LdMsb.row_bytes(header, k)),
        "wgt": (WGT_OPERAND, n * LdWgt.row_bytes(header, k)),
        "grp": (GRP_OPERAND, n * LdGrp.row_bytes(header, k)),
    }
    for operand, (position, nbytes) in operands.items():
        if operand not in cls.TRACE or (operand == "grp" and not header.op.group_size):
            continue
        buffer = Buffer.WGT if position >= WGT_OPERAND else Buffer.ACT
        if cls is MmaDns and operand == "msb":
            position = ACT_OPERAND
        steps.reads[at, position] = _range(steps, cls, operand, buffer, nbytes)


def _place_minima(steps: Steps) -> None:
    header, at = steps.header, steps.of(MmaMin)
    m, n, k = (steps.get(MmaMin, operand) for operand in "mnk")
    steps.writes[at, 0] = _accumulators(steps, MmaMin, "m", "n")
    steps.require(MmaMin, (k >= 1) & (k <= header.op.k), "k is no number of columns")
    sums, groups = m * LdSum.row_bytes(header, k), n * LdGrp.row_bytes(header, k)
    steps.reads[at, ACT_OPERAND] = _range(steps, MmaMin, "sum", Buffer.ACT, sums)
    steps.reads[at, GRP_OPERAND] = _range(steps, MmaMin, "grp", Buffer.WGT, groups)


def _place_store(steps: Steps) -> None:
    header, at = steps.header, steps.of(Drain)
    m, n = steps.get(Drain, "m"), steps.get(Drain, "n")
    steps.writes[at, 0] = _accumulators(steps, Drain, "m", "n")
    if header.op.scaled:
        steps.reads[at, ACT_OPERAND] = _range(steps, Drain, "row", Buffer.ACT, 4 * m)
    if header.channel_bytes:
        nbytes = n * header.channel_bytes
        steps.reads[at, GRP_OPERAND] = _range(steps, Drain, "chn", Buffer.WGT, nbytes)
    for cls in (StOut, StEnc):
        _check_tile(steps, cls, steps.rows, columns=False)
        col, cols = steps.get(cls, "col"), steps.get(cls, "cols")
        inside = (col >= 0) & (cols >= 1) & (col + cols <= header.op.n)
        steps.require(cls, inside, f"columns leave OUT, which has {header.op.n}")
        steps.reads[steps.of(cls), ACT_OPERAND] = _accumulators(steps, cls, "rows", "cols")
    if header.op.block_rows:
        nbytes = LdRow.onchip_bytes(header, steps.get(StOut, "rows"))
        order = _range(steps, StOut, "order", Buffer.ACT, nbytes)
        steps.reads[steps.of(StOut), ORDER_OPERAND] = order
    if header.op.output == "encoded":
        _check_stream(steps)


def _check_stream(steps: Steps) -> None:
    """Encoded tiles are whole chunks of whole row groups, in the order of the MSB stream."""
    header, unit = steps.header, steps.header.accelerator.rows
    row, rows, col, cols = (steps.get(StEnc, o) for o in ("row", "rows", "col", "cols"))
    aligned = (row % unit == 0) & ((rows % unit == 0) | (row + rows == steps.rows))
    steps.require(StEnc, aligned, f"rows are not groups of {unit}")
    whole = cols == np.minimum(header.op.out_chunk, header.op.n - col)
    steps.require(StEnc, whole, f"columns are not a chunk of {header.op.out_chunk}")
    ordered = stream_order(header, steps.rows, row, rows, col)
    steps.require(StEnc, ordered, "not the next tile of the MSB stream")
