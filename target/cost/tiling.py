"""The default schedule of a dense op: of all that fit, the one that takes least time and energy.

The space is that of `cost.schedule_space`. Of the schedules whose time is within `TOLERANCE` of the
lower bound of all, or else of the least time, the one with the least energy is chosen, of equal
ones that with fewer transfers. All schemes are searched alike.

Nothing of the space is left out: lower bounds of time and energy are computed for all of it at
once, and a schedule is only walked through while its bound is below what is found (`_settle`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.baselines import Scheme, array_of
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY, rounded_density
from sparqle_tvm.target.cost.overlap import walk
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.cost.schedule_space import (
    ScheduleSpace,
    ScheduleTable,
    space_of,
    tile_sizes,
)
from sparqle_tvm.target.op import DenseOp

TOLERANCE = 0.003
"""Share of the least time, as a lower bound has it, that less energy may cost.

With none, one of two schemes may move twice the bytes of the other for a thousandth of its time.
With more, the baseline is slower than the fastest it could be, which flatters what is saved
(``benchmarks/bench_tuning.py --only tolerance``).
"""

_AT_ONCE = 48
"""Schedules of an op that are walked through at first; four times as many every time after."""

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
        return _plain_question(self)


@lru_cache(maxsize=4096)
def _plain_question(asked: Question) -> tuple[Question, tuple[DenseOp, ...]]:
    # What no dense op depends on does not make another choice.
    machine = replace(asked.accelerator, clock_ghz=1.0, vector_lanes=1, vector_macs_per_cycle=1)
    share = rounded_density(asked.density) if asked.scheme == "sparqle" else 0.0
    ops = tuple(_plain(op, asked.scheme, machine) for op in asked.ops)
    counts = {op: ops.count(op) for op in ops}
    divisor = math.gcd(*counts.values())
    fewer = tuple(op for op, count in counts.items() for _ in range(count // divisor))
    return Question(fewer, machine, asked.scheme, share), ops


_ANSWERS: dict[Question, dict[DenseOp, Decisions]] = {}


def forget() -> None:
    """Forget all answers, so that schedules are chosen anew."""
    _ANSWERS.clear()
    space_of.cache_clear()
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
    chunks = tile_sizes(op.n, unit)
    plain = [_plain(o, "sparqle", accelerator) for o in (op, *readers)]
    spaces = [space_of(plain[0], chunks, accelerator, "sparqle", TYPICAL_DENSITY, k_chunk)]
    spaces += [space_of(o, chunks, accelerator, "sparqle", TYPICAL_DENSITY) for o in plain[1:]]
    counts = {space: spaces.count(space) for space in spaces}
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


class _Group:
    """Ops that share their chunk: columns of K, or channels of the outputs of the first one.

    Parameters
    ----------
    spaces : sequence of ScheduleSpace
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

    def __init__(self, spaces: Sequence[ScheduleSpace], counts: Sequence[int], kind: str) -> None:
        self.spaces, self.counts = spaces, np.array(counts)
        self.chunks = spaces[0].chunks
        for space in spaces:
            if not np.isfinite(space.least).any():
                raise _misfit(space, kind)
        if not np.isfinite(self.least()).any():
            raise _misfit(spaces[0], kind)
        self.tables: list[ScheduleTable] = []
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
        tried = tuple(chunks) or tile_sizes(ops[0].k, unit)
        counts = {op: ops.count(op) for op in ops}
        found = [space_of(op, tried, machine, scheme, question.density) for op in counts]
        return cls(found, list(counts.values()), kind)

    def least(self) -> NDArray[np.float64]:
        """A lower bound of the time of all ops together, for every chunk."""
        return np.asarray(self.counts @ np.stack([space.least for space in self.spaces]))

    def seeds(self) -> list[ScheduleTable]:
        """Schedules that are walked through first: promising ones of promising chunks."""
        chunks = np.argsort(self.least(), kind="stable")[:3]
        self.tables = [
            ScheduleTable(space, np.concatenate([space.promising(c, 6) for c in chunks.tolist()]))
            for space in self.spaces
        ]
        return self.tables

    def open(self) -> None:
        """Take up all schedules that may be better than the seeds, or near them."""
        least = np.stack([space.least for space in self.spaces])
        goal = self._sums(np.stack([t.of_chunks(t.known_time()) for t in self.tables])).min()
        slack = (1 + TOLERANCE) * goal - self._sums(least)
        # What the others take at least leaves so much for each op.
        with np.errstate(invalid="ignore"):
            limits = least + slack / self.counts[:, None]
        self.tables = [
            ScheduleTable(space, space.below(limit))
            for space, limit in zip(self.spaces, limits, strict=True)
        ]

    def _sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.counts @ values)

    def unsettled(self, phase: str, most: int) -> list[tuple[ScheduleTable, NDArray[np.int64]]]:
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
        return [float(space.least[chunk]) for space in self.spaces]

    def limit_time(self, times: Sequence[float]) -> None:
        """From now on only schedules count that take no op longer than that and the tolerance."""
        limits = [(1 + TOLERANCE) * time for time in times]
        if not self.tables:
            chunks = len(self.chunks)
            self.tables = [
                ScheduleTable(space, space.below(np.full(chunks, limit)))
                for space, limit in zip(self.spaces, limits, strict=True)
            ]
        for table, limit in zip(self.tables, limits, strict=True):
            table.count_energy(limit)

    def chosen(self) -> list[Decisions]:
        """The schedule of each op."""
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


def _walk(wanted: Sequence[tuple[ScheduleTable, NDArray[np.int64]]]) -> None:
    """Walk through some schedules of tables."""
    lines = [line for table, some in wanted for line in table.timelines(some)]
    if not lines:
        return
    times = iter(walk(lines))
    for table, some in wanted:
        found = np.mean([next(times).total_cycles for _ in table.space.shares], axis=0)
        table.time[some] = np.maximum(found, table.time[some])
        table.walked[some] = True


def _misfit(space: ScheduleSpace, kind: str) -> TargetError:
    return TargetError(
        f"accelerator {space.accelerator.name!r}: no tile of {space.op.label!r} {kind} fits the "
        "buffers"
    )
