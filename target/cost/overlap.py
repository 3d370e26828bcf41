"""Time of the loop nest of tiles: the engines of a program, tile by tile, by formula.

LOAD, array and STORE work in order beside each other, as the tokens of a program let them: LOAD
waits for a free slot, the array for its operands and for free accumulators, STORE for outputs
(`PIPELINE_CYCLES` after the array's last step), and LOAD and STORE share the DRAM channel.
`Timeline` walks through the nest with tiles of mean digits, for many schedules at once. Of a long
loop it looks at the first iterations and the last one: in between, every iteration takes as long as
the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.accelerator import PIPELINE_CYCLES, Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.schedule import Candidates, Scheduled, Tiling
from sparqle_tvm.target.isa.access import ceil_div
from sparqle_tvm.target.op import DenseOp

# Iterations of the loops over outer tiles, inner tiles and K chunks that are looked at, the last
# one aside.
LOOKED_AT = (4, 5, 4)

# What the array waits for; the causes of `Timeline.waits`.
CAUSES = ("activations", "weights", "drain")

_NEVER = np.inf


@dataclass(frozen=True, kw_only=True)
class OpLoads:
    """Cycles of the transfers of a dense op, by the extents of a tile.

    Attributes
    ----------
    op : DenseOp
        The op.
    accelerator : Accelerator
        Bandwidth, and cycles of a descriptor.
    scheme : {"sparqle", "dense", "native", "a4"}
        What lies in memory.
    activation_bytes : int
        Planes and bitmap of all activations (or an array of them, by candidate).
    block_rows : int
        Rows that are sorted together: their numbers are loaded with their scales, and every row
        of outputs is a burst of its own. 0: rows are in their own order.
    encoded_bytes : int
        All bytes of encoded outputs; 0: outputs are floats.
    """

    op: DenseOp
    accelerator: Accelerator
    scheme: Scheme
    activation_bytes: Any
    block_rows: int = 0
    encoded_bytes: Any = 0

    def _cycles(self, nbytes: Any, descriptors: Any = 1) -> Any:
        fixed = descriptors * self.accelerator.dma_descriptor_cycles
        return nbytes / self.accelerator.dram_bytes_per_cycle + fixed

    def activation(self, m: Any, k: Any, tiles: Any = 1, chunks: Any = 1) -> Any:
        """Planes, bitmap, centres and group sums of (m, k); a tile is one piece of memory.

        It is cut into `tiles` tiles in all, and into `chunks` along K.
        """
        op, share = self.op, m * k / (self.op.m * self.op.k)
        pointers = storage.TILE_POINTER_BYTES if self.scheme == "sparqle" else 0
        sums = storage.sum_bytes(1, op.k, op.sum_group_size, op.digit_bits) * m * k / op.k
        centres = m * chunks * storage.centre_bytes(op, self.scheme)
        nbytes = self.activation_bytes * share + pointers * tiles + sums + centres
        return self._cycles(nbytes, tiles)

    def weight(self, n: Any, k: Any, tiles: Any = 1) -> Any:
        """Weights, scales and minima of `tiles` tiles of (n, k) in all."""
        per_channel = storage.weight_bytes(self.op, self.op.k)
        return self._cycles(n * k / self.op.k * per_channel, tiles)

    def row(self, m: Any, tiles: Any = 1) -> Any:
        """Scales and other parameters of `m` rows."""
        if not self.op.scaled:
            return 0 * m
        return self._cycles(m * storage.row_parameter_bytes(self.op, self.block_rows), tiles)

    def channel(self, n: Any, tiles: Any = 1) -> Any:
        """Parameters of `n` channels, if there are any."""
        per_channel = self.op.channel_parameter_bytes
        return self._cycles(n * per_channel, tiles) if per_channel else 0 * n

    def drain(self, m: Any, n: Any, tiles: Any = 1) -> Any:
        """Outputs of (m, n), of `tiles` tiles along the rows: whole words, see `isa.compute`."""
        words = m * ceil_div(n, self.accelerator.drain_elements_per_cycle)
        return words + tiles * np.any(self.encoded_bytes)

    def store(self, m: Any, n: Any, tiles: Any = 1) -> Any:
        """Outputs of a tile of (m, n), of `tiles` tiles along each row."""
        if np.any(self.encoded_bytes):
            share = m * n / (self.op.m * self.op.n)
            return self._cycles(share * self.encoded_bytes, tiles)
        return self._cycles(
            m * storage.output_row_bytes(n, self.accelerator, self.block_rows), tiles
        )


class Timeline:
    """When the engines are done with an op, for one schedule or for many.

    Parameters
    ----------
    loads : OpLoads
        What has to be moved.
    schedule : Decisions or Candidates
        In what order, and in how many slots.
    mma_cycles : cycles
        All work of the array (an array of them, by candidate).

    Attributes
    ----------
    dma_cycles : ndarray of float64
        All transfers.
    array_cycles : ndarray of float64
        `mma_cycles`, for each candidate.
    drain_cycles : ndarray of float64
        All drains.
    """

    def __init__(self, loads: OpLoads, schedule: Scheduled, mma_cycles: Any) -> None:
        if not isinstance(schedule, Candidates):
            schedule = Candidates.of([schedule])
        self.loads, self.schedule = loads, schedule
        self.tiling = Tiling(loads.op, schedule)
        self.array_cycles = np.broadcast_to(
            np.asarray(mma_cycles, np.float64),
            np.broadcast_shapes(np.shape(mma_cycles), schedule.k.shape),
        )
        m, n = self.tiling.m_tiles, self.tiling.n_tiles
        drains = loads.drain(loads.op.m, schedule.n, m) * (n - 1)
        drains = drains + loads.drain(loads.op.m, loads.op.n - (n - 1) * schedule.n, m)
        self.drain_cycles = np.asarray(drains, np.float64)
        self.dma_cycles = self._all_transfers(loads)

    @property
    def descriptors(self) -> NDArray[np.float64]:
        """DMA transfers."""
        machine = replace(self.loads.accelerator, dma_descriptor_cycles=1)
        alone = replace(self.loads, accelerator=machine)
        machine = replace(machine, dma_descriptor_cycles=0)
        nothing = replace(self.loads, accelerator=machine)
        found = self._all_transfers(alone) - self._all_transfers(nothing)
        return np.asarray(found)

    def _all_transfers(self, loads: OpLoads) -> Any:
        op, t = loads.op, self.tiling
        m, n = t.m_tiles, t.n_tiles
        whole = np.where(n > 1, self.schedule.n, op.n)
        last = op.n - (n - 1) * whole
        stores = loads.store(op.m, whole, m) * (n - 1) + loads.store(op.m, last, m)
        # What depends on little comes first: on a grid of schedules the rest is much larger.
        few = t.row_loads * loads.row(op.m, m) + t.channel_loads * loads.channel(op.n, n) + stores
        activations, weights = self._loads(loads)
        return activations + weights + few

    def least_cycles(self) -> NDArray[np.float64]:
        """A lower bound of the time: the busiest engine, and what it cannot work beside.

        With one slot of an operand the array rests while it is loaded, with one of the
        accumulators while outputs are drained and stored.
        """
        op, loads, d, t = self.loads.op, self.loads, self.schedule, self.tiling
        m, n, k = np.minimum(d.m, op.m), np.minimum(d.n, op.n), np.minimum(d.k, op.k)
        first_activation, first_weight = loads.activation(m, k), loads.weight(n, k)
        first = first_activation + first_weight
        m, n = op.m - (t.m_tiles - 1) * d.m, op.n - (t.n_tiles - 1) * d.n
        drain = loads.drain(m, n)
        store = loads.store(m, n)
        whole = np.where(t.n_tiles > 1, d.n, op.n)
        outputs = loads.store(op.m, whole, t.m_tiles) * (t.n_tiles - 1)
        outputs = outputs + loads.store(op.m, n, t.m_tiles)
        array = first + self.array_cycles + PIPELINE_CYCLES + drain + store
        slots = (d.activation_slots, d.weight_slots, d.accumulator_slots)
        if any(np.any(number == 1) for number in slots):
            activations, weights = self._loads(loads)
            rests = np.where(d.activation_slots == 1, activations - first_activation, 0)
            rests = rests + np.where(d.weight_slots == 1, weights - first_weight, 0)
            alone = np.where(t.keeps_rows, t.k_tiles * first_activation - first_activation, 0)
            alone = alone + np.where(t.keeps_channels, t.k_tiles * first_weight - first_weight, 0)
            stored = self.drain_cycles + outputs - drain - store
            stored = np.where(d.accumulator_slots == 1, stored, 0)
            array = array + np.maximum(np.maximum(rests - alone, stored), 0)
        transfers = self.dma_cycles + drain
        stores = first + self.drain_cycles + outputs
        return np.asarray(np.maximum(np.maximum(array, transfers), stores))

    def _loads(self, loads: OpLoads) -> tuple[Any, Any]:
        """Transfers of all activations and of all weights, however often."""
        op, t = loads.op, self.tiling
        return (
            t.activation_loads * loads.activation(op.m, op.k, t.m_tiles * t.k_tiles, t.k_tiles),
            t.weight_loads * loads.weight(op.n, op.k, t.n_tiles * t.k_tiles),
        )

    def run(self) -> Times:
        """Walk through the nest."""
        return walk([self])[0]


def walk(timelines: Sequence[Timeline]) -> list[Times]:
    """Walk through the nests of many ops together, which takes hardly longer than one of them."""
    found = _Walk(timelines).run()
    ends = np.cumsum([len(part.schedule) for part in timelines])[:-1]

    def split(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return np.split(values, ends)

    totals, begins = split(found.total_cycles), split(found.begin_cycles)
    waits = {cause: split(values) for cause, values in found.waits.items()}
    return [
        Times(totals[i], {cause: parts[i] for cause, parts in waits.items()}, begins[i], tail)
        for i, tail in enumerate(split(found.tail_cycles))
    ]


@dataclass(frozen=True, eq=False)
class Times:
    """Cycles of an op, for each candidate.

    Attributes
    ----------
    total_cycles : ndarray of float64
        From the first load to the end of the last store.
    waits : mapping of str to ndarray
        Cycles that the array waits, by the cause (`CAUSES`), the first load among them.
    begin_cycles, tail_cycles : ndarray
        Before the first MMA, and from the end of the last one on: the last drain, and stores.
    """

    total_cycles: NDArray[np.float64]
    waits: Mapping[str, NDArray[np.float64]]
    begin_cycles: NDArray[np.float64]
    tail_cycles: NDArray[np.float64]


class _Axis:
    """Tiles along an axis: how many, and the extents of all but the last, and of the last."""

    def __init__(self, extent: int, size: Any) -> None:
        self.tiles = ceil_div(extent, size)
        self.extents = np.minimum(size, extent), extent - (self.tiles - 1) * size


# Rows of the clock table: clocks of engines and channel, the gap before a store that the array
# waited for, times at which slots became free (the latest first), and what stands in line for
# STORE: the end of a drain, and a complete output behind it.
_LOAD, _MMA, _STORE, _DRAM, _GAP, _GAP_END = range(6)
_ACT, _WGT, _ACC, _PARAMETERS = 6, 9, 12, 14
_DRAINED, _WAITING, _OUTER_READY = 16, 17, 18
_CLOCKS = 19
# What goes on while a loop over K chunks runs.
_IN_CHUNKS = [_LOAD, _MMA, _DRAM, _GAP, _GAP_END, *range(_ACT, _ACC)]


def _tables(timeline: Timeline) -> dict[str, Any]:
    """What the walk needs to know of the schedules of an op: arrays of (.., candidates)."""
    d, t, loads = timeline.schedule, timeline.tiling, timeline.loads
    count, array = len(d), loads.accelerator
    m, n, k = _Axis(loads.op.m, d.m), _Axis(loads.op.n, d.n), _Axis(loads.op.k, d.k)

    def table(function: Any, *axes: _Axis) -> Any:
        """Cycles by whether the tile is the last along each axis; the first axis counts 1."""
        found = []
        for bits in range(1 << len(axes)):
            ends = [axis.extents[bits >> i & 1] for i, axis in enumerate(axes)]
            found.append(np.broadcast_to(function(*ends), (count,)))
        return np.stack(found).astype(np.float64)

    def transfer(function: Any, *axes: _Axis) -> Any:
        return np.ceil(table(function, *axes))

    def mma(rows: Any, cols: Any, columns: Any) -> Any:
        row_share = ceil_div(rows, array.rows) / ceil_div(loads.op.m, array.rows)
        col_share = ceil_div(cols, array.cols) / ceil_div(loads.op.n, array.cols)
        return timeline.array_cycles * row_share * col_share * columns / loads.op.k

    activation, weight = transfer(loads.activation, m, k), transfer(loads.weight, n, k)
    by_rows = np.asarray(d.rows_outer)
    return {
        "by_rows": by_rows,
        "keeps_rows": t.keeps_rows,
        "keeps_channels": t.keeps_channels,
        "activation_slots": d.activation_slots,
        "weight_slots": d.weight_slots,
        "slots": d.accumulator_slots - 1,
        "numbers": np.full(count, loads.block_rows > 0),
        "trips": np.stack(
            [
                np.where(by_rows, m.tiles, n.tiles),
                np.where(by_rows, n.tiles, m.tiles),
                k.tiles,
            ]
        ),
        "activation": activation,
        "weight": weight,
        # All K chunks of an operand that stays.
        "whole_activation": activation[0:2] * (k.tiles - 1) + activation[2:4],
        "whole_weight": weight[0:2] * (k.tiles - 1) + weight[2:4],
        "row": transfer(loads.row, m),
        "channel": transfer(loads.channel, n),
        "mma": table(mma, m, n, k),
        "drain": table(loads.drain, m, n),
        "store": transfer(loads.store, m, n),
    }


class _Walk:
    """The state of the engines on the way through the nests."""

    by_rows: Any
    keeps_rows: Any
    keeps_channels: Any
    activation_slots: Any
    weight_slots: Any
    slots: Any
    numbers: Any
    trips: Any
    activation: Any
    weight: Any
    whole_activation: Any
    whole_weight: Any
    row: Any
    channel: Any
    mma: Any
    drain: Any
    store: Any

    def __init__(self, timelines: Sequence[Timeline]) -> None:
        parts = [_tables(timeline) for timeline in timelines]
        for name in parts[0]:
            setattr(self, name, np.concatenate([part[name] for part in parts], axis=-1))
        count = len(self.by_rows)
        self.at = np.arange(count)
        self.clock = np.zeros((_CLOCKS, count))
        self.clock[_DRAINED : _WAITING + 1] = _NEVER
        self.line = np.zeros((3, count))  # store of DRAINED; drain and store of WAITING
        self.waits = np.zeros((len(CAUSES), count))
        self.busy = np.zeros((4, count))  # LOAD and STORE with the channel, STORE in all, array
        self.begin: Any = None

    def run(self) -> Times:
        """From the first load to the last store."""
        with np.errstate(invalid="ignore"):  # what never happens, less what never happens
            self._outer_loop()
            self._finish(np.ones(len(self.at), np.bool_), 0)
        end, tail = self.clock[_STORE], self.clock[_STORE] - self.clock[_MMA]
        return Times(end, dict(zip(CAUSES, self.waits, strict=True)), self.begin, tail)

    def _outer_loop(self) -> None:
        marks: list[Any] = []
        for active, last in self._iterations(0, np.ones(len(self.at), np.bool_), marks):
            rows, channels = self._pick(last, 0 * last)
            self._outer_loads(active, rows, channels)
            self._inner_loop(active, last)
            for ring, keeps in ((_ACT, self.keeps_rows), (_WGT, self.keeps_channels)):
                self._push(ring, 3, self.clock[_MMA], active & keeps)

    def _inner_loop(self, outer: Any, last_outer: Any) -> None:
        marks: list[Any] = []
        for active, last in self._iterations(1, outer, marks):
            rows, channels = self._pick(last_outer, last)
            self._chunk_loop(active, rows, channels)
            # Parameters of the loop inside come behind the chunks.
            dur = np.where(self.by_rows, self.channel[channels, self.at], self.row[rows, self.at])
            mask = active & (dur > 0)
            ready = self.clock[_OUTER_READY]
            if mask.any():
                free = self._free(_PARAMETERS)
                ready = np.maximum(ready, np.where(mask, self._load(dur, free, mask), 0))
            summed = self.clock[_MMA] + PIPELINE_CYCLES
            self._complete(np.maximum(ready, summed), rows + 2 * channels, active)

    def _chunk_loop(self, inner: Any, rows: Any, channels: Any) -> None:
        marks: list[Any] = []
        first = True
        for active, last in self._iterations(2, inner, marks):
            clock = self.clock
            loaded = []
            for ring, dur, keeps in (
                (_ACT, self.activation[rows + 2 * last, self.at], self.keeps_rows),
                (_WGT, self.weight[channels + 2 * last, self.at], self.keeps_channels),
            ):
                wanted = self.activation_slots if ring == _ACT else self.weight_slots
                mask = active & ~keeps
                free = clock[ring + wanted - 1, self.at]
                loaded.append(np.where(mask, self._load(dur, free, mask), self.kept * keeps))
            start = clock[_MMA].copy()
            for cause, ready in enumerate(loaded):
                later = np.maximum(start, ready)
                self.waits[cause] += np.where(active, later - start, 0)
                start = later
            if first:
                self._wait_for_accumulators(active, rows, channels)
                later = np.maximum(start, self._free())
                self.waits[2] += np.where(active, later - start, 0)
                start, first = later, False
            if self.begin is None:
                self.begin = start
            dur = self.mma[rows + 2 * channels + 4 * last, self.at]
            self.busy[3] += np.where(active, dur, 0)
            end = start + dur
            np.copyto(clock[_MMA], end, where=active)
            self._push(_ACT, 3, end, active & ~self.keeps_rows)
            self._push(_WGT, 3, end, active & ~self.keeps_channels)

    def _iterations(self, level: int, around: Any, marks: list[Any]) -> Any:
        """Iterations that are looked at: which candidates have one, and whose is the last."""
        trips, looked = self.trips[level], LOOKED_AT[level]
        count = int(np.where(around, trips, 0).max(initial=0))
        ends = np.minimum(trips, looked + 1) - 1
        for i in range(min(count, looked + 1)):
            active = around & (i <= ends)
            yield active, (active & (i == ends)).astype(np.int64)
            if i == looked - 2 or i == looked - 1:
                marks.append((self.clock[_MMA].copy(), self.busy.copy(), self.waits.copy()))
            if i == looked - 1:
                skipped = np.where(around, np.maximum(trips - looked - 1, 0), 0)
                if skipped.any():
                    self._skip(level, skipped, *marks)

    def _skip(self, level: int, skipped: Any, before: Any, after: Any) -> None:
        """Let iterations pass that are like the last one."""
        # The array follows whoever is slowest, perhaps not yet. Within an output stores are over
        # soon: they delay an iteration, not all of them.
        passed, busy = after[0] - before[0], after[1] - before[1]
        slowest = np.maximum(busy[0] + busy[1], busy[2])
        if level == 2:
            passed, slowest = passed - busy[1], busy[0]
        period = np.maximum(np.maximum(passed, slowest), busy[3])
        jump = period * skipped
        self.busy += busy * skipped
        self.waits += (after[2] - before[2]) * skipped
        if level < 2:
            self.clock += np.where(np.isfinite(self.clock), jump, 0)
            return
        # An output that is stored meanwhile takes its time from the loads.
        for _ in range(2):
            passed = (skipped > 0) & (self.clock[_DRAINED] < self.clock[_MMA] + jump)
            if not passed.any():
                break
            dram = self.clock[_DRAM] + self.line[0]
            self._store(passed)
            np.copyto(self.clock[_DRAM], dram, where=passed)
        self.clock[_IN_CHUNKS] += jump

    def _pick(self, outer: Any, inner: Any) -> tuple[Any, Any]:
        """Of rows and of channels, whether the tile is the last one."""
        return np.where(self.by_rows, outer, inner), np.where(self.by_rows, inner, outer)

    def _outer_loads(self, active: Any, rows: Any, channels: Any) -> None:
        """What is loaded in the outer loop: the operand that stays, and its parameters."""
        clock = self.clock
        self.kept = np.zeros(len(self.at))
        for ring, wanted, dur, keeps in (
            (_ACT, self.activation_slots, self.whole_activation[rows, self.at], self.keeps_rows),
            (_WGT, self.weight_slots, self.whole_weight[channels, self.at], self.keeps_channels),
        ):
            mask = active & keeps
            if mask.any():
                end = self._load(dur, clock[ring + wanted - 1, self.at], mask)
                self.kept = np.where(mask, end, self.kept)
        dur = np.where(self.by_rows, self.row[rows, self.at], self.channel[channels, self.at])
        mask = active & (dur > 0)
        if not mask.any():
            return
        # Their slots are those of the outputs: of the iteration before, or the one before that.
        self._finish(mask & (self.slots == 0), 0)
        self._finish(mask & (self.trips[1] == 1), 1)
        free = np.where(self.trips[1] == 1, self._free(), 0)
        free = np.where(self.slots == 0, clock[_STORE], free)
        np.copyto(clock[_OUTER_READY], self._load(dur, free, mask), where=mask)

    def _load(self, dur: Any, free: Any, mask: Any) -> Any:
        """One transfer of LOAD; a store that is ready before goes first. Returns its end."""
        clock = self.clock
        ready = np.maximum(clock[_LOAD], free)
        for _ in range(2):
            first = mask & (clock[_DRAINED] < ready)
            if not first.any():
                break
            self._store(first)
        early = np.maximum(ready, clock[_GAP])
        inside = early < clock[_GAP_END]
        start = np.where(inside, early, np.maximum(ready, clock[_DRAM]))
        end = start + dur
        late = clock[_DRAM] + np.maximum(end - clock[_GAP_END], 0)
        np.copyto(clock[_GAP], end, where=mask & inside)
        np.copyto(clock[_DRAM], np.where(inside, late, end), where=mask)
        np.copyto(clock[_LOAD], end, where=mask)
        self.busy[0] += np.where(mask, dur, 0)
        return end

    def _store(self, mask: Any, drained: Any = None) -> None:
        """Store what is drained (at `drained`, if others went first), then drain what waits."""
        clock, line = self.clock, self.line
        end = np.maximum(clock[_DRAINED], clock[_DRAM]) + line[0]
        self.busy[1:3] += np.where(mask, line[0], 0)
        self.busy[2] += np.where(mask & np.isfinite(clock[_WAITING]), line[1], 0)
        for row in (_DRAM, _STORE):
            np.copyto(clock[row], end, where=mask)
        self._push(_ACC, 2, end, mask)
        # Parameters are free when the output is drained, row numbers when it is stored.
        drained = clock[_DRAINED] if drained is None else drained
        drained = np.where(self.numbers & ~self.by_rows, end, drained)
        self._push(_PARAMETERS, 2, drained, mask)
        np.copyto(clock[_DRAINED], np.maximum(end, clock[_WAITING]) + line[1], where=mask)
        np.copyto(line[0], line[2], where=mask)
        np.copyto(clock[_WAITING], _NEVER, where=mask)

    def _pending(self) -> Any:
        """Outputs that are not stored yet."""
        return np.isfinite(self.clock[_DRAINED]) + np.isfinite(self.clock[_WAITING]).astype(int)

    def _finish(self, mask: Any, most: Any) -> None:
        """Store outputs until at most that many are left."""
        for _ in range(2):
            full = mask & (self._pending() > most)
            if not full.any():
                return
            self._store(full)

    def _wait_for_accumulators(self, mask: Any, rows: Any, channels: Any) -> None:
        """Store what the array has to wait for; loads may come before it."""
        clock = self.clock
        if (mask & (self._pending() > self.slots)).any():
            # LOAD is ahead, up to what the array waits for: the next load that begins before the
            # drain ends delays the store. The last output has none behind its chunks.
            keeps = self.keeps_rows
            ring = np.where(keeps, _WGT, _ACT)
            slots = np.where(keeps, self.weight_slots, self.activation_slots)
            free = np.where(slots > 1, clock[ring + np.maximum(slots - 2, 0), self.at], _NEVER)
            dur = np.where(keeps, self.weight[channels, self.at], self.activation[rows, self.at])
            inner = np.where(self.by_rows, self.channel[channels, self.at], self.row[rows, self.at])
            begin = np.maximum(clock[_LOAD], free)
            alone = (self.trips[2] > 1) | (inner == 0)
            more = (self.trips[2] > 1) | (rows * channels == 0)
            ahead = (begin < clock[_DRAINED]) & alone & more
            end = np.where(ahead, np.maximum(begin, clock[_DRAM]) + dur, 0)
            # Parameters are loaded when the drain ends, before the store.
            numbers = self.numbers & ~self.by_rows
            behind = ~alone & ~numbers & (clock[_LOAD] <= clock[_DRAINED])
            end = np.where(behind, np.maximum(clock[_DRAINED], clock[_DRAM]) + inner, end)
        for _ in range(2):
            full = mask & (self._pending() > self.slots)
            if not full.any():
                return
            drained = clock[_DRAINED].copy()
            np.copyto(clock[_DRAINED], np.maximum(drained, end), where=full)
            np.copyto(clock[_GAP], clock[_DRAM], where=full)
            begin = np.maximum(clock[_DRAM], clock[_DRAINED])
            np.copyto(clock[_GAP_END], begin, where=full)
            self._store(full, drained)

    def _free(self, ring: int = _ACC) -> Any:
        """When the accumulators (or parameters) of the next output become free."""
        index = np.clip(self.slots - self._pending(), 0, 1)
        return self.clock[ring + index, self.at]

    def _complete(self, ready: Any, tile: Any, active: Any) -> None:
        """Hand an output over to STORE."""
        clock, line = self.clock, self.line
        drain, store = self.drain[tile, self.at], self.store[tile, self.at]
        behind = active & np.isfinite(clock[_DRAINED])
        now = active & ~behind
        np.copyto(clock[_DRAINED], np.maximum(clock[_STORE], ready) + drain, where=now)
        np.copyto(line[0], store, where=now)
        self.busy[2] += np.where(now, drain, 0)
        np.copyto(clock[_WAITING], ready, where=behind)
        np.copyto(line[1], drain, where=behind)
        np.copyto(line[2], store, where=behind)

    def _push(self, ring: int, size: int, end: Any, mask: Any) -> None:
        """Note when a slot became free."""
        for i in range(ring + size - 1, ring, -1):
            np.copyto(self.clock[i], self.clock[i - 1], where=mask)
        np.copyto(self.clock[ring], end, where=mask)
