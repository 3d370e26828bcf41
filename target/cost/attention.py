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

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.accelerator import MEMORIES, PIPELINE_CYCLES, Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.cost.analytical import Bound
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.cost.baselines import Scheme, array_of, baseline
from sparqle_tvm.target.cost.events import NAMES as EVENT_NAMES
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.limits import Limits, divide
from sparqle_tvm.target.isa import attention as isa
from sparqle_tvm.target.isa.access import Mode, ceil_div
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.isa.base import Pass, transfer_cycles
from sparqle_tvm.target.isa.header import SIZE_LIMIT
from sparqle_tvm.target.isa.load import MSB_POINTER_BYTES
from sparqle_tvm.target.isa.operands import BLOCKS, KEYS, Buffer
from sparqle_tvm.target.isa.vector import VecSmx
from sparqle_tvm.target.simulator.attention_work import Work

_WALKED_HEADS = 3
_WALKED_BLOCKS = 256
# Of many chunks the first and the last so many are looked at alone, the others in groups.
_ALONE, _GROUPS = 2, 10

Instructions = tuple[type[isa.AttentionInstruction], ...]

_SPARSE: Instructions = (isa.MmaQkLsb, isa.MmaQkMsb, isa.MmaPvLsb, isa.MmaPvMsb)
_DENSE: Instructions = (isa.MmaQkLsb, isa.MmaQkDns, isa.MmaPvLsb, isa.MmaPvDns)


