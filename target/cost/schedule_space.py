"""All schedules of a dense op among which the default is chosen, with bounds of their time.

The space is that of `cost.schedule.Decisions`: tiles that split the op evenly, both loop orders,
the operand of the outer loop kept or not, two slots of everything where two fit, else one. Time is
that of `cost.overlap.Timeline`, which the simulator is held against; digits are those to expect
(`cost.expected`), and `SPREAD` times as many, while buffers hold all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import MEMORIES, Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.array import best_row_split, lsb_pass_cycles, msb_pass_cycles
from sparqle_tvm.target.cost.baselines import Scheme, array_of, baseline
from sparqle_tvm.target.cost.energy import prices
from sparqle_tvm.target.cost.energy_table import default_table
from sparqle_tvm.target.cost.events import buffer_bytes
from sparqle_tvm.target.cost.expected import typical_digits
from sparqle_tvm.target.cost.overlap import OpLoads, Timeline
from sparqle_tvm.target.cost.schedule import (
    Candidates,
    Tiling,
    buffer_needs,
    even_splits,
)
from sparqle_tvm.target.isa.header import SIZE_LIMIT
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.op import DenseOp

SPREAD = 1.3
"""Digits of layers and texts differ: schedules have to be good with so many times more, too."""

_FINENESS = 1.06
"""Sizes of tiles that are tried differ by this factor at least."""

_SAMPLED_GROUPS = 16
"""Groups of rows that expected digits are drawn for; more rows are like them."""

_DESCRIPTOR_PJ = 1e-2
"""Decides between schedules of equal energy."""

_SLOTS = ("accumulator_slots", "activation_slots", "weight_slots")


@lru_cache(maxsize=1024)
def tile_sizes(extent: int, unit: int) -> tuple[int, ...]:
    """Extents of tiles to try, largest first: even splits that differ enough."""
    found: list[int] = []
    for size in even_splits(extent, unit).tolist():
        if not found or size * _FINENESS <= found[-1] or size == unit:
            found.append(size)
    return tuple(found)


@lru_cache(maxsize=256)
def space_of(
    op: DenseOp,
    chunks: tuple[int, ...],
    accelerator: Accelerator,
    scheme: Scheme,
    density: float,
    k_chunk: int = 0,
) -> ScheduleSpace:
    """The space of an op, remembered; for the arguments see `ScheduleSpace`."""
    return ScheduleSpace(op, chunks, accelerator, scheme, density, k_chunk)


class ScheduleSpace:
    """All schedules of one op, with each of some chunks of K, or of channels of its outputs.

    They lie on a grid: chunks, rows, channels (1 if those are the chunks), loop order, whether the
    outer operand stays. With `k_chunk`, outputs are encoded: chunks are those of the output
    channels, the outer loop.

    Attributes
    ----------
    bound : ndarray of float64 (chunks, rows, channels, 2, 2)
        Lower bound of the time, infinite if one slot of everything does not fit.
    least : ndarray of float64 (chunks,)
        Its least with each chunk.
    """

    def __init__(
        self,
        op: DenseOp,
        chunks: tuple[int, ...],
        accelerator: Accelerator,
        scheme: Scheme,
        density: float,
        k_chunk: int,
    ) -> None:
        if op.digit_bits != accelerator.digit_bits:
            raise TargetError(
                f"{op.label!r} has digits of {op.digit_bits} bits, accelerator "
                f"{accelerator.name!r} of {accelerator.digit_bits}"
            )
        self.op, self.accelerator, self.scheme = op, accelerator, scheme
        self.chunks, self.k_chunk = np.array(chunks), k_chunk
        self.shares = (density, min(SPREAD * density, 1.0)) if scheme == "sparqle" else (0.0,)
        self.axes = self._grid_axes()
        self.grid = self._grid(2)
        self.work = [self._work(share) for share in self.shares]
        self.encoded = self._encoded()
        self._bound_all()

    def _grid_axes(self) -> tuple[NDArray[Any], ...]:
        op, array = self.op, array_of(self.accelerator, self.scheme)
        rows = np.array(tile_sizes(op.m, array.rows))
        cols = np.array([0] if self.k_chunk else tile_sizes(op.n, array.cols))
        either = np.array([1, 0])
        return self.chunks, rows, cols, either, either

    def _grid(self, slots: int) -> Candidates:
        """All schedules with so many slots of everything."""
        chunk, m, n, rows_outer, keep = np.ix_(*self.axes)
        k = chunk
        if self.k_chunk:
            n, k = chunk, np.full(chunk.shape, self.k_chunk)
        number = np.full(chunk[:1].shape, slots)
        array = array_of(self.accelerator, self.scheme)
        split = [
            best_row_split(self.op, array, min(size, self.op.k)) for size in k.reshape(-1).tolist()
        ]
        return Candidates(
            m=m,
            n=n,
            k=k,
            rows_outer=rows_outer > 0,
            keep_outer=keep > 0,
            activation_slots=number,
            weight_slots=number,
            accumulator_slots=number,
            row_split=np.reshape(split, k.shape),
        )

    def _work(self, share: float) -> NDArray[np.float64]:
        """Cycles of the array, and bytes of digits and bitmap of all activations, by chunk."""
        op, accelerator = self.op, self.accelerator
        # The digits are the same for every op of that K, and so are the passes of a column block.
        blocks, n = math.ceil(op.n / accelerator.cols), accelerator.cols
        if accelerator.rows >= 2 * op.m:
            # Partial sums of rows that share K are added up behind the last block.
            blocks, n = 1, op.n
        one = DenseOp(
            *(op.m, n, op.k, op.weight_bits, op.group_size, op.has_min),
            digit_bits=op.digit_bits,
            scheme=op.scheme,
            window=op.window,
            block_rows=op.block_rows,
        )
        # What digits take does not depend on the rest.
        machine = replace(
            accelerator,
            name="any",
            dram_bytes_per_cycle=1.0,
            dma_descriptor_cycles=0,
            activation_buffer_bytes=SIZE_LIMIT - 1,
            weight_buffer_bytes=SIZE_LIMIT - 1,
            accumulator_buffer_bytes=SIZE_LIMIT - 1,
            drain_elements_per_cycle=1,
            float_bytes=4,
            scratchpad=False,
            memory=MEMORIES[0],
        )
        chunks = (self.k_chunk,) if self.k_chunk else tuple(self.chunks.tolist())
        found = _expected_work(one, chunks, machine, self.scheme, share)
        return np.stack([found[0] * blocks, found[1]])

    def _encoded(self) -> Any:
        """Bytes of encoded outputs, by chunk; 0: outputs are floats."""
        if not self.k_chunk:
            return 0
        op = self.op
        found = [
            storage.encoded_output_bytes(
                *(op.m, op.n, n, self.accelerator), typical_digits(op.m, op.n, min(n, op.n))
            )
            for n in self.chunks.tolist()
        ]
        return np.array(found)

    def _bound_all(self) -> None:
        """Lower bounds of all schedules: two slots of everything, if one of everything fits."""
        some = np.arange(len(self.chunks)).reshape(-1, 1, 1, 1, 1)
        lines = [self.timeline(self.grid, i, some) for i in range(len(self.shares))]
        bound = reduce(np.add, [line.least_cycles() for line in lines]) / len(lines)
        fits = self._fits(self._grid(1))
        if self.k_chunk:
            # Encoded outputs come chunk by chunk.
            fits = fits & (~self.grid.rows_outer | (self.grid.m >= self.op.m))
        shape = tuple(len(axis) for axis in self.axes)
        self.bound = np.where(fits, bound, np.inf)
        assert self.bound.shape == shape
        # Of equal bounds, those come first that leave the channel more time.
        self.rank = self.bound + 0.25 * np.minimum(lines[0].dma_cycles, lines[0].array_cycles)
        self.least = self.bound.reshape(shape[0], -1).min(axis=1)

    def _fits(self, schedule: Candidates) -> Any:
        return self._fit(self._needs(schedule))

    def _needs(self, schedule: Candidates) -> dict[Buffer, Any]:
        digits = baseline(self.scheme).digits
        return buffer_needs(self.op, self.accelerator, schedule, digits=digits)

    def _fit(self, needs: Mapping[Buffer, Any]) -> Any:
        """Whether buffers hold that."""
        if self.accelerator.scratchpad:
            fewest = sorted(needs.values(), key=np.size)
            return reduce(np.add, fewest) <= self.accelerator.onchip_bytes
        fits = [b <= self.accelerator.memory_bytes(name.word) for name, b in needs.items()]
        return reduce(np.logical_and, sorted(fits, key=np.size))

    def ways_that_fit(self, found: Candidates) -> dict[tuple[int, ...], NDArray[np.bool_]]:
        """For every way to have one or two slots, by `_SLOTS`, which schedules fit with it."""

        def needs(way: tuple[int, ...]) -> dict[Buffer, Any]:
            slots = {n: np.full(len(found), c) for n, c in zip(_SLOTS, way, strict=True)}
            return self._needs(replace(found, **slots))

        one = needs((1,) * len(_SLOTS))
        # A kind of tile has the slots of one of them, so what they take adds up.
        more = []
        for at in range(len(_SLOTS)):
            two = needs(tuple(2 if i == at else 1 for i in range(len(_SLOTS))))
            more.append({buffer: two[buffer] - one[buffer] for buffer in one})
        return {
            way: np.broadcast_to(
                self._fit(
                    {
                        b: one[b] + sum((c - 1) * m[b] for c, m in zip(way, more, strict=True))
                        for b in one
                    }
                ),
                len(found),
            )
            for way in sorted(itertools.product((2, 1), repeat=len(_SLOTS)), key=sum, reverse=True)
        }

    def timeline(self, schedule: Candidates, share: int, chunk: Any) -> Timeline:
        """The timeline of schedules with a share of digits; `chunk` are the numbers of chunks."""
        cycles, planes = self.work[share]
        if len(cycles) > 1:
            cycles, planes = cycles[chunk], planes[chunk]
        loads = OpLoads(
            op=self.op,
            accelerator=self.accelerator,
            scheme=self.scheme,
            activation_bytes=planes,
            block_rows=self.op.block_rows,
            encoded_bytes=self.encoded[chunk] if self.k_chunk else 0,
        )
        return Timeline(loads, schedule, cycles)

    def promising(self, chunk: int, count: int) -> NDArray[np.int64]:
        """Numbers of schedules of a chunk that look good, as in the grid laid flat."""
        rank = self.rank[chunk].reshape(-1)
        best = np.argpartition(rank, min(count, len(rank) - 1))[:count]
        best = best[np.isfinite(rank[best])]
        return np.asarray(best + chunk * len(rank))

    def below(self, limits: NDArray[np.float64]) -> NDArray[np.int64]:
        """Numbers of the schedules whose bound is not above the limit of their chunk."""
        with np.errstate(invalid="ignore"):
            open_ = (self.bound <= limits.reshape(-1, 1, 1, 1, 1)) & (self.bound < np.inf)
        return np.flatnonzero(open_)

    def flat(self, numbers: NDArray[np.int64]) -> tuple[Candidates, NDArray[np.int64]]:
        """Some schedules of the grid, and the number of the chunk of each."""
        index = np.unravel_index(numbers, self.bound.shape)
        fields = {}
        for name, values in vars(self.grid).items():
            at = [i if size > 1 else 0 for i, size in zip(index, values.shape, strict=True)]
            fields[name] = np.broadcast_to(values[tuple(at)], numbers.shape)
        return Candidates(**fields), np.asarray(index[0])


class ScheduleTable:
    """Some schedules of a space, with as many slots as fit.

    Attributes
    ----------
    candidates : Candidates
        The schedules.
    chunk : ndarray of int64
        Numbers of their chunks.
    time, energy : ndarray of float64
        Cycles and pJ: lower bounds, what is `walked` aside. Energy is infinite where the time is
        too long.
    """

    def __init__(self, space: ScheduleSpace, numbers: NDArray[np.int64]) -> None:
        self.space = space
        found, chunk = space.flat(numbers)
        self.candidates, which = self._with_slots(found)
        self.chunk = chunk[which]
        self.rank = space.rank.reshape(-1)[numbers[which]]
        everything = self.timelines(np.arange(len(self.chunk)))
        self.time = np.mean([line.least_cycles() for line in everything], axis=0)
        self.walked = np.zeros(len(self.time), np.bool_)
        self.limit = math.inf
        self.energy = np.zeros(0)

    def _with_slots(self, found: Candidates) -> tuple[Candidates, NDArray[np.int64]]:
        """All ways to have two slots of as much as there is room for; of which schedule each is."""
        fitted = self.space.ways_that_fit(found)
        kept, numbers = [], []
        for way, fits in fitted.items():
            # More slots are never worse.
            better = [f for w, f in fitted.items() if w != way and np.all(np.greater_equal(w, way))]
            some = np.flatnonzero(fits & ~np.any([np.zeros_like(fits), *better], axis=0))
            slots = {n: np.full(len(some), c) for n, c in zip(_SLOTS, way, strict=True)}
            kept.append(replace(found[some], **slots))
            numbers.append(some)
        order = np.argsort(which := np.concatenate(numbers), kind="stable")
        return reduce(Candidates.__add__, kept)[order], which[order]

    def timelines(self, some: NDArray[np.int64]) -> list[Timeline]:
        """The timelines of some schedules, for every share of digits."""
        candidates, chunk = self.candidates[some], self.chunk[some]
        shares = range(len(self.space.shares))
        return [self.space.timeline(candidates, share, chunk) for share in shares]

    def known_time(self) -> NDArray[np.float64]:
        """Cycles, infinite where they are only bounds."""
        return np.where(self.walked, self.time, np.inf)

    def of_chunks(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The least value with each chunk."""
        found = np.full(len(self.space.chunks), np.inf)
        np.minimum.at(found, self.chunk, values)
        return found

    def first(self, values: NDArray[np.float64], chunk: int) -> int:
        """Number of the least value with a chunk; of equal ones what is walked, or ranks best."""
        mine = np.flatnonzero(self.chunk == chunk)
        order = np.lexsort((self.rank[mine], ~self.walked[mine], values[mine]))
        return int(mine[order[0]])

    def values(self, phase: str) -> NDArray[np.float64]:
        """Time or energy, see the class."""
        if phase == "time":
            return np.asarray(self.time)
        found = self.energy + self._cycle_pj() * self.time
        return np.where(self.time <= self.limit, found, np.inf)

    def _cycle_pj(self) -> float:
        return _prices(self.space.accelerator)["cycles"]

    def count_energy(self, limit: float) -> None:
        """Count the energy of what may take no longer than `limit`; leakage aside."""
        keep = np.flatnonzero(self.time <= limit)
        self.candidates, self.chunk = self.candidates[keep], self.chunk[keep]
        self.time, self.rank, self.walked = self.time[keep], self.rank[keep], self.walked[keep]
        self.limit = limit
        space, op = self.space, self.space.op
        line = self.timelines(np.arange(len(keep)))[0]
        counts = buffer_bytes(
            *(op, line.loads.activation_bytes, Tiling(op, self.candidates), space.accelerator),
            *(space.scheme, op.block_rows),
        )
        machine = space.accelerator
        fixed = line.descriptors * machine.dma_descriptor_cycles
        counts["dram_read_bytes"] = (line.dma_cycles - fixed) * machine.dram_bytes_per_cycle
        price = _prices(machine)
        self.energy = _DESCRIPTOR_PJ * line.descriptors + np.asarray(
            sum(price[event] * count for event, count in counts.items()), np.float64
        )


