"""The default schedule of a dense op: of all that fit the buffers the one that takes least time.

The space is that of `cost.schedule.Decisions`: tiles that split the op evenly, both loop orders,
the operand of the outer loop kept or not, two slots of everything where two fit, else one. Time is
that of `cost.overlap.Timeline`, which the simulator is held against; digits are those to expect
(`cost.expected`), and half as many more, while buffers hold all of them. Schedules that take the
same time are told apart by their energy, then by their transfers. All schemes are searched alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import TargetError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.array import best_row_split, lsb_pass_cycles, msb_pass_cycles
from sparqle_tvm.target.cost.baselines import Scheme, array_of, baseline
from sparqle_tvm.target.cost.energy import prices
from sparqle_tvm.target.cost.energy_table import default_table
from sparqle_tvm.target.cost.events import buffer_bytes
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY, typical_digits
from sparqle_tvm.target.cost.overlap import OpLoads, Timeline
from sparqle_tvm.target.cost.schedule import (
    Candidates,
    Decisions,
    Tiling,
    buffer_needs,
    even_splits,
)
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.op import DenseOp

FIRST_CANDIDATES = 8
"""Schedules of a K chunk that are timed first, those with the smallest lower bound."""

MOST_CANDIDATES = 512
"""Schedules of an op that are timed at most after that."""

EQUAL = 1.001
"""Times that differ by less count as equal."""

SPREAD = 1.5
"""Digits of layers and texts differ: schedules have to be good with so many times more, too."""

_FINENESS = 1.06
"""Sizes of tiles that are tried differ by this factor at least."""


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
    ops : sequence of DenseOp
        The ops; `m`, `k` and `block_rows` are the same in all.
    accelerator : Accelerator
        The array and its buffers.
    scheme : {"sparqle", "dense", "native", "a4"}
        What lies in memory.
    density : float
        Share of stored digits to expect, 0 to 1; only ``sparqle`` depends on it.

    Raises
    ------
    TargetError
        If the smallest tile does not fit a buffer, or digits have not the width of the array.
    """
    # Nearly equal densities make equal choices.
    share = round(density * 20) / 20 if scheme == "sparqle" else 0.0
    # What no dense op depends on does not make another choice.
    machine = replace(accelerator, clock_ghz=1.0, vector_lanes=1, vector_macs_per_cycle=1)
    return _choose(tuple(_plain(op, scheme) for op in ops), machine, scheme, share)


def best_chunks(
    ops: Sequence[DenseOp], accelerator: Accelerator, scheme: Scheme, count: int
) -> tuple[int, ...]:
    """The `count` K chunks with which ops that share it take least time, the best first."""
    searches, chunks, kind = _searches(tuple(_plain(op, scheme) for op in ops), accelerator, scheme)
    totals = _timed(searches, accelerator, kind)
    order = np.argsort(totals, kind="stable")[:count]
    return tuple(chunks[order[np.isfinite(totals[order])]].tolist())


def schedule_of_chunk(
    op: DenseOp, k_chunk: int, accelerator: Accelerator, scheme: Scheme
) -> Decisions:
    """The best schedule of a dense op for a given K chunk.

    Raises
    ------
    TargetError
        If no tile with that chunk fits the buffers, or digits have not the width of the array.
    """
    kind = f"with K chunks of {k_chunk} columns"
    search = _Search(_plain(op, scheme), np.array([k_chunk]), accelerator, scheme)
    return _best([search], accelerator, kind)[0]


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
    drained = _Search(_plain(op, "sparqle"), chunks, accelerator, "sparqle", k_chunk=k_chunk)
    others = [_Search(_plain(r, "sparqle"), chunks, accelerator, "sparqle") for r in readers]
    kind = f"that encodes its outputs, in chunks of at least {unit} channels,"
    return _best([drained, *others], accelerator, kind)[0]


def _plain(op: DenseOp, scheme: Scheme) -> DenseOp:
    """The op as a scheme computes it; there are no programs of the baselines but ``dense``."""
    if scheme == "sparqle":
        return op.in_scheme("sparqle")
    return replace(op, block_rows=0).in_scheme("dense")


@lru_cache(maxsize=4096)
def _choose(
    ops: tuple[DenseOp, ...], accelerator: Accelerator, scheme: Scheme, density: float
) -> tuple[Decisions, ...]:
    searches, _, kind = _searches(ops, accelerator, scheme, density)
    return tuple(_best(searches, accelerator, kind))


