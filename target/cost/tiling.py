"""The default schedule of a dense op: of all that fit, the one that takes least time and energy.

The space is that of `cost.schedule.Decisions`: tiles that split the op evenly, both loop orders,
the operand of the outer loop kept or not, two slots of everything where two fit, else one. Time is
that of `cost.overlap.Timeline`, which the simulator is held against; digits are those to expect
(`cost.expected`), and half as many more, while buffers hold all of them. Of the schedules whose
time is within `TOLERANCE` of the lower bound of all, or else of the least time, the one with the
least energy is chosen, of equal ones that with fewer transfers. All schemes are searched alike.

Nothing of the space is left out: lower bounds of time and energy are computed for all of it at
once, and a schedule is only walked through while its bound is below what is found (`_settle`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY, rounded_density, typical_digits
from sparqle_tvm.target.cost.overlap import OpLoads, Timeline, walk
from sparqle_tvm.target.cost.schedule import (
    Candidates,
    Decisions,
    Tiling,
    buffer_needs,
    even_splits,
)
from sparqle_tvm.target.isa.header import SIZE_LIMIT
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.op import DenseOp

TOLERANCE = 0.01
"""Share of the least time, as a lower bound has it, that less energy may cost.

With less, one of two schemes may move twice the bytes of the other for a thousandth of its time,
and what is saved is chance (``benchmarks/bench_tuning.py --only tolerance``).
"""

SPREAD = 1.5
"""Digits of layers and texts differ: schedules have to be good with so many times more, too."""

_FINENESS = 1.06
"""Sizes of tiles that are tried differ by this factor at least."""

_SAMPLED_GROUPS = 16
"""Groups of rows that expected digits are drawn for; more rows are like them."""

_AT_ONCE = 48
"""Schedules of an op that are walked through at first; four times as many every time after."""

_DESCRIPTOR_PJ = 1e-2
"""Decides between schedules of equal energy."""

_KEPT = 4096
"""Answers that are remembered."""


@dataclass(frozen=True)
class Question:
    """Dense ops that read one encoding, for which schedules are to be chosen.

    Attributes
    ----------
    ops : tuple of DenseOp
        The ops; `m`, `k` and `block_rows` are the same in all.
    accelerator : Accelerator
        The array and its buffers.
    scheme : {"sparqle", "dense", "native", "a4"}
        What lies in memory.
    density : float
        Share of stored digits to expect, 0 to 1; only ``sparqle`` depends on it.
    """

    ops: tuple[DenseOp, ...]
    accelerator: Accelerator
    scheme: Scheme
    density: float = TYPICAL_DENSITY

    def plain(self) -> tuple[Question, tuple[DenseOp, ...]]:
        """What the answer depends on, and which op of it each of the ops is."""
        # What no dense op depends on does not make another choice.
        machine = replace(self.accelerator, clock_ghz=1.0, vector_lanes=1, vector_macs_per_cycle=1)
        share = rounded_density(self.density) if self.scheme == "sparqle" else 0.0
        ops = tuple(_plain(op, self.scheme, machine) for op in self.ops)
        counts = {op: ops.count(op) for op in ops}
        divisor = math.gcd(*counts.values())
        fewer = tuple(op for op, count in counts.items() for _ in range(count // divisor))
        return Question(fewer, machine, self.scheme, share), ops


_ANSWERS: dict[Question, dict[DenseOp, Decisions]] = {}


def forget() -> None:
    """Forget all answers, so that schedules are chosen anew."""
    _ANSWERS.clear()
    _search.cache_clear()
    choose_drained.cache_clear()


def choose_schedules(
    ops: Sequence[DenseOp],
    accelerator: Accelerator,
    scheme: Scheme,
    density: float = TYPICAL_DENSITY,
) -> tuple[Decisions, ...]:
    """Choose schedules for the dense ops that read one encoding.

    They share the K chunk, because the MSB digits lie in DRAM in tile order: the one with which
    all of them together take least.

    Parameters
    ----------
    ops, accelerator, scheme, density
        See `Question`.

    Raises
    ------
    TargetError
        If the smallest tile does not fit a buffer, or digits have not the width of the array.
    """
    question, plain = Question(tuple(ops), accelerator, scheme, density).plain()
    if question not in _ANSWERS:
        _choose([(question, _Group.of(question))])
    answer = _ANSWERS[question]
    return tuple(answer[op] for op in plain)


def choose_together(questions: Iterable[Question]) -> None:
    """Choose the schedules of many ops, which takes hardly longer than for the largest of them.

    `choose_schedules` knows them then. What has no answer is left for it to refuse.
    """
    new = [q for q in dict.fromkeys(asked.plain()[0] for asked in questions) if q not in _ANSWERS]
    fitting = []
    for question in new:
        try:
            fitting.append((question, _Group.of(question)))
        except TargetError:
            continue
    _choose(fitting)


def _choose(asked: Sequence[tuple[Question, _Group]]) -> None:
    if not asked:
        return
    _settle([group for _, group in asked])
    while len(_ANSWERS) > _KEPT:
        del _ANSWERS[next(iter(_ANSWERS))]
    for question, group in asked:
        _ANSWERS[question] = dict(zip(dict.fromkeys(question.ops), group.chosen(), strict=True))


def best_chunks(
    ops: Sequence[DenseOp], accelerator: Accelerator, scheme: Scheme, count: int
) -> tuple[int, ...]:
    """The `count` K chunks with which ops that share it take least time, the best first."""
    question, _ = Question(tuple(ops), accelerator, scheme).plain()
    group = _Group.of(question)
    found: list[tuple[float, int]] = []
    for chunk in np.argsort(group.least(), kind="stable")[: 2 * count].tolist():
        alone = _Group.of(question, [int(group.chunks[chunk])])
        _settle([alone])
        found.append((alone.total, int(group.chunks[chunk])))
    return tuple(chunk for _, chunk in sorted(found)[:count])


def schedule_of_chunk(
    op: DenseOp, k_chunk: int, accelerator: Accelerator, scheme: Scheme
) -> Decisions:
    """The best schedule of a dense op for a given K chunk.

    Raises
    ------
    TargetError
        If no tile with that chunk fits the buffers, or digits have not the width of the array.
    """
    question, _ = Question((op,), accelerator, scheme).plain()
    group = _Group.of(question, [k_chunk])
    _settle([group])
    return group.chosen()[0]


@lru_cache(maxsize=4096)
def choose_drained(
    op: DenseOp, k_chunk: int, readers: tuple[DenseOp, ...], accelerator: Accelerator
) -> Decisions:
    """Choose the schedule of a dense op that encodes its outputs.

    The output channels of its tile are the K chunk of the ops that read them, for the MSB digits
    are stored tile by tile; channels are the outer loop. The choice minimises the time of the op
    and its readers together, see `choose_schedules`.

    Parameters
    ----------
    op : DenseOp
        The op.
    k_chunk : int
        Its own K chunk.
    readers : tuple of DenseOp
        The ops that read its outputs: their `k` is its `n`.
    accelerator : Accelerator
        The array and its buffers.

    Raises
    ------
    TargetError
        If no tile fits the buffers.
    """
    groups = (max(reader.group_size, 1) for reader in readers)
    unit = math.lcm(8, accelerator.lanes, accelerator.cols, *groups)
    chunks = _sizes(op.n, unit)
    plain = [_plain(o, "sparqle", accelerator) for o in (op, *readers)]
    searches = [_search(plain[0], chunks, accelerator, "sparqle", TYPICAL_DENSITY, k_chunk)]
    searches += [_search(o, chunks, accelerator, "sparqle", TYPICAL_DENSITY) for o in plain[1:]]
    counts = {search: searches.count(search) for search in searches}
    kind = f"that encodes its outputs, in chunks of at least {unit} channels,"
    group = _Group(list(counts), list(counts.values()), kind)
    _settle([group])
    return group.chosen()[0]


def _plain(op: DenseOp, scheme: Scheme, accelerator: Accelerator) -> DenseOp:
    """The op as a scheme computes it; there are no programs of the baselines but ``dense``.

    Whether rows are sorted matters, hardly how many: all of them, here.
    """
    if scheme != "sparqle":
        return replace(op, block_rows=0).in_scheme("dense")
    op = op.in_scheme("sparqle")
    rows = math.ceil(op.m / accelerator.rows) * accelerator.rows
    return replace(op, block_rows=rows) if op.block_rows else op


@lru_cache(maxsize=1024)
def _sizes(extent: int, unit: int) -> tuple[int, ...]:
    """Extents of tiles to try, largest first: even splits that differ enough."""
    found: list[int] = []
    for size in even_splits(extent, unit).tolist():
        if not found or size * _FINENESS <= found[-1] or size == unit:
            found.append(size)
    return tuple(found)


class _Group:
    """Ops that share their chunk: columns of K, or channels of the outputs of the first one.

    Parameters
    ----------
    searches : sequence of _Search
        Those of the ops, each once.
    counts : sequence of int
        How many ops each stands for.
    kind : str
        What schedules are looked for, for messages.

    Attributes
    ----------
    total : float
        The least time of all ops together, once that is settled.
    """

    def __init__(self, searches: Sequence[_Search], counts: Sequence[int], kind: str) -> None:
        self.searches, self.counts = searches, np.array(counts)
        self.chunks = searches[0].chunks
        for search in searches:
            if not np.isfinite(search.least).any():
                raise _misfit(search, kind)
        if not np.isfinite(self.least()).any():
            raise _misfit(searches[0], kind)
        self.tables: list[_Table] = []
        self.total = math.inf
        self.best: list[int] = []

    @classmethod
    def of(cls, question: Question, chunks: Sequence[int] = ()) -> _Group:
        """The group of a question, with all K chunks or some.

        Raises
        ------
        TargetError
            If no tile of an op fits, or no chunk all of them.
        """
        ops, machine, scheme = question.ops, question.accelerator, question.scheme
        lanes = array_of(machine, scheme).lanes
        unit = math.lcm(8, lanes, *(max(op.group_size, 1) for op in ops))
        kind = f"with K chunks of at least {unit} columns (K = {ops[0].k})"
        if chunks:
            kind = f"with K chunks of {chunks[0]} columns"
        tried = tuple(chunks) or _sizes(ops[0].k, unit)
        counts = {op: ops.count(op) for op in ops}
        found = [_search(op, tried, machine, scheme, question.density) for op in counts]
        return cls(found, list(counts.values()), kind)

    def least(self) -> NDArray[np.float64]:
        """A lower bound of the time of all ops together, for every chunk."""
        return np.asarray(self.counts @ np.stack([search.least for search in self.searches]))

    def seeds(self) -> list[_Table]:
        """Schedules that are walked through first: promising ones of promising chunks."""
        chunks = np.argsort(self.least(), kind="stable")[:3]
        self.tables = [
            _Table(search, np.concatenate([search.promising(c, 6) for c in chunks.tolist()]))
            for search in self.searches
        ]
        return self.tables

    def open(self) -> None:
        """Take up all schedules that may be better than the seeds, or near them."""
        least = np.stack([search.least for search in self.searches])
        goal = self._sums(np.stack([t.of_chunks(t.known_time()) for t in self.tables])).min()
        slack = (1 + TOLERANCE) * goal - self._sums(least)
        # What the others take at least leaves so much for each op.
        with np.errstate(invalid="ignore"):
            limits = least + slack / self.counts[:, None]
        self.tables = [
            _Table(search, search.below(limit))
            for search, limit in zip(self.searches, limits, strict=True)
        ]

    def _sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.counts @ values)

    def unsettled(self, phase: str, most: int) -> list[tuple[_Table, NDArray[np.int64]]]:
        """What has to be walked through before the least value is known; none: `best` is it."""
        values = [table.values(phase) for table in self.tables]
        lower = np.stack([t.of_chunks(v) for t, v in zip(self.tables, values, strict=True)])
        sums = self._sums(lower)
        chunk = int(np.argmin(sums))
        if np.isinf(sums[chunk]):
            self.best = []
            return []
        first = [t.first(v, chunk) for t, v in zip(self.tables, values, strict=True)]
        if all(t.walked[i] for t, i in zip(self.tables, first, strict=True)):
            self.best = first
            return []
        known = np.stack(
            [
                t.of_chunks(np.where(t.walked, v, np.inf))
                for t, v in zip(self.tables, values, strict=True)
            ]
        )
        with np.errstate(invalid="ignore"):
            slack = self._sums(known).min() - sums
        found = []
        for j, (table, value) in enumerate(zip(self.tables, values, strict=True)):
            with np.errstate(invalid="ignore"):
                limits = lower[j] + slack / self.counts[j]
            some = np.flatnonzero(~table.walked & (value <= limits[table.chunk]) & (value < np.inf))
            order = np.lexsort((table.rank[some], value[some]))[:most]
            wanted = some[order]
            if not table.walked[first[j]]:
                wanted = np.union1d(wanted, [first[j]])
            if len(wanted):
                found.append((table, wanted))
        return found

    def ideal(self) -> list[float]:
        """Lower bounds of the times of the ops, with the chunk that has the least of all."""
        chunk = int(np.argmin(self.least()))
        return [float(search.least[chunk]) for search in self.searches]

    def limit_time(self, times: Sequence[float]) -> None:
        """From now on only schedules count that take no op longer than that and the tolerance."""
        limits = [(1 + TOLERANCE) * time for time in times]
        if not self.tables:
            chunks = len(self.chunks)
            self.tables = [
                _Table(search, search.below(np.full(chunks, limit)))
                for search, limit in zip(self.searches, limits, strict=True)
            ]
        for table, limit in zip(self.tables, limits, strict=True):
            table.count_energy(limit)

    def chosen(self) -> list[Decisions]:
        """The schedule of each search."""
        return [t.candidates.decisions(i) for t, i in zip(self.tables, self.best, strict=True)]


def _settle(groups: Sequence[_Group]) -> None:
    """Find the best schedules of all groups.

    Best first: while the least value (first of the time, then of the energy) is a bound, the
    schedules of least bound are walked through, those of all groups together.
    """
    for group in groups:
        group.limit_time(group.ideal())
    _reveal("energy", groups)
    # Where nothing comes near the bound, the least time has to be known first.
    slow = [group for group in groups if not group.best]
    if not slow:
        return
    _walk([(t, np.arange(len(t.time))) for group in slow for t in group.seeds()])
    for group in slow:
        group.open()
    _reveal("time", slow)
    for group in slow:
        group.limit_time([float(t.time[i]) for t, i in zip(group.tables, group.best, strict=True)])
    _reveal("energy", slow)


def _reveal(phase: str, groups: Sequence[_Group]) -> None:
    """Walk until the least value of every group is known."""
    open_, most = list(groups), _AT_ONCE
    while open_:
        wanted = [group.unsettled(phase, most) for group in open_]
        most *= 4
        _walk([pair for pairs in wanted for pair in pairs])
        open_ = [group for group, pairs in zip(open_, wanted, strict=True) if pairs]


def _walk(wanted: Sequence[tuple[_Table, NDArray[np.int64]]]) -> None:
    """Walk through some schedules of tables."""
    lines = [line for table, some in wanted for line in table.timelines(some)]
    if not lines:
        return
    times = iter(walk(lines))
    for table, some in wanted:
        found = np.mean([next(times).total_cycles for _ in table.search.shares], axis=0)
        table.time[some] = np.maximum(found, table.time[some])
        table.walked[some] = True


def _misfit(search: _Search, kind: str) -> TargetError:
    return TargetError(
        f"accelerator {search.accelerator.name!r}: no tile of {search.op.label!r} {kind} fits the "
        "buffers"
    )


_SLOTS = ("accumulator_slots", "activation_slots", "weight_slots")


@lru_cache(maxsize=256)
def _search(
    op: DenseOp,
    chunks: tuple[int, ...],
    accelerator: Accelerator,
    scheme: Scheme,
    density: float,
    k_chunk: int = 0,
) -> _Search:
    return _Search(op, chunks, accelerator, scheme, density, k_chunk)


class _Search:
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
        rows = np.array(_sizes(op.m, array.rows))
        cols = np.array([0] if self.k_chunk else _sizes(op.n, array.cols))
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


class _Table:
    """Some schedules of a search, with as many slots as fit.

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

    def __init__(self, search: _Search, numbers: NDArray[np.int64]) -> None:
        self.search = search
        found, chunk = search.flat(numbers)
        self.candidates, which = self._with_slots(found)
        self.chunk = chunk[which]
        self.rank = search.rank.reshape(-1)[numbers[which]]
        everything = self.timelines(np.arange(len(self.chunk)))
        self.time = np.mean([line.least_cycles() for line in everything], axis=0)
        self.walked = np.zeros(len(self.time), np.bool_)
        self.limit = math.inf
        self.energy = np.zeros(0)

    def _with_slots(self, found: Candidates) -> tuple[Candidates, NDArray[np.int64]]:
        """All ways to have two slots of as much as there is room for; of which schedule each is."""
        fitted = self.search.ways_that_fit(found)
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
        shares = range(len(self.search.shares))
        return [self.search.timeline(candidates, share, chunk) for share in shares]

    def known_time(self) -> NDArray[np.float64]:
        """Cycles, infinite where they are only bounds."""
        return np.where(self.walked, self.time, np.inf)

    def of_chunks(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The least value with each chunk."""
        found = np.full(len(self.search.chunks), np.inf)
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
        return _prices(self.search.accelerator)["cycles"]

    def count_energy(self, limit: float) -> None:
        """Count the energy of what may take no longer than `limit`; leakage aside."""
        keep = np.flatnonzero(self.time <= limit)
        self.candidates, self.chunk = self.candidates[keep], self.chunk[keep]
        self.time, self.rank, self.walked = self.time[keep], self.rank[keep], self.walked[keep]
        self.limit = limit
        search, op = self.search, self.search.op
        line = self.timelines(np.arange(len(keep)))[0]
        counts = buffer_bytes(
            *(op, line.loads.activation_bytes, Tiling(op, self.candidates), search.accelerator),
            *(search.scheme, op.block_rows),
        )
        machine = search.accelerator
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
