"""Running the event loop over the steps of a program, given the stored digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa import (
    MSB_POINTER_BYTES,
    TRACE_ENGINE,
    Drain,
    LdAct,
    LdChn,
    LdMsb,
    LdPbm,
    LdRow,
    MmaDns,
    MmaLsb,
    MmaMsb,
    Signal,
    StEnc,
    StOut,
    Wait,
    ceil_div,
    reduction_cycles,
)
from sparqle_tvm.target.isa.header import Engine, Header, Queue
from sparqle_tvm.target.simulator import event_loop as events
from sparqle_tvm.target.simulator.digits import DigitTables
from sparqle_tvm.target.simulator.encoded import store_cycles, stored_digit_bytes
from sparqle_tvm.target.simulator.native import aligned, aligned_copy
from sparqle_tvm.target.simulator.steps import (
    LOADS,
    ORDER_OPERAND,
    TILE_LOADS,
    Int64s,
    Steps,
)


@dataclass(frozen=True, eq=False)
class Schedule:
    """When every step runs.

    Attributes
    ----------
    start, end, ready : ndarray of int64, shape (steps,)
        Cycles; between `ready` (the engine's step before has ended) and `start` it stalls.
    order : ndarray of int64, shape (steps,)
        Steps in the order in which they start.
    sources : ndarray of int64, shape (steps, 4)
        The load step that wrote each range a step reads (see `Steps.reads`); -1: no single one.
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
class _EventTable:
    """What of the event loop's arguments is the same for every input."""

    table: Int64s
    agenda: Int64s
    begins: Int64s
    token_begins: Int64s
    slots: Int64s
    dram_bytes: Int64s


def schedule(steps: Steps, digits: DigitTables | None, out_nnz: RowNnz | None = None) -> Schedule:
    """Find out when every step runs.

    Parameters
    ----------
    steps : Steps
        The bound program.
    digits : DigitTables or None
        Stored digits of its activations, with the program's `Steps.splits`; None for a program of
        scheme ``dense``.
    out_nnz : RowNnz, optional
        Stored digits of encoded outputs; by default all of them.

    Raises
    ------
    ProgramError
        If it deadlocks, if steps race for the same bytes, if an MMA.MSB finds no bitmap or not
        the bitmap of its stream, or if tokens are left over. Names the instruction.
    """
    fixed = _event_table(steps)
    table, dram_bytes = fixed.table, fixed.dram_bytes
    costs = aligned((1, 1), np.int64, fill=0)
    if digits is not None:
        table, dram_bytes, costs = _with_digits(steps, fixed, digits)
    if steps.header.op.output == "encoded" and out_nnz is not None:
        table, dram_bytes = _with_outputs(steps, table, dram_bytes, out_nnz)
    tokens = aligned_copy(np.array(steps.header.tokens), np.int64)
    times = aligned((len(steps), 4), np.int64)
    sources = aligned((len(steps), 4), np.int64, fill=255)
    status = aligned(1 + len(Engine), np.int64, fill=0)
    events.event_loop()(
        *(table, fixed.agenda, fixed.begins, tokens, fixed.token_begins),
        aligned(int(fixed.token_begins[-1]) + 1, np.int64, fill=0),
        *(fixed.slots, aligned(len(fixed.slots), np.int64, fill=255), costs),
        *(times, sources, status),
    )
    _raise_for(steps, status, times)
    _check_bitmaps(steps, sources)
    _check_orders(steps, sources)
    start, end, ready, order = times.T
    return Schedule(start, end, ready, order, sources, dram_bytes)


def transfer_cycles(header: Header, nbytes: Any) -> Any:
    """Cycles of DMA transfers, `isa.transfer_cycles` for arrays."""
    accelerator = header.accelerator
    moved = -(-nbytes // accelerator.dram_bytes_per_cycle)
    return accelerator.dma_descriptor_cycles + np.asarray(moved).astype(np.int64)


def tile_sums(steps: Steps, cls: type[LdPbm] | type[LdMsb], running: Int64s) -> Int64s:
    """Sum a table of `DigitTables` over the tile of every LD.PBM or LD.MSB."""
    header = steps.header
    array_rows = header.accelerator.rows
    row, rows = steps.get(cls, "row"), steps.get(cls, "rows")
    chunk = steps.get(cls, "col") // header.k_chunk
    ends = running[chunk, ceil_div(row + rows, array_rows)]
    return np.asarray(ends - running[chunk, row // array_rows])


def _with_digits(
    steps: Steps, fixed: _EventTable, digits: DigitTables
) -> tuple[Int64s, Int64s, Int64s]:
    """Step table, DRAM bytes and bitmap costs with what the digits say filled in."""
    table, dram_bytes = aligned_copy(fixed.table, np.int64), fixed.dram_bytes.copy()
    loads = steps.of(LdMsb)
    dram_bytes[loads] += tile_sums(steps, LdMsb, digits.nbytes)
    table[loads, events.CYCLES] = transfer_cycles(steps.header, dram_bytes[loads])
    costs = np.stack([tile_sums(steps, LdPbm, s) for s in digits.slowest], axis=-1)
    return table, dram_bytes, aligned_copy(costs, np.int64)


def _with_outputs(
    steps: Steps, table: Int64s, dram_bytes: Int64s, out_nnz: RowNnz
) -> tuple[Int64s, Int64s]:
    """Step table and DRAM bytes with what encoded outputs take."""
    table, dram_bytes, stores = aligned_copy(table, np.int64), dram_bytes.copy(), steps.of(StEnc)
    most = stored_digit_bytes(steps, None)
    dram_bytes[stores] += stored_digit_bytes(steps, out_nnz) - most
    table[stores, events.CYCLES] = store_cycles(steps, dram_bytes[stores])
    return table, dram_bytes


def _event_table(steps: Steps) -> _EventTable:
    if "events" not in steps.memo:
        steps.memo["events"] = _make_event_table(steps)
    table: _EventTable = steps.memo["events"]
    return table


def _make_event_table(steps: Steps) -> _EventTable:
    table = aligned((len(steps), events.COLUMNS), np.int64, fill=0)
    _fill_kinds(steps, table)
    dram_bytes = _fixed_dram_bytes(steps)
    transfers = np.concatenate([steps.of(cls) for cls in (*LOADS, StOut)])
    table[transfers, events.KIND] = events.TRANSFER
    table[transfers, events.CYCLES] = transfer_cycles(steps.header, dram_bytes[transfers])
    stores = steps.of(StEnc)
    table[stores, events.KIND] = events.TRANSFER
    table[stores, events.CYCLES] = store_cycles(steps, dram_bytes[stores])
    slots = _fill_slots(steps, table)
    engines = steps.trace[:, TRACE_ENGINE]
    agenda = np.argsort(engines, kind="stable")
    begins = np.searchsorted(engines[agenda], np.arange(len(Engine) + 1))
    signals = np.bincount(steps.get(Signal, "queue"), minlength=len(Queue))
    token_begins = np.zeros(len(Queue) + 1, dtype=np.int64)
    np.cumsum(signals + np.array(steps.header.tokens), out=token_begins[1:])
    return _EventTable(
        table=table,
        agenda=aligned_copy(agenda, np.int64),
        begins=aligned_copy(begins, np.int64),
        token_begins=aligned_copy(token_begins, np.int64),
        slots=slots,
        dram_bytes=dram_bytes,
    )


def _fill_kinds(steps: Steps, table: Int64s) -> None:
    """Fill kinds, queues and cycles of all that is no transfer."""
    header = steps.header
    table[:, events.KIND] = events.WORK
    for cls, kind in ((Wait, events.WAIT), (Signal, events.SIGNAL)):
        table[steps.of(cls), events.KIND] = kind
        table[steps.of(cls), events.QUEUE] = steps.get(cls, "queue")
    for multiply in (MmaLsb, MmaDns):
        table[steps.of(multiply), events.CYCLES] = _dense_cycles(steps, multiply)
    table[steps.of(Drain), events.CYCLES] = ceil_div(
        steps.get(Drain, "m") * steps.get(Drain, "n"),
        header.accelerator.drain_elements_per_cycle,
    )
    sparse, n = steps.of(MmaMsb), steps.get(MmaMsb, "n")
    split = steps.get(MmaMsb, "row_split")
    blocks = ceil_div(n, header.accelerator.cols)
    for value in np.unique(split).tolist():
        at = split == value
        unit = reduction_cycles(header, 1, value)
        table[sparse[at], events.CYCLES] = blocks[at] * unit
    table[sparse, events.KIND] = events.SPARSE
    table[sparse, events.BLOCKS] = blocks * header.op.weight_slices
    table[sparse, events.SPLIT] = np.searchsorted(steps.splits, split)
    table[:, events.COST] = -1
    table[steps.of(LdPbm), events.COST] = np.arange(len(steps.of(LdPbm)))


def _dense_cycles(steps: Steps, cls: type[MmaLsb] | type[MmaDns]) -> Int64s:
    header = steps.header
    shapes = np.stack([steps.get(cls, o) for o in ("m", "n", "k", "row_split")], axis=-1)
    distinct, which = np.unique(shapes, axis=0, return_inverse=True)
    cycles = [MmaLsb.cycles(header, *(int(size) for size in shape)) for shape in distinct]
    return np.array(cycles, dtype=np.int64)[which.reshape(-1)]


def _fixed_dram_bytes(steps: Steps) -> Int64s:
    """Bytes that every step moves; of LD.MSB only the pointers, of ST.ENC all digits."""
    header, result = steps.header, np.zeros(len(steps), dtype=np.int64)
    for cls in TILE_LOADS:
        rows, cols = steps.get(cls, "rows"), steps.get(cls, "cols")
        result[steps.of(cls)] = cls.dram_bytes(header, rows, cols)
    result[steps.of(LdMsb)] = MSB_POINTER_BYTES
    rows, cols = steps.get(LdAct, "rows"), steps.get(LdAct, "cols")
    result[steps.of(LdAct)] = LdAct.dram_bytes(header, rows, cols)
    result[steps.of(LdRow)] = LdRow.onchip_bytes(header, steps.get(LdRow, "rows"))
    result[steps.of(LdChn)] = LdChn.onchip_bytes(header, steps.get(LdChn, "rows"))
    rows, cols = steps.get(StOut, "rows"), steps.get(StOut, "cols")
    result[steps.of(StOut)] = StOut.dram_bytes(header, rows, cols)
    rows, cols = steps.get(StEnc, "rows"), steps.get(StEnc, "cols")
    digits = stored_digit_bytes(steps, None)
    result[steps.of(StEnc)] = StEnc.fixed_bytes(header, rows, cols) + digits
    return result


def _fill_slots(steps: Steps, table: Int64s) -> Int64s:
    """Fill ranges, and number those that loads write: int64 (slots, 2), at least one."""
    ranges = np.concatenate([steps.reads, steps.writes], axis=1)
    table[:, events.RANGES :] = ranges.reshape(len(steps), -1)
    loads = np.concatenate([steps.of(cls) for cls in LOADS])
    begins = np.unique(ranges[..., 0])
    # Begin and end in one number: ends are below 2^34, distinct begins fewer than 2^24.
    keys = (np.searchsorted(begins, ranges[..., 0]) << 36) + ranges[..., 1]
    reads, writes = keys[:, : events.READS], keys[loads, events.READS :]
    present = steps.writes[loads, :, 1] > 0
    slots, first = np.unique(writes[present], return_index=True)
    filled = np.full(writes.shape, -1, dtype=np.int64)
    filled[present] = np.searchsorted(slots, writes[present])
    table[:, events.SLOTS : events.SLOTS + events.WRITES] = -1
    table[loads, events.SLOTS : events.SLOTS + events.WRITES] = filled
    nearest = np.minimum(np.searchsorted(slots, reads), max(len(slots) - 1, 0))
    known = slots[nearest] == reads if len(slots) else np.zeros(reads.shape, dtype=np.bool_)
    table[:, events.SOURCES : events.SOURCES + events.READS] = np.where(known, nearest, -1)
    if not len(slots):
        return aligned((1, 2), np.int64, fill=0)
    return aligned_copy(steps.writes[loads][present][first], np.int64)


def _raise_for(steps: Steps, status: Int64s, times: Int64s) -> None:
    code, step, other = (int(value) for value in status[:3])
    if code == events.DEADLOCK:
        stuck = [int(waiting) for waiting in status[1:] if waiting >= 0]
        where = "; ".join(str(steps.error(waiting, "never gets a token")) for waiting in stuck)
        raise ProgramError(f"program {steps.header.label!r} deadlocks: {where}")
    if code == events.NO_BITMAP:
        raise steps.error(step, "pbm is no bitmap tile that one LD.PBM has loaded")
    if code == events.RACE:
        running = steps.error(other, f"runs since cycle {int(times[other, events.START])}")
        raise steps.error(
            step,
            f"a token is missing, or an address is wrong: it touches bytes of a step that still "
            f"runs: {running}",
        )
    surplus = np.bincount(steps.get(Signal, "queue"), minlength=len(Queue))
    surplus = surplus - np.bincount(steps.get(Wait, "queue"), minlength=len(Queue))
    if surplus.any():
        queue = Queue(int(np.flatnonzero(surplus)[0]))
        raise ProgramError(
            f"program {steps.header.label!r} leaves {surplus[queue]:+d} tokens in {queue.name}; "
            "every queue must end with the tokens it began with"
        )


def _check_orders(steps: Steps, sources: Int64s) -> None:
    """Check that every ST.OUT of sorted rows has the numbers of just its rows."""
    at = steps.of(StOut)
    if not steps.header.op.block_rows or not len(at):
        return
    source = sources[at, ORDER_OPERAND]
    loaded = (source >= 0) & np.isin(source, steps.of(LdRow))
    mine = np.stack([steps.get(StOut, operand) for operand in ("row", "rows")], axis=-1)
    theirs = steps.trace[source][:, [LdRow.column(operand) for operand in ("row", "rows")]]
    same = (theirs == mine).all(axis=1)
    steps.require(StOut, loaded & same, "order is not what one LD.ROW has loaded for these rows")


def _check_bitmaps(steps: Steps, sources: Int64s) -> None:
    """Check that every MMA.MSB multiplies whole tiles as they were loaded."""
    at = steps.of(MmaMsb)
    if not len(at):
        return
    trace, bitmap, stream = steps.trace, sources[at, 0], sources[at, 1]
    of_tile = [LdPbm.column(operand) for operand in ("row", "rows", "col", "cols")]
    sizes = trace[bitmap][:, of_tile[1::2]]
    mine = np.stack([steps.get(MmaMsb, "m"), steps.get(MmaMsb, "k")], axis=-1)
    steps.require(MmaMsb, (sizes == mine).all(axis=1), "m or k is not that of the loaded bitmap")
    loaded = (stream >= 0) & np.isin(stream, steps.of(LdMsb))
    same = (trace[stream][:, of_tile] == trace[bitmap][:, of_tile]).all(axis=1)
    steps.require(MmaMsb, loaded & same, "msb is not the loaded stream of this bitmap")