_NUMBERS = (
    *("macs", "mma_cycles", "waiting_cycles", "vector_cycles", "drain_cycles", "dma_cycles"),
    *("descriptors", "total_cycles", "cache_bytes", "descriptor_cycles"),
)


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
    mma_cycles, waiting_cycles : int
        Cycles of the array, and of them the share of PEs that wait for the slowest row.
    vector_cycles, drain_cycles, dma_cycles : int
        Cycles of the vector engine, of the drain path, and of all transfers.
    descriptors : int
        Transfers.
    total_cycles : int
        Time of the op.
    cache_bytes : int
        Keys, values and their scales that are read.
    descriptor_cycles : int
        Cycles that transfers take besides their bytes.
    events : Events
        What costs energy; the bytes are in it.
    """

    label: str
    scheme: Scheme
    macs: int
    mma_cycles: int
    waiting_cycles: int
    vector_cycles: int
    drain_cycles: int
    dma_cycles: int
    descriptors: int
    total_cycles: int
    cache_bytes: int
    descriptor_cycles: int
    events: Events

    @property
    def dram_bytes(self) -> int:
        """All bytes read and written."""
        return self.events.dram_bytes

    def __add__(self, other: AttentionCost) -> AttentionCost:
        """Both, one after the other."""
        return self._combined(other, lambda a, b: a + b)

    def scaled(self, factor: float) -> AttentionCost:
        """As many times the same, in whole numbers."""
        return self._combined(self, lambda a, _: round(a * factor))

    def _combined(self, other: AttentionCost, combine: Callable[[int, int], int]) -> AttentionCost:
        mine, theirs = vars(self.events), vars(other.events)
        numbers: dict[str, Any] = {
            name: combine(getattr(self, name), getattr(other, name)) for name in _NUMBERS
        }
        events = Events(**{n: combine(mine[n], theirs[n]) for n in EVENT_NAMES})
        return replace(self, **numbers, events=events)

    @property
    def compute_cycles(self) -> int:
        """Cycles of the slower of array and vector engine."""
        return max(self.mma_cycles, self.vector_cycles)

    @property
    def limits(self) -> Limits:
        """What the time is limited by, see `limits`."""
        moved = self.dma_cycles - self.descriptor_cycles
        cache = moved * self.cache_bytes / (self.dram_bytes or 1)
        engines = [
            {
                "array": float(self.mma_cycles - self.waiting_cycles),
                "waiting_rows": float(self.waiting_cycles),
            },
            {
                "kv_cache": cache,
                "activations": moved - cache,
                "descriptors": float(self.descriptor_cycles),
            },
            {"vector": float(self.vector_cycles)},
            {"drain": float(self.drain_cycles)},
        ]
        return divide(self.total_cycles, engines)

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


def counted_machine(accelerator: Accelerator) -> Accelerator:
    """What of an accelerator the cost of an attention op with a given plan depends on."""
    return replace(
        accelerator,
        name="any",
        clock_ghz=1.0,
        vector_macs_per_cycle=1,
        activation_buffer_bytes=SIZE_LIMIT - 1,
        weight_buffer_bytes=SIZE_LIMIT - 1,
        accumulator_buffer_bytes=SIZE_LIMIT - 1,
        msb_across_groups=True,
        scratchpad=False,
        memory=MEMORIES[0],
    )


class AttentionTime:
    """The time of an attention op alone, and a bound of it that takes a tenth of the work.

    Parameters
    ----------
    op, accelerator, plan, work
        As of `attention_cost`.

    Attributes
    ----------
    least_cycles : int
        The busiest of array, vector engine and transfers, with what comes before its first step and
        after its last. It holds of as many key heads as are walked through one by one.
    """

    def __init__(
        self, op: AttentionOp, accelerator: Accelerator, plan: AttentionPlan, work: Work
    ) -> None:
        scheme = cast("Scheme", op.scheme)
        self._walk = _Walk(plan.header(op, array_of(accelerator, scheme)), plan, work, scheme)
        self.least_cycles = self._walk.least()

    def total_cycles(self) -> int:
        """As `AttentionCost.total_cycles`."""
        return self._walk.total_cycles

    def cost(self) -> AttentionCost:
        """All that it costs."""
        return self._walk.cost()


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
        transfers, cycles = self.steps
        nbytes = {cls: int(self._bytes(cls).sum()) for cls in _TRANSFERS}
        total = self.total_cycles
        written = nbytes[isa.StAtt]
        count = sum(int((found > 0).sum()) for found in transfers.values())
        machine = header.accelerator
        waits = sum(
            int(np.where(self.seen, cls.products(header, self.chunks).get("waiting", 0), 0).sum())
            for cls in self.mmas
        )
        cached = sum(nbytes[cls] for cls in (isa.LdKey, isa.LdScl, isa.LdVal))
        return AttentionCost(
            label=header.label,
            scheme=self.scheme,
            macs=header.op.macs,
            mma_cycles=sum(int(cycles[cls].sum()) for cls in self.mmas),
            waiting_cycles=round(waits * machine.lanes / machine.macs_per_cycle),
            vector_cycles=int(cycles[VecSmx].sum()),
            drain_cycles=int(cycles[isa.DrnOut].sum()),
            descriptors=count,
            descriptor_cycles=count * machine.dma_descriptor_cycles,
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

    @cached_property
    def steps(self) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
        """Cycles of transfers, and of everything else, by instruction, for every step."""
        transfers = {cls: self._transfers(cls) for cls in _TRANSFERS}
        cycles = {cls: self._of(cls, "cycles") for cls in (*self.mmas, VecSmx, isa.DrnOut)}
        return transfers, cycles

    def least(self) -> int:
        """A lower bound of the time of blocks that are all walked through."""
        transfers, cycles = self.steps
        half = len(self.mmas) // 2
        score, mix = (sum(cycles[c] for c in part) for part in (self.mmas[:half], self.mmas[half:]))
        vector = cycles[VecSmx]
        begin = transfers[isa.LdQry][0] + transfers[isa.LdKey][0, 0]
        end = cycles[isa.DrnOut][-1] + transfers[isa.StAtt][-1]
        array = begin + score.sum() + mix.sum() + PIPELINE_CYCLES + end
        softmax = begin + score[0].sum() + vector.sum() + mix[-1].sum() + 2 * PIPELINE_CYCLES + end
        return int(max(array, softmax, sum(found.sum() for found in transfers.values())))

    @cached_property
    def total_cycles(self) -> int:
        """Cycles from the first load to the last store."""
        transfers, cycles = self.steps
        heads, per_head = self.header.op.kv_heads, self.per_head
        all_walked = heads <= _WALKED_HEADS or heads * per_head <= _WALKED_BLOCKS
        blocks = per_head * (heads if all_walked else _WALKED_HEADS)
        half = len(self.mmas) // 2
        score = sum(cycles[cls] for cls in self.mmas[:half])
        mix = sum(cycles[cls] for cls in self.mmas[half:])

        def chunks(found: Any, present: NDArray[np.bool_]) -> list[list[float]]:
            return _by_chunk(found[:blocks], present[:blocks])

        parts = _Parts(
            query=transfers[isa.LdQry].tolist(),
            keys=chunks(transfers[isa.LdKey], self.loads),
            scales=chunks(transfers[isa.LdScl], self.loads),
            score=chunks(score, self.seen),
            vector=cycles[VecSmx].tolist(),
            values=chunks(transfers[isa.LdVal], self.loads),
            mix=chunks(mix, self.seen),
            drain=cycles[isa.DrnOut].tolist(),
            store=transfers[isa.StAtt].tolist(),
        )
        if all_walked:
            return int(self._walk(parts, blocks))
        # From then on every head takes as long as the one before.
        before, last = (self._walk(parts, count) for count in (blocks - per_head, blocks))
        return int(last + (heads - _WALKED_HEADS) * (last - before))

    def _walk(self, p: _Parts, blocks: int) -> float:
        """Time of the first `blocks` blocks: the engines with what each has to do, in order."""
        plan, stays = self.plan, self.plan.stays
        per_head, gathers = self.per_head, self.header.sparse and not stays
        e = _Engines()
        load, mma, vector, store = e.load, e.mma, e.vector, e.store
        act, osc, prb, liv, scl, wgt, val = (_Queue() for _ in range(7))
        acc, scr = _Sums(), _Sums()
        shared, chunk = 1 if stays else plan.scale_slots, 1 if stays else plan.chunk_slots
        free_act, free_acc, free_osc = (_Queue([0.0] * 2) for _ in range(3))
        free_scr = _Queue([0.0] * plan.score_slots)
        free_prb, free_liv = (_Queue([0.0] * plan.probability_slots) for _ in range(2))
        free_scl, free_wgt, free_val = (_Queue([0.0] * n) for n in (shared, chunk, chunk))

        def score(b: int) -> None:
            first, last = b % per_head == 0, (b + 1) % per_head == 0
            load.transfer(p.query[b], wait=free_act, signal=act)
            if not stays or first:
                load.wait(free_scl)
            mma.wait(act, free_scr)
            if stays and first:
                load.wait(free_wgt)
                for both in zip(p.keys[b], p.scales[b], strict=True):
                    for cycles in both:
                        load.transfer(cycles)
                load.signal(wgt, scl)
                mma.wait(wgt)
            chunks = zip(p.keys[b], p.scales[b], p.score[b], strict=True) if not stays else ()
            for keys, scales, work in chunks:
                load.transfer(keys, wait=free_wgt)
                load.transfer(scales, signal=wgt)
                mma.work(work, wait=wgt, signal=free_wgt)
            if stays:
                mma.work(sum(p.score[b]))
            else:
                load.signal(scl)
            if stays and last:
                mma.signal(free_wgt)
            mma.signal(scr)
            if not stays or first:
                vector.wait(scl)
            vector.wait(scr, free_prb, free_osc)
            if gathers:
                vector.wait(free_liv)
            vector.work(p.vector[b])
            if not stays or last:
                vector.signal(free_scl)
            vector.signal(free_scr, prb, osc)
            if gathers:
                vector.signal(liv)

        def mix(b: int) -> None:
            first, last = b % per_head == 0, (b + 1) % per_head == 0
            if stays and first:
                load.wait(free_val)
                for cycles in p.values[b]:
                    load.transfer(cycles)
                load.signal(val)
                mma.wait(val)
            mma.wait(prb)
            mma.signal(free_act)
            mma.wait(free_acc)
            if gathers:
                load.wait(liv)
            for cycles, work in zip(p.values[b], p.mix[b], strict=True) if not stays else ():
                load.transfer(cycles, wait=free_val, signal=val)
                mma.work(work, wait=val, signal=free_val)
            if gathers:
                load.signal(free_liv)
            if stays:
                mma.work(sum(p.mix[b]))
            if stays and last:
                mma.signal(free_val)
            mma.signal(free_prb, acc)
            store.wait(acc, osc)
            store.work(p.drain[b], signal=free_osc)
            store.transfer(p.store[b], signal=free_acc)

        score(0)
        for b in range(blocks):
            if b + 1 < blocks:
                score(b + 1)
            mix(b)
        return e.run()

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
        for load in (isa.LdKey, isa.LdVal):
            expanded = load.events(header, self.chunks)["find_first_steps"]
            found += int(np.where(self.loads, expanded, 0).sum())
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
        nbytes = self._bytes(cls)
        if "chunk" in cls.TRACE:
            return int(np.where(self.loads, cls.carried(self.header, self.chunks, nbytes), 0).sum())
        outside = sum(not part.onchip for part in cls.PARTS)
        return int((nbytes - outside * MSB_POINTER_BYTES).sum())


_TRANSFERS: Instructions = (isa.LdQry, isa.LdKey, isa.LdScl, isa.LdVal, isa.StAtt)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Cycles of everything that each block needs; of chunks a list, those between put together."""

    query: Any
    keys: list[list[float]]
    scales: list[list[float]]
    score: list[list[float]]
    vector: Any
    values: list[list[float]]
    mix: list[list[float]]
    drain: Any
    store: Any


