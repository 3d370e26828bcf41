"""What a run did: cycles per engine with the reasons of its stalls, bytes, MACs, lane-cycles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.access import Access, Mode, Tensor, Values, ceil_div, each
from sparqle_tvm.target.isa.base import Kind, Pass
from sparqle_tvm.target.isa.compute import dense_span_steps
from sparqle_tvm.target.isa.header import Engine, Queue
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.program.bound import BoundProgram, Int64s, Operands
from sparqle_tvm.target.simulator.attention_work import Work
from sparqle_tvm.target.simulator.digits import DigitTables, row_splits, tile_sums
from sparqle_tvm.target.simulator.ranges import position
from sparqle_tvm.target.simulator.timing import Timing, bitmap_loads

REASONS = (*(queue.name for queue in Queue), "DRAM", "END")
"""What engines stall for: a token of a queue, the DRAM channel, the end of the others."""


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

    def __add__(self, other: PlaneCounts) -> PlaneCounts:
        """Both together."""
        return PlaneCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


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
        reads 4 bytes per output, as ST.ENC, and the row numbers if rows are sorted. (Of other
        instructions what `Instruction.ACCESSES` say.)
    lsb, msb : PlaneCounts
        MACs and idle lanes per plane.
    drained_elements : int
        Outputs that DRAIN made.
    drain_operations : int
        Float operations of DRAIN besides scaling (`DenseOp.drain_operations`).
    scale_operations : int
        Partial sums of weight groups (of group sums in MMA.MIN) that were scaled and added.
    find_first_steps : int
        MSB digits that PE rows located in the bitmap: stored digits, once per block of columns
        and weight slice; and those of keys and values in planes, when a load expands them.
    vector_operations : int
        Elementwise operations of the vector unit.
    encoded_elements : int
        Outputs that ST.ENC, and probabilities that the vector unit cuts into digits.
    """

    dram_read_bytes: Mapping[Tensor, int]
    dram_write_bytes: Mapping[Tensor, int]
    descriptors: int
    onchip_read_bytes: Mapping[Buffer, int]
    onchip_write_bytes: Mapping[Buffer, int]
    lsb: PlaneCounts
    msb: PlaneCounts
    drained_elements: int = 0
    drain_operations: int = 0
    scale_operations: int = 0
    find_first_steps: int = 0
    vector_operations: int = 0
    encoded_elements: int = 0

    @property
    def dram_bytes(self) -> int:
        """All bytes that passed the DRAM channel."""
        return sum(self.dram_read_bytes.values()) + sum(self.dram_write_bytes.values())


def stall_reasons(bound: BoundProgram[Any]) -> Int64s:
    """What every step stalls for, if it does: a WAIT for its queue, others for the channel."""
    return np.where(bound.queues < 0, len(Queue), bound.queues)


def engine_times(bound: BoundProgram[Any], timing: Timing) -> dict[Engine, EngineTime]:
    """Busy and stalled cycles of every engine."""
    busy, waited = timing.end - timing.start, timing.start - timing.ready
    reasons = stall_reasons(bound)
    result = {}
    for engine in Engine:
        mine = np.flatnonzero(bound.engines == engine)
        by_opcode = _sum_by(bound.opcodes[mine], busy[mine], max(INSTRUCTIONS) + 1)
        by_reason = _sum_by(reasons[mine], waited[mine], len(REASONS))
        by_reason[-1] = timing.total_cycles - int(timing.end[mine].max(initial=0))
        stalled = {name: n for name, n in zip(REASONS, by_reason, strict=True) if n}
        cycles = {cls.MNEMONIC: by_opcode[o] for o, cls in INSTRUCTIONS.items() if by_opcode[o]}
        result[engine] = EngineTime(cycles, stalled)
    return result


def _sum_by(keys: Int64s, values: Int64s, length: int) -> list[int]:
    # In float64, which is exact below 2^53 cycles.
    return [int(total) for total in np.bincount(keys, weights=values, minlength=length)]


def _total(operands: Operands, values: Any) -> int:
    """Sum over all steps of a class; a number is that of each step."""
    return int(values.sum()) if isinstance(values, np.ndarray) else len(operands) * int(values)


def count(
    bound: BoundProgram[Any],
    timing: Timing,
    digits: DigitTables | None,
    work: Work | None = None,
) -> Counts:
    """Count what the steps moved and computed; `digits` of a dense op, `work` of attention."""
    moved = {mode: Counter[Tensor]() for mode in Mode}
    read, written = dict.fromkeys(Buffer, 0), dict.fromkeys(Buffer, 0)
    events = Counter[str]()
    planes = dict.fromkeys(Pass, PlaneCounts(0, 0, 0, 0, 0))
    carried = np.zeros(len(bound), dtype=np.int64)
    # Loads first: what a stream has was carried there by one.
    for operands in sorted(bound.classes, key=lambda operands: not operands.cls.PARTS):
        cls = operands.cls
        values: Values = operands if work is None else work.of(operands)
        _count_parts(bound, operands, timing, moved[cls.DRAM], carried)
        for access in cls.accesses(bound.header):
            port_in, port_out = _traffic(bound, operands, values, access, timing, carried)
            read[access.tile.buffer] += port_in
            written[access.tile.buffer] += port_out
        for name, done in cls.events(bound.header, values).items():
            events[name] += _total(operands, done)
        if cls.KIND == Kind.MMA and work is not None:
            plane, found = _measured_plane(bound, operands, values, timing)
            planes[cls.PASS] += plane
            events["find_first_steps"] += found
        elif cls.KIND == Kind.MMA and cls.PASS != Pass.MINIMA:
            if cls.BITMAP:
                assert digits is not None
                plane, found = _sparse_plane(bound, operands, timing, digits)
                events["find_first_steps"] += found
            else:
                plane = _dense_plane(bound, operands, timing)
            planes[cls.PASS] += plane
    return Counts(
        dram_read_bytes={tensor: n for tensor, n in sorted(moved[Mode.READ].items()) if n},
        dram_write_bytes=dict(moved[Mode.WRITE]),
        descriptors=sum(
            len(o) - int(bound.goes_on[o.index].sum()) for o in bound.classes if o.cls.PARTS
        ),
        onchip_read_bytes=read,
        onchip_write_bytes=written,
        lsb=planes[Pass.LSB],
        msb=planes[Pass.MSB],
        **events,
    )