def _searches(
    ops: tuple[DenseOp, ...],
    accelerator: Accelerator,
    scheme: Scheme,
    density: float = TYPICAL_DENSITY,
) -> tuple[list[_Search], NDArray[np.int64], str]:
    """The search of each op (the same for equal ops), the K chunks, and what they are."""
    lanes = array_of(accelerator, scheme).lanes
    unit = math.lcm(8, lanes, *(max(s.group_size, 1) for s in ops))
    chunks = _sizes(ops[0].k, unit)
    found = {op: _Search(op, chunks, accelerator, scheme, density) for op in dict.fromkeys(ops)}
    kind = f"with K chunks of at least {unit} columns (K = {ops[0].k})"
    return [found[op] for op in ops], chunks, kind


def _sizes(extent: int, unit: int) -> NDArray[np.int64]:
    """Extents of tiles to try, largest first: even splits that differ enough."""
    found: list[int] = []
    for size in even_splits(extent, unit).tolist():
        if not found or size * _FINENESS <= found[-1] or size == unit:
            found.append(size)
    return np.array(found)


def _best(searches: Sequence[_Search], accelerator: Accelerator, kind: str) -> list[Decisions]:
    """The schedules of ops that share their chunk, with the chunk that is best for all."""
    totals = _timed(searches, accelerator, kind)
    distinct = list(dict.fromkeys(searches))
    counts = [searches.count(search) for search in distinct]
    equal = np.flatnonzero(totals <= EQUAL * totals.min())
    slack = EQUAL * totals.min() / totals
    options = [[search.choose(c, slack[c]) for search in distinct] for c in equal.tolist()]
    energies = [sum(c * o[0] for c, o in zip(counts, option, strict=True)) for option in options]
    best = options[int(np.argmin(energies))]
    of = {search: decisions for search, (_, decisions) in zip(distinct, best, strict=True)}
    return [of[search] for search in searches]


def _timed(searches: Sequence[_Search], accelerator: Accelerator, kind: str) -> NDArray[np.float64]:
    """The least time of all ops together, for every chunk."""
    distinct = list(dict.fromkeys(searches))
    counts = np.array([searches.count(search) for search in distinct])
    least = np.stack([search.least for search in distinct])
    for search, bounds in zip(distinct, least, strict=True):
        if not np.isfinite(bounds).any():
            raise _misfit(search.op, accelerator, kind)
    if not np.isfinite(least.sum(axis=0)).any():
        raise _misfit(distinct[0].op, accelerator, kind)
    for search in distinct:
        search.time_first()
    goal = (counts @ np.stack([search.best for search in distinct])).min()
    for i, search in enumerate(distinct):
        # What the others take at least leaves so much for this op.
        others = np.delete(counts, i) @ np.delete(least, i, axis=0)
        search.time_rest(EQUAL * goal - others, int(counts[i]))
    return np.asarray(counts @ np.stack([search.best for search in distinct]))


def _misfit(op: DenseOp, accelerator: Accelerator, kind: str) -> TargetError:
    return TargetError(
        f"accelerator {accelerator.name!r}: no tile of {op.label!r} {kind} fits the buffers"
    )


_SLOTS = {
    "accumulator_slots": Buffer.ACC,
    "activation_slots": Buffer.ACT,
    "weight_slots": Buffer.WGT,
}