def _by_chunk(cycles: NDArray[np.int64], present: NDArray[np.bool_]) -> list[list[float]]:
    """Cycles of the chunks that each block has: the first and the last ones alone."""
    counts = present.sum(axis=1)
    found: list[list[float]] = [[]] * len(counts)
    for count in np.unique(counts[counts > 0]).tolist():
        middle = np.linspace(_ALONE, count - _ALONE, _GROUPS + 1).astype(int)
        edges = [*range(_ALONE), *middle, *range(count - _ALONE + 1, count)]
        if count <= 2 * _ALONE + _GROUPS:
            edges = list(range(count))
        alike = np.flatnonzero(counts == count)
        sums = np.add.reduceat(cycles[alike, :count], edges, axis=1).tolist()
        for block, parts in zip(alike.tolist(), sums, strict=True):
            found[block] = parts
    return found


_Queue = deque[float]
"""When each token was put in that nobody took yet."""


class _Sums(_Queue):
    """Tokens for sums of the array, see `isa.header.Queue`."""

    def append(self, time: float) -> None:
        super().append(time + PIPELINE_CYCLES)


_NOTHING: _Queue = deque()
"""No queue that anything is put in."""


class _Engine:
    """What an engine has to do, in order.

    A task has a token that it waits for and one that it signals, cycles, and whether they are a
    transfer. `clock` is the time after what is done; `transferring` the transfer that comes next,
    whose token is taken, if it is one; `stuck` the queue whose token is missing.
    """

    def __init__(self) -> None:
        # All in one list: many tuples would keep the garbage collector busy.
        self._tasks: list[Any] = []
        self._at, self.clock = 0, 0.0
        self.transferring: tuple[float, _Queue | None] | None = None
        self.stuck = _NOTHING

    def wait(self, *queues: _Queue) -> None:
        for queue in queues:
            self._tasks += (queue, 0.0, False, None)

    def signal(self, *queues: _Queue) -> None:
        for queue in queues:
            self._tasks += (None, 0.0, False, queue)

    def work(self, cycles: float, wait: _Queue | None = None, signal: _Queue | None = None) -> None:
        self._tasks += (wait, cycles, False, signal)

    def transfer(
        self, cycles: float, wait: _Queue | None = None, signal: _Queue | None = None
    ) -> None:
        self._tasks += (wait, cycles, True, signal)

    def advance(self) -> None:
        """Do what needs no channel, up to a transfer or a token that is not there."""
        tasks, at, clock = self._tasks, self._at, self.clock
        self.transferring, self.stuck = None, _NOTHING
        while at < len(tasks):
            wait, cycles, transfers, signal = tasks[at : at + 4]
            if wait is not None:
                if not wait:
                    self.stuck = wait
                    break
                clock = max(clock, wait.popleft())
            at += 4
            if transfers:
                self.transferring = cycles, signal
                break
            clock += cycles
            if signal is not None:
                signal.append(clock)
        self._at, self.clock = at, clock


class _Engines:
    """Four engines, tokens between them, and one channel for what LOAD and STORE transfer."""

    def __init__(self) -> None:
        self.load, self.mma, self.vector, self.store = (_Engine() for _ in range(4))

    def run(self) -> float:
        """When the last engine is done. Of two transfers the one goes first that is ready first."""
        engines, channel = (self.load, self.mma, self.vector, self.store), 0.0
        for engine in engines:
            engine.advance()
        while True:
            moved = True
            while moved:
                moved = False
                for engine in engines:
                    if engine.stuck:  # no longer: there is a token
                        engine.advance()
                        moved = True
            first = self.load
            if first.transferring is None or (
                self.store.transferring is not None and self.store.clock < first.clock
            ):
                first = self.store
            if first.transferring is None:
                return max(engine.clock for engine in engines)
            cycles, signal = first.transferring
            first.clock = channel = max(first.clock, channel) + cycles
            if signal is not None:
                signal.append(channel)
            first.advance()