def _count_parts(
    bound: BoundProgram[Any],
    operands: Operands,
    timing: Timing,
    moved: Counter[Tensor],
    carried: Int64s,
) -> None:
    """Count what all steps of a class move per tensor, and fill in what each has for a buffer."""
    rest: Any = timing.dram_bytes[operands.index]
    onchip: Any = 0
    for part in sorted(operands.cls.PARTS, key=lambda part: part.digits):
        # Of digits there are as many as is left: a class moves one stream of them at most.
        nbytes = rest if part.digits else part.nbytes(bound.header, operands)
        moved[part.tensor] += _total(operands, nbytes)
        rest = rest - nbytes
        onchip = onchip + nbytes * part.onchip
    carried[operands.index] = onchip


def _traffic(
    bound: BoundProgram[Any],
    operands: Operands,
    values: Values,
    access: Access,
    timing: Timing,
    carried: Int64s,
) -> tuple[int, int]:
    """Bytes that all steps of a class read from and write to a buffer, for one of its tiles."""
    cls, header = operands.cls, bound.header
    if access.mode == Mode.WRITE and cls.PARTS:
        # Loads write what they carry, wherever its parts go.
        first = access is cls.accesses(header)[0]
        if not first:
            return 0, 0
        return 0, _total(operands, cls.carried(header, values, carried[operands.index]))
    nbytes = access.nbytes(header, operands)
    if access.tile.stream:
        nbytes = carried[timing.sources[operands.index, position(cls, header, access.operand)]]
    read, written = access.traffic(header, values, nbytes)
    return _total(operands, read), _total(operands, written)


def _plane(
    bound: BoundProgram[Any],
    operands: Operands,
    timing: Timing,
    macs: int,
    waiting: int,
    updates: int,
) -> PlaneCounts:
    cycles = int((timing.end - timing.start)[operands.index].sum())
    lane_cycles = cycles * bound.header.accelerator.macs_per_cycle
    return PlaneCounts(macs, lane_cycles, waiting, lane_cycles - macs - waiting, updates)


def _measured_plane(
    bound: BoundProgram[Any], operands: Operands, values: Values, timing: Timing
) -> tuple[PlaneCounts, int]:
    """A pass of attention, and the digits and live keys that were located."""
    products = operands.cls.products(bound.header, values)  # type: ignore[attr-defined]
    names = ("macs", "updates", "waiting", "found")
    macs, updates, waits, found = (_total(operands, products.get(name, 0)) for name in names)
    lanes = bound.header.accelerator.lanes
    return _plane(bound, operands, timing, macs, waits * lanes, updates), found


def _dense_plane(bound: BoundProgram, operands: Operands, timing: Timing) -> PlaneCounts:
    header, (m, n, k) = bound.header, (operands[axis] for axis in "mnk")
    row_steps = each(lambda k: dense_span_steps(header, k, 1), k)
    slices = header.op.weight_slices
    macs, updates = int((m * n * k).sum()) * slices, int((m * n * row_steps).sum()) * slices
    return _plane(bound, operands, timing, macs, 0, updates)


def _sparse_plane(
    bound: BoundProgram, operands: Operands, timing: Timing, digits: DigitTables
) -> tuple[PlaneCounts, int]:
    """The sparse pass, and how many digits PE rows located in the bitmap."""
    header, n = bound.header, operands["n"]
    loads = bitmap_loads(bound)
    assert loads is not None
    column = position(operands.cls, header, operands.cls.BITMAP)
    load = np.searchsorted(loads.index, timing.sources[operands.index, column])
    split = np.searchsorted(row_splits(bound.program), operands["row_split"])

    def summed(running: Int64s) -> Int64s:
        return tile_sums(loads, running, header.k_chunk, header.accelerator.rows)

    stored = summed(digits.digits)[load]
    waited, taken = (
        np.stack([summed(running) for running in table], axis=-1)[load, split]
        for table in (digits.waited, digits.steps)
    )
    slices, lanes = header.op.weight_slices, header.accelerator.lanes
    macs = int((stored * n).sum()) * slices
    waiting = int((waited * n).sum()) * slices * lanes
    updates = int((taken * n).sum()) * slices
    found = int((stored * ceil_div(n, header.accelerator.cols)).sum()) * slices
    return _plane(bound, operands, timing, macs, waiting, updates), found
