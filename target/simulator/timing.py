"""When every step of a program runs: the timing kernel, given the digits that are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa.access import PBM, Access, Mode, Tile
from sparqle_tvm.target.isa.base import Kind, Requirement, transfer_cycles
from sparqle_tvm.target.isa.header import Engine, Queue
from sparqle_tvm.target.isa.load import whole_groups
from sparqle_tvm.target.program.bound import BoundProgram, Int64s, Operands
from sparqle_tvm.target.simulator import timing_kernel as kernel
from sparqle_tvm.target.simulator.attention_work import Work
from sparqle_tvm.target.simulator.digits import DigitTables, output_bytes, row_splits, tile_sums
from sparqle_tvm.target.simulator.native import aligned, aligned_copy
from sparqle_tvm.target.simulator.ranges import READS, WRITES, find_ranges, position


@dataclass(frozen=True, eq=False)
class Timing:
    """When every step runs.

    Attributes
    ----------
    start, end, ready : ndarray of int64, shape (steps,)
        Cycles; between `ready` (the engine's step before has ended) and `start` it stalls.
    order : ndarray of int64, shape (steps,)
        Steps in the order in which they start.
    sources : ndarray of int64, shape (steps, READS)
        The step that made the tile in each range a step reads (see `Ranges`); -1: no single one.
    dram_bytes : ndarray of int64, shape (steps,)
        Bytes that each transfer moves.
    """

    start: Int64s
    end: Int64s
    ready: Int64s
    order: Int64s
    sources: Int64s
    dram_bytes: Int64s

    @property
    def total_cycles(self) -> int:
        """When the last step ends."""
        return int(self.end.max(initial=0))


@dataclass(frozen=True, eq=False)
class _Fixed:
    """What of the kernel's arguments is the same for every input."""

    table: Int64s
    agenda: Int64s
    begins: Int64s
    token_begins: Int64s
    slots: Int64s
    dram_bytes: Int64s


def find_times(
    bound: BoundProgram[Any],
    digits: DigitTables | None,
    out_nnz: RowNnz | None = None,
    work: Work | None = None,
) -> Timing:
    """Find out when every step runs.

    Parameters
    ----------
    bound : BoundProgram
        From `ranges.bind`.
    digits : DigitTables or None
        Stored digits of its activations; None for a program of scheme ``dense``.
    out_nnz : RowNnz, optional
        Stored digits of encoded outputs; by default all of them.
    work : Work, optional
        Of an attention program: what depends on its operands.

    Raises
    ------
    ProgramError
        If it deadlocks, if steps race for the same bytes, if a step does not find what one load
        must have left for it, or if tokens are left over. Names the instruction.
    """
    fixed = bound.once(_make_fixed)
    table, dram_bytes = aligned_copy(fixed.table, np.int64), fixed.dram_bytes.copy()
    for operands in bound.classes:
        if work is not None:
            _fill_work(bound, operands, work, table, dram_bytes)
            continue
        _fill_digit_bytes(bound, operands, digits, out_nnz, table, dram_bytes)
    tokens = aligned_copy(np.array(bound.header.tokens), np.int64)
    times = aligned((len(bound), 4), np.int64)
    sources = aligned((len(bound), READS), np.int64, fill=255)
    status = aligned(1 + len(Engine), np.int64, fill=0)
    kernel.timing_kernel()(
        *(table, fixed.agenda, fixed.begins, tokens, fixed.token_begins),
        aligned(int(fixed.token_begins[-1]) + 1, np.int64, fill=0),
        *(fixed.slots, aligned(len(fixed.slots), np.int64, fill=255), _costs(bound, digits)),
        *(times, sources, status),
    )
    _raise_for(bound, status, times)
    for operands in bound.classes:
        _check_loaded(bound, operands, sources)
    start, end, ready, order = times.T
    return Timing(start, end, ready, order, sources, dram_bytes)


def _fill_work(
    bound: BoundProgram[Any], operands: Operands, work: Work, table: Int64s, dram_bytes: Int64s
) -> None:
    """Fill in what steps move, and how long they take, where that depends on the operands."""
    header, cls, at = bound.header, operands.cls, operands.index
    if not cls.MEASURED:
        return
    values = work.of(operands)
    if cls.PARTS:
        dram_bytes[at] = cls.dram_bytes(header, values)
        table[at, kernel.CYCLES] = transfer_cycles(header, dram_bytes[at])
    else:
        table[at, kernel.CYCLES] = cls.cycles(header, values)


def _fill_digit_bytes(
    bound: BoundProgram,
    operands: Operands,
    digits: DigitTables | None,
    out_nnz: RowNnz | None,
    table: Int64s,
    dram_bytes: Int64s,
) -> None:
    """Replace the bytes of all digits by those that are stored, and what they cost."""
    header, cls, at = bound.header, operands.cls, operands.index
    for part in cls.PARTS:
        if not part.digits:
            continue
        if cls.DRAM == Mode.READ and digits is not None:
            stored = tile_sums(operands, digits.nbytes, header.k_chunk, header.accelerator.rows)
        elif cls.DRAM == Mode.WRITE and out_nnz is not None:
            running = output_bytes(out_nnz, header)
            stored = tile_sums(operands, running, header.op.out_chunk, 1)
        else:
            continue
        dram_bytes[at] += stored - part.nbytes(header, operands)
        table[at, kernel.CYCLES] = transfer_cycles(header, dram_bytes[at], bound.goes_on[at])


def makers_of(bound: BoundProgram[Any], tile: Tile) -> Iterator[tuple[Operands, Access]]:
    """The steps that make tiles of a kind, by class, and the access that does it."""
    for operands in bound.classes:
        for access in operands.cls.ACCESSES:
            if access.tile is tile and access.mode == Mode.WRITE:
                yield operands, access


def bitmap_loads(bound: BoundProgram[Any]) -> Operands | None:
    """The steps that load bitmaps, if there are any."""
    return next((operands for operands, _ in makers_of(bound, PBM)), None)


def _costs(bound: BoundProgram[Any], digits: DigitTables | None) -> Int64s:
    """Cycles of one pass over every bitmap that is loaded: (loads, splits)."""
    loads = bitmap_loads(bound)
    if digits is None or loads is None:
        return aligned((1, 1), np.int64, fill=0)
    chunk, unit = bound.header.k_chunk, bound.header.accelerator.rows
    costs = [tile_sums(loads, slowest, chunk, unit) for slowest in digits.slowest]
    return aligned_copy(np.stack(costs, axis=-1), np.int64)


def _make_fixed(bound: BoundProgram[Any]) -> _Fixed:
    table = aligned((len(bound), kernel.COLUMNS), np.int64, fill=0)
    dram_bytes = np.zeros(len(bound), dtype=np.int64)
    table[:, kernel.KIND] = kernel.WORK
    table[:, kernel.QUEUE] = bound.queues
    table[:, kernel.COST] = -1
    for operands in bound.classes:
        _fill_class(bound, operands, table, dram_bytes)
    loads = bitmap_loads(bound)
    if loads is not None:
        # Costs are running sums over row groups.
        bound.require(loads, whole_groups(bound.header, bound.rows, loads))
        table[loads.index, kernel.COST] = np.arange(len(loads))
    slots = _fill_slots(bound, table)
    agenda = np.argsort(bound.engines, kind="stable")
    begins = np.searchsorted(bound.engines[agenda], np.arange(len(Engine) + 1))
    token_begins = np.zeros(len(Queue) + 1, dtype=np.int64)
    signals = _used_queues(bound, Kind.SIGNAL)
    np.cumsum(signals + np.array(bound.header.tokens), out=token_begins[1:])
    return _Fixed(
        table=table,
        agenda=aligned_copy(agenda, np.int64),
        begins=aligned_copy(begins, np.int64),
        token_begins=aligned_copy(token_begins, np.int64),
        slots=slots,
        dram_bytes=dram_bytes,
    )


def _used_queues(bound: BoundProgram[Any], kind: Kind) -> Int64s:
    """How many steps of a kind, WAIT or SIGNAL, each queue has."""
    used = [operands["queue"] for operands in bound.of_kind(kind)]
    return np.bincount(np.concatenate([[], *used]).astype(np.int64), minlength=len(Queue))


def _fill_class(
    bound: BoundProgram[Any], operands: Operands, table: Int64s, dram_bytes: Int64s
) -> None:
    """Fill kinds and cycles of all steps of a class, and the bytes that they move at most."""
    header, cls, at = bound.header, operands.cls, operands.index
    if cls.KIND in (Kind.WAIT, Kind.SIGNAL):
        table[at, kernel.KIND] = kernel.WAIT if cls.KIND == Kind.WAIT else kernel.SIGNAL
        if cls.KIND == Kind.SIGNAL:
            delays = np.array([queue.delay_cycles for queue in Queue])
            table[at, kernel.CYCLES] = delays[operands["queue"]]
        return
    if cls.MEASURED:
        table[at, kernel.KIND] = kernel.TRANSFER if cls.PARTS else kernel.WORK
        return
    if cls.PARTS:
        dram_bytes[at] = cls.dram_bytes(header, operands)
        table[at, kernel.KIND] = np.where(bound.goes_on[at], kernel.GOES_ON, kernel.TRANSFER)
        table[at, kernel.CYCLES] = transfer_cycles(header, dram_bytes[at], bound.goes_on[at])
        return
    table[at, kernel.CYCLES] = cls.cycles(header, operands)
    if cls.BITMAP:
        table[at, kernel.KIND] = kernel.SPARSE
        table[at, kernel.PASSES] = cls.passes(header, operands)
        splits = row_splits(bound.program)
        table[at, kernel.SPLIT] = np.searchsorted(splits, operands["row_split"])
        table[at, kernel.BITMAP] = position(cls, header, cls.BITMAP)


def _fill_slots(bound: BoundProgram[Any], table: Int64s) -> Int64s:
    """Fill ranges, and number those in which tiles are made: int64 (slots, 2), at least one."""
    ranges = bound.once(find_ranges)
    both = np.concatenate([ranges.reads, ranges.writes], axis=1)
    table[:, kernel.RANGES :] = both.reshape(len(bound), -1)
    makers = [
        operands.index
        for operands in bound.classes
        if any(access.mode == Mode.WRITE for access in operands.cls.ACCESSES)
    ]
    makes = np.concatenate([np.empty(0, dtype=np.int64), *makers])
    begins = np.unique(both[..., 0])
    # Begin and end in one number: ends are below 2^34, distinct begins fewer than 2^24.
    keys = (np.searchsorted(begins, both[..., 0]) << 36) + both[..., 1]
    reads, writes = keys[:, :READS], keys[makes, READS:]
    present = ranges.writes[makes, :, 1] > 0
    slots, first = np.unique(writes[present], return_index=True)
    filled = np.full(writes.shape, -1, dtype=np.int64)
    filled[present] = np.searchsorted(slots, writes[present])
    table[:, kernel.SLOTS : kernel.SLOTS + WRITES] = -1
    table[makes, kernel.SLOTS : kernel.SLOTS + WRITES] = filled
    nearest = np.minimum(np.searchsorted(slots, reads), max(len(slots) - 1, 0))
    known = slots[nearest] == reads if len(slots) else np.zeros(reads.shape, dtype=np.bool_)
    table[:, kernel.SOURCES : kernel.SOURCES + READS] = np.where(known, nearest, -1)
    if not len(slots):
        return aligned((1, 2), np.int64, fill=0)
    return aligned_copy(ranges.writes[makes][present][first], np.int64)


def _raise_for(bound: BoundProgram[Any], status: Int64s, times: Int64s) -> None:
    code, step, other = (int(value) for value in status[:3])
    label = bound.header.label
    if code == kernel.DEADLOCK:
        stuck = [int(waiting) for waiting in status[1:] if waiting >= 0]
        where = "; ".join(str(bound.error(waiting, "never gets a token")) for waiting in stuck)
        raise ProgramError(f"program {label!r} deadlocks: {where}")
    if code == kernel.NO_BITMAP:
        operand = bound.instruction_at(step).BITMAP
        raise bound.error(step, f"{operand} is no bitmap tile that one load has made")
    if code == kernel.RACE:
        running = bound.error(other, f"runs since cycle {int(times[other, kernel.START])}")
        raise bound.error(
            step,
            f"a token is missing, or an address is wrong: it touches bytes of a step that still "
            f"runs: {running}",
        )
    surplus = _used_queues(bound, Kind.SIGNAL) - _used_queues(bound, Kind.WAIT)
    if surplus.any():
        queue = Queue(int(np.flatnonzero(surplus)[0]))
        raise ProgramError(
            f"program {label!r} leaves {surplus[queue]:+d} tokens in {queue.name}; "
            "every queue must end with the tokens it began with"
        )


def _check_loaded(bound: BoundProgram[Any], operands: Operands, sources: Int64s) -> None:
    """Check what a class needs as one load left it, see `Access.loaded`."""
    cls, header = operands.cls, bound.header
    places: dict[str, Int64s] = {}
    for access in cls.accesses(header):
        if not access.loaded:
            continue
        source = sources[operands.index, position(cls, header, access.operand)]
        same = np.zeros(len(operands), dtype=np.bool_)
        for maker, made in makers_of(bound, access.tile):
            mine = (source >= 0) & (bound.opcodes[source] == maker.cls.OPCODE)
            for what in ("row", "rows", "col", "cols"):
                theirs, ours = getattr(made, what), getattr(access, what)
                if theirs:
                    found = bound.trace[source, maker.cls.column(theirs)]
                    # A place that the step does not say is that of the first of such tiles.
                    mine &= found == (operands[ours] if ours else places.setdefault(what, found))
            same |= mine
        problem = f"{access.operand} is not what one load has left of these rows and columns"
        bound.require(operands, Requirement(same, problem))