@lru_cache(maxsize=1024)
def _prices(accelerator: Accelerator) -> dict[str, float]:
    """What every event costs in pJ."""
    found: dict[str, float] = {}
    for price in prices(accelerator, default_table(accelerator)):
        found[price.event] = found.get(price.event, 0.0) + price.pj.mid
    return found


@lru_cache(maxsize=4096)
def _expected_work(
    op: DenseOp, chunks: tuple[int, ...], accelerator: Accelerator, scheme: Scheme, share: float
) -> NDArray[np.float64]:
    """Cycles of the array and bytes of digits and bitmap with each K chunk: (2, chunks)."""
    array = array_of(accelerator, scheme)
    rows = min(op.m, _SAMPLED_GROUPS * array.rows)
    some = replace(op, m=rows)
    scale = math.ceil(op.m / array.rows) / math.ceil(rows / array.rows)
    unit = math.gcd(op.k if max(chunks) >= op.k else 0, *(c for c in chunks if c < op.k))
    nnz = typical_digits(rows, op.k, unit, share)
    if op.block_rows:
        nnz = nnz.sorted(rows, accelerator.lanes)
    found = []
    for chunk in chunks:
        cycles = lsb_pass_cycles(some, chunk, array) * baseline(scheme).passes
        if scheme == "sparqle":
            cycles += msb_pass_cycles(some, nnz, chunk, array)
        planes = sum(storage.plane_bytes(nnz, chunk, accelerator, scheme))
        found.append((cycles * scale, planes * op.m / rows))
    return np.array(found, np.float64).T
