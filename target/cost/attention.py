"""Cycles, bytes and events of an attention op, without a program.

What a block costs is what the instructions say of it (`isa.attention`, `isa.vector`), added up over
its chunks. When it runs follows from a walk over the blocks in the order of the programs
(`compile.attention`): loads, array, vector unit and stores work in order beside each other, with as
many blocks on chip as the plan has slots, and loads and stores share the channel. Of many key
heads, which are alike, some are walked through.

The other schemes have the same blocks: ``native`` and ``a4`` one pass instead of two, with the
lanes and the bytes of queries that they have (`cost.baselines`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.cost.analytical import Bound
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.cost.baselines import Scheme, array_of, baseline
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.isa import attention as isa
from sparqle_tvm.target.isa.access import Mode, ceil_div
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.isa.base import Pass, transfer_cycles
from sparqle_tvm.target.isa.load import MSB_POINTER_BYTES
from sparqle_tvm.target.isa.operands import BLOCKS, KEYS, Buffer
from sparqle_tvm.target.isa.vector import VecSmx
from sparqle_tvm.target.simulator.attention_work import Work

_WALKED_HEADS = 3
_WALKED_BLOCKS = 256

Instructions = tuple[type[isa.AttentionInstruction], ...]

_SPARSE: Instructions = (isa.MmaQkLsb, isa.MmaQkMsb, isa.MmaPvLsb, isa.MmaPvMsb)
_DENSE: Instructions = (isa.MmaQkLsb, isa.MmaQkDns, isa.MmaPvLsb, isa.MmaPvDns)


@dataclass(frozen=True)
class AttentionCost:
    """Cost of one attention op.

    Attributes
    ----------
    label : str
        The op.
    scheme : {"sparqle", "dense", "native", "a4"}
        How queries and probabilities are stored and multiplied.
    macs : int
        Multiply-accumulates at full precision.
    mma_cycles, vector_cycles, dma_cycles : int
        Cycles of the array, of the vector engine, and of all transfers.
    total_cycles : int
        Time of the op.
    cache_bytes : int
        Keys, values and their scales that are read.
    events : Events
        What costs energy; the bytes are in it.
    """

    label: str
    scheme: Scheme
    macs: int
    mma_cycles: int
    vector_cycles: int
    dma_cycles: int
    total_cycles: int
    cache_bytes: int
    events: Events

    @property
    def dram_bytes(self) -> int:
        """All bytes read and written."""
        return self.events.dram_bytes

    @property
    def compute_cycles(self) -> int:
        """Cycles of the slower of array and vector engine."""
        return max(self.mma_cycles, self.vector_cycles)

    @property
    def bound(self) -> Bound:
        """What limits the op."""
        return "compute" if self.compute_cycles >= self.dma_cycles else "memory"


def attention_cost(
    op: AttentionOp,
    accelerator: Accelerator,
    plan: AttentionPlan,
    work: Work,
    scheme: Scheme | None = None,
) -> AttentionCost:
    """Count an attention op with its `rows` and `keys`.

    Parameters
    ----------
    op : AttentionOp
        The op, of a scheme that programs exist for.
    accelerator : Accelerator
        Where it runs.
    plan : AttentionPlan
        How it is cut up.
    work : Work
        Digits and live keys of all blocks, from a run or drawn.
    scheme : {"sparqle", "dense", "native", "a4"}, optional
        What is counted; by default that of the op. ``native`` and ``a4`` take an op of ``dense``.
    """
    scheme = scheme or cast("Scheme", op.scheme)
    array = array_of(accelerator, scheme)
    return _Walk(plan.header(op, array), plan, work, scheme).cost()


class _Values:
    """Places and tables of blocks, shape (blocks,), or of blocks and chunks, (blocks, chunks)."""

    def __init__(self, numbers: Mapping[str, Any]) -> None:
        self.numbers = numbers

    def __getitem__(self, name: str, /) -> Any:
        return self.numbers[name]


class _Walk:
    """Costs of the blocks of an op, and a walk over them."""

    def __init__(
        self, header: AttentionHeader, plan: AttentionPlan, work: Work, scheme: Scheme
    ) -> None:
        self.header, self.plan, self.scheme = header, plan, scheme
        op = header.op
        self.limits = header.limits(op.rows, op.keys - op.rows)
        self.per_head = header.head_blocks(op.rows)
        block = np.arange(self.limits[BLOCKS])
        chunk = np.arange(ceil_div(self.limits[KEYS], header.key_chunk))
        tables = work.tables
        by_block = {n: t for n, t in tables.items() if t.ndim == 1}
        summed = {n: t.sum(axis=1) for n, t in tables.items() if t.ndim == 2}
        place = header.place(self.limits, block, 0)
        self.blocks = _Values({**place, **by_block, **summed, "block": block})
        grid = header.place(self.limits, block[:, None], chunk[None, :])
        wide = {n: t[:, None] for n, t in by_block.items()}
        chunked = {n: t for n, t in tables.items() if t.ndim == 2}
        # What a block has of a chunk that it does not see is nothing.
        self.seen = grid["keys"] > 0
        self.chunks = _Values(
            {**grid, **wide, **chunked, "block": block[:, None], "chunk": chunk[None, :]}
        )
        first = block % self.per_head == 0
        # Chunks whose keys are loaded: those that a block sees, or all for the first of a head.
        self.loads = first[:, None] & (grid["loaded"] > 0) if plan.stays else self.seen
        passes = baseline(scheme).passes
        self.mmas = _SPARSE if header.sparse else _DENSE[:: 2 if passes == 1 else 1]

    def _of(self, cls: type[isa.AttentionInstruction], name: str) -> NDArray[np.int64]:
        """Cycles or bytes of all steps of a class, 0 where there is no step."""
        here = self.chunks if "chunk" in cls.TRACE else self.blocks
        found = getattr(cls, name)(self.header, here)
        if "chunk" not in cls.TRACE:
            return np.broadcast_to(np.asarray(found, np.int64), self.blocks["rows"].shape)
        present = self.loads if cls.PARTS else self.seen
        return np.where(present, found, 0).astype(np.int64)

    def _bytes(self, cls: type[isa.AttentionInstruction]) -> NDArray[np.int64]:
        nbytes = self._of(cls, "dram_bytes")
        digits = baseline(self.scheme).digits
        if cls is isa.LdQry and digits == 1:
            _, planes, _ = isa.query_sizes(self.header, self.blocks["rows"])
            nbytes = nbytes - planes + ceil_div(planes, 2)
        return nbytes

    def _transfers(self, cls: type[isa.AttentionInstruction]) -> NDArray[np.int64]:
        present = self.loads if "chunk" in cls.TRACE else True
        return np.where(present, transfer_cycles(self.header, self._bytes(cls)), 0)

    def cost(self) -> AttentionCost:
        """Add everything up."""
        header = self.header
        transfers = {cls: self._transfers(cls) for cls in _TRANSFERS}
        cycles = {cls: self._of(cls, "cycles") for cls in (*self.mmas, VecSmx, isa.DrnOut)}
        nbytes = {cls: int(self._bytes(cls).sum()) for cls in _TRANSFERS}
        total = self._time(transfers, cycles)
        written = nbytes[isa.StAtt]
        cached = sum(nbytes[cls] for cls in (isa.LdKey, isa.LdScl, isa.LdVal))
        return AttentionCost(
            label=header.label,
            scheme=self.scheme,
            macs=header.op.macs,
            mma_cycles=sum(int(cycles[cls].sum()) for cls in self.mmas),
            vector_cycles=int(cycles[VecSmx].sum()),
            dma_cycles=sum(int(found.sum()) for found in transfers.values()),
            total_cycles=total,
            cache_bytes=cached,
            events=replace(
                self._events(),
                cycles=total,
                dram_read_bytes=sum(nbytes.values()) - written,
                dram_write_bytes=written,
            ),
        )

    # Time.

    def _time(self, transfers: Mapping[Any, Any], cycles: Mapping[Any, Any]) -> int:
        """Cycles from the first load to the last store."""
        keys, values = transfers[isa.LdKey], transfers[isa.LdVal]
        half = len(self.mmas) // 2
        score = sum(cycles[cls] for cls in self.mmas[:half])
        mix = sum(cycles[cls] for cls in self.mmas[half:])
        parts = _Parts(
            query=transfers[isa.LdQry],
            keys=_Chunks.of(keys + transfers[isa.LdScl], self.loads),
            score=_Chunks.of(score, self.seen),
            vector=cycles[VecSmx],
            values=_Chunks.of(values, self.loads),
            mix=_Chunks.of(mix, self.seen),
            drain=cycles[isa.DrnOut],
            store=transfers[isa.StAtt],
        )
        heads, per_head = self.header.op.kv_heads, self.per_head
        if heads <= _WALKED_HEADS or heads * per_head <= _WALKED_BLOCKS:
            return int(self._walk(parts, heads * per_head))
        # From then on every head takes as long as the one before.
        before, last = (
            self._walk(parts, count * per_head) for count in (_WALKED_HEADS - 1, _WALKED_HEADS)
        )
        return int(last + (heads - _WALKED_HEADS) * (last - before))

    def _walk(self, p: _Parts, blocks: int) -> float:
        """Time of the first `blocks` blocks."""
        plan, stays, per_head = self.plan, self.plan.stays, self.per_head
        clock = _Clock()
        scr_free, prb_free, acc_free, act_free = ([0.0] * blocks for _ in range(4))
        scored, ready = [0.0] * blocks, [0.0] * blocks
        keys_free = values_free = scales_free = 0.0

        def before(times: list[float], block: int) -> float:
            return times[block] if block >= 0 else 0.0

        def score(b: int) -> None:
            nonlocal keys_free
            begin = max(clock.load, before(act_free, b - 2))
            loaded = clock.transfer(begin, p.query[b])
            first = loaded
            if stays and b % per_head == 0:
                begin = max(loaded, keys_free, scales_free)
                loaded = first = clock.transfer(begin, p.keys.total[b])
            elif not stays:
                loaded = max(loaded, before(ready, b - plan.scale_slots))
                first = loaded + p.keys.first[b]
                loaded = clock.transfer(loaded, p.keys.total[b])
            start = max(clock.mma, before(scr_free, b - plan.score_slots), first)
            end = max(start + p.score.total[b], loaded + p.score.last[b])
            if not stays:
                end = max(end, start + p.keys.after_two[b] + p.score.last[b])
                loaded = max(loaded, end - p.score.last_two[b])
            clock.load = max(clock.load, loaded)
            clock.mma = end
            if stays and (b + 1) % per_head == 0:
                keys_free = end
            scored[b] = end

        def probabilities(b: int) -> None:
            nonlocal scales_free
            start = max(clock.vector, scored[b], before(prb_free, b - plan.probability_slots))
            ready[b] = scr_free[b] = clock.vector = start + p.vector[b]
            if stays and (b + 1) % per_head == 0:
                scales_free = ready[b]

        def mix(b: int) -> None:
            nonlocal values_free
            gathers = self.header.sparse and not stays
            begin = max(clock.load, ready[b] if gathers else 0.0)
            loaded = first = 0.0
            if stays and b % per_head == 0:
                loaded = first = clock.transfer(max(begin, values_free), p.values.total[b])
            elif not stays:
                first = begin + p.values.first[b]
                loaded = clock.transfer(begin, p.values.total[b])
            act_free[b] = max(clock.mma, ready[b])
            start = max(act_free[b], before(acc_free, b - 2), first)
            end = max(start + p.mix.total[b], loaded + p.mix.last[b])
            if not stays:
                end = max(end, start + p.values.after_two[b] + p.mix.last[b])
                loaded = max(loaded, end - p.mix.last_two[b])
            clock.load = max(clock.load, loaded)
            clock.mma = prb_free[b] = end
            if stays and (b + 1) % per_head == 0:
                values_free = end
            drained = max(clock.store, end) + p.drain[b]
            acc_free[b] = clock.store = clock.put(drained, p.store[b])

        score(0)
        probabilities(0)
        for b in range(blocks):
            if b + 1 < blocks:
                score(b + 1)
            mix(b)
            if b + 1 < blocks:
                probabilities(b + 1)
        return clock.store

    # Events.

    def _events(self) -> Events:
        """What the instructions say that they do, bytes of DRAM aside."""
        header, wide = self.header, baseline(self.scheme).wide
        read, written = dict.fromkeys(Buffer, 0), dict.fromkeys(Buffer, 0)
        products = {Pass.LSB: 0, Pass.MSB: 0}
        updates = found = 0
        everything: Instructions = (*_TRANSFERS, *self.mmas, VecSmx, isa.DrnOut)
        for cls in everything:
            chunked = "chunk" in cls.TRACE
            here = self.chunks if chunked else self.blocks
            present = (self.loads if cls.PARTS else self.seen) if chunked else True

            def total(values: Any, present: Any = present) -> int:
                return int(np.where(present, values, 0).sum())

            for access in cls.accesses(header):
                if access.mode == Mode.WRITE and cls.PARTS:
                    written[access.tile.buffer] += self._carried(cls)
                    continue
                port_in, port_out = access.traffic(header, here, access.nbytes(header, here))
                shape = self.seen if chunked else self.blocks["rows"]
                read[access.tile.buffer] += total(port_in + 0 * shape)
                written[access.tile.buffer] += total(port_out + 0 * shape)
            if cls in self.mmas:
                work = cls.products(header, here)
                products[cls.PASS] += total(work["macs"])
                updates += total(work["updates"])
                found += total(work.get("found", 0))
        smx, drn = (cls.events(header, self.blocks) for cls in (VecSmx, isa.DrnOut))
        buffers: dict[str, int] = {}
        for buffer in Buffer:
            buffers[f"{buffer.word}_read_bytes"] = read[buffer]
            buffers[f"{buffer.word}_write_bytes"] = written[buffer]
        return Events(
            lsb_products=0 if wide else products[Pass.LSB],
            msb_products=products[Pass.MSB],
            selected_products=products[Pass.MSB] * header.sparse,
            wide_products=products[Pass.LSB] * wide,
            accumulator_updates=updates,
            find_first_steps=found,
            drained_elements=int(drn["drained_elements"].sum()),
            encoded_elements=int(np.sum(smx["encoded_elements"])),
            vector_operations=int(smx["vector_operations"].sum()),
            **buffers,
        )

    def _carried(self, cls: type[isa.AttentionInstruction]) -> int:
        """Bytes that loads bring on chip; pointers stay outside."""
        nbytes = int(self._bytes(cls).sum())
        outside = sum(not part.onchip for part in cls.PARTS)
        return nbytes - outside * MSB_POINTER_BYTES * len(self.blocks["rows"])


_TRANSFERS: Instructions = (isa.LdQry, isa.LdKey, isa.LdScl, isa.LdVal, isa.StAtt)


@dataclass(frozen=True, eq=False)
class _Chunks:
    """Cycles of chunks of each block: all, the first, the last, the last two, all but two."""

    total: list[float]
    first: list[float]
    last: list[float]
    last_two: list[float]
    after_two: list[float]

    @classmethod
    def of(cls, cycles: NDArray[np.int64], present: NDArray[np.bool_]) -> _Chunks:
        count = present.sum(axis=1)
        rows = np.arange(len(cycles))
        last = np.where(count > 0, cycles[rows, np.maximum(count - 1, 0)], 0)
        before = np.where(count > 1, cycles[rows, np.maximum(count - 2, 0)], 0)
        numbers = (cycles.sum(axis=1), cycles[:, 0], last, last + before, cycles[:, 2:].sum(axis=1))
        return cls(*(number.tolist() for number in numbers))


@dataclass(frozen=True, eq=False)
class _Parts:
    """Cycles of everything that each block needs."""

    query: Any
    keys: _Chunks
    score: _Chunks
    vector: Any
    values: _Chunks
    mix: _Chunks
    drain: Any
    store: Any


class _Clock:
    """When each engine is free, and what stores still have to have of the channel."""

    def __init__(self) -> None:
        self.load = self.mma = self.vector = self.store = 0.0
        self._channel = self._debt = 0.0

    def transfer(self, begin: float, cycles: float) -> float:
        """A load: it has the channel after the loads before it, and after stores since then."""
        idle = max(begin - self._channel, 0.0)
        self._debt = max(self._debt - idle, 0.0)
        end = max(begin, self._channel) + self._debt + cycles
        self._debt = 0.0
        self._channel = end
        return end

    def put(self, begin: float, cycles: float) -> float:
        """A store: it gets in between loads, which have to wait."""
        self._debt += cycles
        return begin + cycles
