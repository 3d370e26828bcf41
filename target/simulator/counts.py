"""What a run did: cycles per engine with the reasons of its stalls, bytes, MACs, lane-cycles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparqle_tvm.target.isa import (
    INSTRUCTIONS,
    MSB_POINTER_BYTES,
    TRACE_ENGINE,
    TRACE_OPCODE,
    Drain,
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
    StEnc,
    StOut,
    Tensor,
    Wait,
    ceil_div,
)
from sparqle_tvm.target.isa.compute import dense_span_steps
from sparqle_tvm.target.isa.header import Engine, Queue
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.simulator.digits import DigitTables
from sparqle_tvm.target.simulator.steps import LOADS, InstructionClass, Int64s, Steps
from sparqle_tvm.target.simulator.timing import Schedule, tile_sums

DRAM_STALL = "DRAM"
END_STALL = "END"


@dataclass(frozen=True)
class EngineTime:
    """How an engine spent a run; busy and stalled cycles add up to the run's.

    Attributes
    ----------
    busy_cycles : mapping of str to int
        Cycles per mnemonic.
    stalled_cycles : mapping of str to int
        Cycles per reason: the name of the queue that had no token, ``DRAM`` (the other engine's
        transfer had the channel), or ``END`` (no step left).
    """

    busy_cycles: Mapping[str, int]
    stalled_cycles: Mapping[str, int]

    @property
    def busy(self) -> int:
        """All busy cycles."""
        return sum(self.busy_cycles.values())

    @property
    def stalled(self) -> int:
        """All stalled cycles."""
        return sum(self.stalled_cycles.values())


@dataclass(frozen=True)
class PlaneCounts:
    """Work of the array on one plane of digits, all weight slices.

    Attributes
    ----------
    macs : int
        Digit products that were done.
    lane_cycles : int
        Multipliers of the array times cycles that it was busy with the plane.
    waiting_lane_cycles : int
        Of them idle because a PE row was ready and waited for the slowest of its group.
    padding_lane_cycles : int
        Of them idle for the rest: steps that are not full, rows and columns of the array that
        the tile does not reach, adding the partial sums of `row_split`.
    accumulator_updates : int
        Steps of all PEs with digits: each adds up to `lanes` products to an accumulator.
    """

    macs: int
    lane_cycles: int
    waiting_lane_cycles: int
    padding_lane_cycles: int
    accumulator_updates: int


@dataclass(frozen=True)
class Counts:
    """What a run moved and computed.

    Attributes
    ----------
    dram_read_bytes, dram_write_bytes : mapping of Tensor to int
        DRAM traffic per tensor, all reloads included.
    descriptors : int
        DMA transfers.
    onchip_read_bytes, onchip_write_bytes : mapping of Buffer to int
        Traffic of the buffers. Loads write what they carry. An MMA reads its activations once
        per column block and weight slice, its weights once per row group (every slice has its
        share of the bits), group parameters once; it writes every accumulator once, and reads it
        unless it clears it. DRAIN reads and writes accumulators and reads its scales. ST.OUT
        reads 4 bytes per output, as ST.ENC, and the row numbers if rows are sorted.
    lsb, msb : PlaneCounts
        MACs and idle lanes per plane.
    drained_elements : int
        Outputs that DRAIN made.
    scale_operations : int
        Partial sums of weight groups (of group sums in MMA.MIN) that were scaled and added.
    find_first_steps : int
        MSB digits that PE rows located in the bitmap: stored digits, once per block of columns
        and weight slice.
    """

    dram_read_bytes: Mapping[Tensor, int]
    dram_write_bytes: Mapping[Tensor, int]
    descriptors: int
    onchip_read_bytes: Mapping[Buffer, int]
    onchip_write_bytes: Mapping[Buffer, int]
    lsb: PlaneCounts
    msb: PlaneCounts
    drained_elements: int
    scale_operations: int = 0
    find_first_steps: int = 0

    @property
    def dram_bytes(self) -> int:
        """All bytes that passed the DRAM channel."""
        return sum(self.dram_read_bytes.values()) + sum(self.dram_write_bytes.values())


def engine_times(steps: Steps, schedule: Schedule) -> dict[Engine, EngineTime]:
    """Busy and stalled cycles of every engine."""
    engines, opcodes = steps.trace[:, TRACE_ENGINE], steps.trace[:, TRACE_OPCODE]
    busy, waited = schedule.end - schedule.start, schedule.start - schedule.ready
    # A step stalls for a token if it is a WAIT (reason: its queue), else for the DRAM channel.
    reason = np.full(len(steps), len(Queue))
    reason[steps.of(Wait)] = steps.get(Wait, "queue")
    names = [queue.name for queue in Queue] + [DRAM_STALL]
    result = {}
    for engine in Engine:
        mine = np.flatnonzero(engines == engine)
        by_opcode = _sum_by(opcodes[mine], busy[mine], max(INSTRUCTIONS) + 1)
        by_reason = _sum_by(reason[mine], waited[mine], len(names))
        stalled = {name: n for name, n in zip(names, by_reason, strict=True) if n}
        last = int(schedule.end[mine].max(initial=0))
        if last < schedule.total_cycles:
            stalled[END_STALL] = schedule.total_cycles - last
        cycles = {cls.MNEMONIC: by_opcode[o] for o, cls in INSTRUCTIONS.items() if by_opcode[o]}
        result[engine] = EngineTime(cycles, stalled)
    return result


def count(steps: Steps, schedule: Schedule, digits: DigitTables | None) -> Counts:
    """Count what the steps moved and computed."""
    dram_read, written = _loaded_bytes(steps, schedule)
    read = dict.fromkeys(Buffer, 0)
    lsb = _dense_plane(steps, schedule, MmaLsb)
    found = 0
    if digits is None:
        msb = _dense_plane(steps, schedule, MmaDns)
    else:
        msb, found = _sparse_plane(steps, schedule, digits)
    for cls in (MmaLsb, MmaMsb, MmaDns, MmaMin):
        _count_multiply(steps, cls, schedule, read, written)
    _count_store(steps, read, written)
    transfers = sum(len(steps.of(cls)) for cls in (*LOADS, StOut))
    transfers += StEnc.TRANSFERS * len(steps.of(StEnc))
    return Counts(
        dram_read_bytes={tensor: n for tensor, n in dram_read.items() if n},
        dram_write_bytes=_stored_bytes(steps, schedule),
        descriptors=transfers,
        onchip_read_bytes=read,
        onchip_write_bytes=written,
        lsb=lsb,
        msb=msb,
        drained_elements=int((steps.get(Drain, "m") * steps.get(Drain, "n")).sum()),
        scale_operations=_scale_operations(steps),
        find_first_steps=found,
    )


def _sum_by(keys: Int64s, values: Int64s, length: int) -> list[int]:
    sums = np.zeros(length, dtype=np.int64)
    np.add.at(sums, keys, values)
    return [int(value) for value in sums]


def _loaded_bytes(steps: Steps, schedule: Schedule) -> tuple[dict[Tensor, int], dict[Buffer, int]]:
    """Bytes that the loads read from every tensor, and wrote into every buffer."""
    header = steps.header
    moved = {cls: int(schedule.dram_bytes[steps.of(cls)].sum()) for cls in LOADS}
    pointers = MSB_POINTER_BYTES * len(steps.of(LdMsb))
    # What is loaded in one transfer comes from up to two tensors.
    channels = int(steps.get(LdChn, "rows").sum())
    scales = 4 * channels if header.op.scaled and not header.op.group_size else 0
    orders = header.order_bytes * int(steps.get(LdRow, "rows").sum())
    minima = moved[LdGrp] // 2 if header.op.has_min else 0
    tensors = {
        Tensor.LSB: moved[LdLsb],
        Tensor.PBM: moved[LdPbm],
        Tensor.MSB: moved[LdMsb] - pointers,
        Tensor.MSB_PTR: pointers,
        Tensor.ACT: moved[LdAct],
        Tensor.ACT_SCALE: moved[LdRow] - orders,
        Tensor.ROW_ORDER: orders,
        Tensor.GROUP_SUMS: moved[LdSum],
        Tensor.WGT: moved[LdWgt],
        Tensor.W_SCALE: moved[LdGrp] - minima + scales,
        Tensor.W_MIN: minima,
        Tensor.OFFSET: moved[LdChn] - scales,
    }
    weights = moved[LdWgt] + moved[LdGrp] + moved[LdChn]
    act = sum(moved.values()) - pointers - weights
    return tensors, {Buffer.ACT: act, Buffer.WGT: weights, Buffer.ACC: 0}


def _stored_bytes(steps: Steps, schedule: Schedule) -> dict[Tensor, int]:
    """Bytes that the stores wrote to every tensor."""
    if steps.header.op.output != "encoded":
        return {Tensor.OUT: int(schedule.dram_bytes[steps.of(StOut)].sum())}
    header, rows, cols = steps.header, steps.get(StEnc, "rows"), steps.get(StEnc, "cols")
    written = {
        Tensor.OUT_LSB: int(StEnc.lsb_bytes(header, rows, cols).sum()),
        Tensor.OUT_PBM: int(StEnc.pbm_bytes(rows, cols).sum()),
        Tensor.OUT_MSB_PTR: int(StEnc.pointer_bytes(header, rows).sum()),
    }
    moved = int(schedule.dram_bytes[steps.of(StEnc)].sum())
    return {**written, Tensor.OUT_MSB: moved - sum(written.values())}


def _plane(macs: int, cycles: int, waiting: int, updates: int, steps: Steps) -> PlaneCounts:
    lane_cycles = cycles * steps.header.accelerator.macs_per_cycle
    return PlaneCounts(macs, lane_cycles, waiting, lane_cycles - macs - waiting, updates)


def _cycles(steps: Steps, schedule: Schedule, cls: InstructionClass) -> int:
    at = steps.of(cls)
    return int((schedule.end[at] - schedule.start[at]).sum())


def _dense_plane(steps: Steps, schedule: Schedule, cls: InstructionClass) -> PlaneCounts:
    m, n, k = (steps.get(cls, operand) for operand in "mnk")
    widths, which = np.unique(k, return_inverse=True)
    per_row = [dense_span_steps(steps.header, int(width), 1) for width in widths]
    row_steps = np.array(per_row, dtype=np.int64)[which.reshape(-1)]
    slices = steps.header.op.weight_slices
    macs, updates = int((m * n * k).sum()) * slices, int((m * n * row_steps).sum()) * slices
    return _plane(macs, _cycles(steps, schedule, cls), 0, updates, steps)


def _sparse_plane(steps: Steps, schedule: Schedule, digits: DigitTables) -> tuple[PlaneCounts, int]:
    """The sparse pass, and how many digits PE rows located in the bitmap."""
    header, n = steps.header, steps.get(MmaMsb, "n")
    load = _bitmap_load(steps, schedule)
    stored = tile_sums(steps, LdPbm, digits.digits)[load]
    splits = np.searchsorted(steps.splits, steps.get(MmaMsb, "row_split"))
    waited = np.stack([tile_sums(steps, LdPbm, w) for w in digits.waited], axis=-1)
    slices, lanes = header.op.weight_slices, header.accelerator.lanes
    macs = int((stored * n).sum()) * slices
    waiting = int((waited[load, splits] * n).sum()) * slices * lanes
    taken = np.stack([tile_sums(steps, LdPbm, s) for s in digits.steps], axis=-1)
    updates = int((taken[load, splits] * n).sum()) * slices
    found = int((stored * ceil_div(n, header.accelerator.cols)).sum()) * slices
    plane = _plane(macs, _cycles(steps, schedule, MmaMsb), waiting, updates, steps)
    return plane, found


def _scale_operations(steps: Steps) -> int:
    group = steps.header.op.group_size
    if not group:
        return 0
    total = 0
    for cls in (MmaLsb, MmaMsb, MmaDns, MmaMin):
        m, n, k = (steps.get(cls, operand) for operand in "mnk")
        total += int((m * n * ceil_div(k, group)).sum())
    return total


def _bitmap_load(steps: Steps, schedule: Schedule) -> Int64s:
    """Which LD.PBM, counted from 0, wrote the bitmap of every MMA.MSB."""
    sources = schedule.sources[steps.of(MmaMsb), 0]
    return np.asarray(np.searchsorted(steps.of(LdPbm), sources))


def _count_multiply(
    steps: Steps,
    cls: InstructionClass,
    schedule: Schedule,
    read: dict[Buffer, int],
    written: dict[Buffer, int],
) -> None:
    header, at = steps.header, steps.of(cls)
    machine = header.accelerator
    lengths = (steps.reads[at, :, 1] - steps.reads[at, :, 0]).T
    m, n = steps.get(cls, "m"), steps.get(cls, "n")
    passes: Any = 1 if cls is MmaMin else ceil_div(n, machine.cols) * header.op.weight_slices
    stream = lengths[1]
    if cls is MmaMsb:
        stream = schedule.dram_bytes[schedule.sources[at, 1]] - MSB_POINTER_BYTES
    read[Buffer.ACT] += int(((lengths[0] + stream) * passes).sum())
    read[Buffer.WGT] += int((lengths[2] * ceil_div(m, machine.rows) + lengths[3]).sum())
    accumulators = m * n * header.accumulator_bytes
    written[Buffer.ACC] += int(accumulators.sum())
    read[Buffer.ACC] += int((accumulators * (steps.get(cls, "zero") == 0)).sum())


def _count_store(steps: Steps, read: dict[Buffer, int], written: dict[Buffer, int]) -> None:
    header, at = steps.header, steps.of(Drain)
    elements = int((steps.get(Drain, "m") * steps.get(Drain, "n")).sum())
    lengths = (steps.reads[at, :, 1] - steps.reads[at, :, 0]).sum(axis=0)
    stored = sum(int((steps.get(c, "rows") * steps.get(c, "cols")).sum()) for c in (StOut, StEnc))
    orders = header.order_bytes * int(steps.get(StOut, "rows").sum())
    read[Buffer.ACT] += int(lengths[0]) + orders
    read[Buffer.WGT] += int(lengths[3])
    read[Buffer.ACC] += elements * header.accumulator_bytes + 4 * stored
    written[Buffer.ACC] += 4 * elements