class _Search:
    """Schedules of one op, for each of some chunks: columns of K, or channels of its outputs.

    With `k_chunk`, outputs are encoded: chunks are those of the output channels, the outer loop.

    Attributes
    ----------
    least, best : ndarray of float64 (chunks,)
        Lower bound of the time with each chunk, and the least time found so far.
    """

    def __init__(
        self,
        op: DenseOp,
        chunks: NDArray[np.int64],
        accelerator: Accelerator,
        scheme: Scheme,
        density: float = TYPICAL_DENSITY,
        k_chunk: int = 0,
    ) -> None:
        if op.digit_bits != accelerator.digit_bits:
            raise TargetError(
                f"{op.label!r} has digits of {op.digit_bits} bits, accelerator "
                f"{accelerator.name!r} of {accelerator.digit_bits}"
            )
        self.op, self.accelerator, self.scheme = op, accelerator, scheme
        self.chunks, self.k_chunk = chunks, k_chunk
        self.shares = (density, min(SPREAD * density, 1.0)) if scheme == "sparqle" else (0.0,)
        self.digits: dict[tuple[int, float], RowNnz] = {}
        self.by_chunk: dict[tuple[int, float], tuple[float, float]] = {}
        self.candidates, self.chunk = self._enumerate()
        everything = [self._timeline(slice(None), share) for share in self.shares]
        self.bound = np.mean([part.least_cycles() for part in everything], axis=0)
        # Of equal bounds, those come first that leave the channel more time.
        self.rank = self.bound + 0.25 * np.minimum(
            everything[0].dma_cycles, everything[0].array_cycles
        )
        self.cycles = np.full(len(self.bound), np.inf)
        self.least = self._least_of_chunks(self.bound)

    @property
    def best(self) -> NDArray[np.float64]:
        """The least time found so far with each chunk."""
        return self._least_of_chunks(self.cycles)

    def _least_of_chunks(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.full(len(self.chunks), np.inf)
        np.minimum.at(found, self.chunk, values)
        return found

    def _enumerate(self) -> tuple[Candidates, NDArray[np.int64]]:
        """All schedules that fit, and the number of the chunk of each."""
        op, array = self.op, array_of(self.accelerator, self.scheme)
        numbers = np.arange(len(self.chunks))
        rows = _sizes(op.m, array.rows)
        cols = np.array([0]) if self.k_chunk else _sizes(op.n, array.cols)
        either = np.array([True, False])
        grid = np.meshgrid(numbers, rows, cols, either, either, indexing="ij")
        chunk, m, n, rows_outer, keep = (values.reshape(-1) for values in grid)
        k = self.chunks[chunk]
        if self.k_chunk:
            n, k = k, np.full(len(k), self.k_chunk)
        distinct, which = np.unique(k, return_inverse=True)
        split = np.array([best_row_split(op, array, min(int(c), op.k)) for c in distinct])
        two = np.full(len(m), 2)
        found = Candidates(
            m=m,
            n=n,
            k=k,
            rows_outer=rows_outer,
            keep_outer=keep,
            activation_slots=two,
            weight_slots=two,
            accumulator_slots=two,
            row_split=split[which],
        )
        if self.k_chunk:
            # Encoded outputs come chunk by chunk.
            ordered = ~rows_outer | (m >= op.m)
            found, chunk = found[ordered], chunk[ordered]
        with_slots = self._divided if self.accelerator.scratchpad else self._in_buffers
        found, which = with_slots(found)
        return found, chunk[which]

    def _needs(self, found: Candidates) -> dict[Buffer, Any]:
        digits = baseline(self.scheme).digits
        return buffer_needs(self.op, self.accelerator, found, digits=digits)

    def _in_buffers(self, found: Candidates) -> tuple[Candidates, NDArray[np.int64]]:
        """Two slots where a buffer has room for two; numbers of the candidates that fit."""
        fits = np.ones(len(found), np.bool_)
        for name, buffer in _SLOTS.items():
            size = self.accelerator.memory_bytes(buffer.word)
            slots = np.where(self._needs(found)[buffer] <= size, 2, 1)
            found = replace(found, **{name: slots})
            fits &= self._needs(found)[buffer] <= size
        return found[fits], np.flatnonzero(fits)

    def _divided(self, found: Candidates) -> tuple[Candidates, NDArray[np.int64]]:
        """All ways to have two slots of as much as a scratchpad has room for."""
        ways = sorted(itertools.product((2, 1), repeat=len(_SLOTS)), key=sum, reverse=True)
        seen: list[tuple[tuple[int, ...], NDArray[np.bool_]]] = []
        kept, numbers = found[:0], [np.empty(0, dtype=np.int64)]
        for way in ways:
            slots = {n: np.full(len(found), c) for n, c in zip(_SLOTS, way, strict=True)}
            some = replace(found, **slots)
            fits = sum(self._needs(some).values()) <= self.accelerator.onchip_bytes
            # More slots are never worse.
            for better, fitted in seen:
                if all(a >= b for a, b in zip(better, way, strict=True)):
                    fits &= ~fitted
            seen.append((way, fits))
            kept = kept + some[fits]
            numbers.append(np.flatnonzero(fits))
        return kept, np.concatenate(numbers)

    def _expected(self, chunk: int, share: float) -> RowNnz:
        """Digits to expect, counted by the K chunk."""
        if (chunk, share) not in self.digits:
            nnz = typical_digits(self.op.m, self.op.k, min(chunk, self.op.k), share)
            if self.op.block_rows:
                nnz = nnz.sorted(self.op.block_rows, self.accelerator.lanes)
            self.digits[chunk, share] = nnz
        return self.digits[chunk, share]

    def _of_chunk(self, chunk: int, share: float) -> tuple[float, float]:
        """Cycles of the array with a K chunk, and bytes of all activations."""
        if (chunk, share) not in self.by_chunk:
            op, array = self.op, array_of(self.accelerator, self.scheme)
            cycles = lsb_pass_cycles(op, chunk, array)
            nnz = self._expected(chunk, share)
            passes = cycles * (baseline(self.scheme).passes - 1)
            if self.scheme == "sparqle":
                passes = msb_pass_cycles(op, nnz, chunk, array)
            planes = storage.plane_bytes(nnz, chunk, self.accelerator, self.scheme)
            self.by_chunk[chunk, share] = float(cycles + passes), float(sum(planes))
        return self.by_chunk[chunk, share]

    def _timeline(self, which: Any, share: float) -> Timeline:
        op, some = self.op, self.candidates[which]
        distinct, at = np.unique(some.k, return_inverse=True)
        parts = [self._of_chunk(chunk, share) for chunk in distinct.tolist()]
        cycles, planes = np.array(parts).reshape(-1, 2)[at].T
        encoded: Any = 0
        if self.k_chunk:
            sizes, at = np.unique(some.n, return_inverse=True)
            found = [
                storage.encoded_output_bytes(
                    *(op.m, op.n, n, self.accelerator), typical_digits(op.m, op.n, min(n, op.n))
                )
                for n in sizes.tolist()
            ]
            encoded = np.array(found)[at]
        loads = OpLoads(
            op=op,
            accelerator=self.accelerator,
            scheme=self.scheme,
            activation_bytes=planes,
            block_rows=op.block_rows,
            encoded_bytes=encoded,
        )
        return Timeline(loads, some, cycles)

    def _time(self, which: NDArray[np.int64]) -> None:
        if len(which):
            times = [self._timeline(which, share).run() for share in self.shares]
            self.cycles[which] = np.mean([part.total_cycles for part in times], axis=0)

    def time_first(self) -> None:
        """Time a few schedules of every chunk."""
        order = np.lexsort((self.rank, self.chunk))
        begins = np.searchsorted(self.chunk[order], np.arange(len(self.chunks)))
        rank = np.arange(len(order)) - begins[self.chunk[order]]
        self._time(order[rank < FIRST_CANDIDATES])

    def time_rest(self, limits: NDArray[np.float64], count: int) -> None:
        """Time what `count` times may still take less than the limit of its chunk."""
        open_ = np.flatnonzero(np.isinf(self.cycles) & (count * self.bound <= limits[self.chunk]))
        self._time(open_[np.argsort(self.rank[open_], kind="stable")[:MOST_CANDIDATES]])

    def choose(self, chunk: int, slack: float) -> tuple[float, Decisions]:
        """Energy (pJ) and schedule: of those near the least time the one with least energy."""
        mine = np.flatnonzero(self.chunk == chunk)
        mine = mine[self.cycles[mine] <= slack * self.cycles[mine].min()]
        energies = self._energies(mine)
        # Nearly equal in energy, too: fewer descriptors.
        close = energies <= 1.0001 * energies.min()
        transfers = np.where(close, self._timeline(mine, self.shares[0]).dma_cycles, np.inf)
        best = int(np.argmin(transfers))
        return float(energies[best]), self.candidates.decisions(int(mine[best]))

    def _energies(self, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """What of their energy schedules with the same chunk differ in: memory, and leakage."""
        some, op = self.candidates[which], self.op
        chunk = int(some.k[0])
        tiling = Tiling(op, some)
        nnz = self._expected(chunk, self.shares[0])
        counts = dict(
            buffer_bytes(op, nnz, chunk, tiling, self.accelerator, self.scheme, op.block_rows)
        )
        timeline = self._timeline(which, self.shares[0])
        per_cycle = self.accelerator.dram_bytes_per_cycle
        fixed = timeline.descriptors * self.accelerator.dma_descriptor_cycles
        counts["dram_read_bytes"] = (timeline.dma_cycles - fixed) * per_cycle
        counts["cycles"] = self.cycles[which]
        table = default_table(self.accelerator)
        return np.asarray(
            sum(
                price.pj.mid * counts[price.event]
                for price in prices(self.accelerator, table)
                if price.event in counts
            ),
            dtype=np.float64,
        ) + np.zeros(len(which))
