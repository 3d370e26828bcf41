"""When each step starts and ends: the engines, their tokens and the DRAM channel.

An engine executes its steps in order. A WAIT starts when its token is there, a transfer when the
DRAM channel is free, everything else at once; WAIT and SIGNAL take no time, but a token for sums
comes later (`Queue.delay_cycles`). Of the engines, the
one whose next step can start earliest goes first; at the same time the one that goes on with a
transfer, then the one that has been ready longer, then the one with the lower number. So steps are
executed in order of their start.

Alongside, it keeps track of which step made the tile in each range on chip. Two steps that run
at the same time and touch the same bytes, one of them writing, are a race: a missing token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.isa.header import Engine, Queue
from sparqle_tvm.target.simulator.native import compile_kernel
from sparqle_tvm.target.simulator.ranges import READS, WRITES
from sparqle_tvm.tirscript import Array, Scalar, cast, either, loop, parameter, scratch, size, when

ENGINES = len(Engine)
QUEUES = len(Queue)

# Columns of the step table. BITMAP: which read is the bitmap of a SPARSE step.
KIND, QUEUE, CYCLES, PASSES, SPLIT, BITMAP, COST = range(7)
SLOTS = 7  # slot that each write fills, -1: none
SOURCES = SLOTS + WRITES  # slot that each read is, -1: none
RANGES = SOURCES + READS  # begin and end of each read, then of each write
COLUMNS = RANGES + 2 * (READS + WRITES)

# Kinds of steps. A SPARSE step takes PASSES * (what its bitmap costs) + CYCLES. Those of a SIGNAL
# are of its token.
# GOES_ON: the transfer before, which nothing interrupts.
WAIT, SIGNAL, WORK, TRANSFER, SPARSE, GOES_ON = range(6)

# What the loop reports: DONE, or which step cannot go on, and why.
DONE, DEADLOCK, RACE, NO_BITMAP = range(4)

# Results per step.
START, END, READY, ORDER = range(4)

_NEVER = 2**62


@cache
def timing_kernel() -> Callable[..., None]:
    """Compile the loop.

    Its arguments, all int64: table (steps, COLUMNS); queue of each engine: steps in order (steps)
    and where each engine begins (ENGINES + 1); tokens at the beginning and where each queue's
    token times begin (QUEUES, QUEUES + 1), room for the times; slots (slots, 2), their live
    loads (slots), set to -1; costs of bitmap loads (loads, splits).
    Results: times (steps, 4) of START, END, READY and, at [i, ORDER], the i-th executed step;
    sources (steps, READS), the load that a read's slot was written by, or -1;
    status (1 + ENGINES): the code; the step and the other step of a race, the step of NO_BITMAP,
    or what each engine waits at in a DEADLOCK (-1: nothing).
    """
    return compile_kernel("timing", _body)


class _State:
    """Arguments and local variables of the loop."""

    def __init__(self) -> None:
        n, slots = size("steps"), size("slots")
        self.count, self.slot_count = n, slots
        self.table = parameter("table", "int64", n, COLUMNS)
        self.agenda = parameter("agenda", "int64", n)
        self.begins = parameter("begins", "int64", ENGINES + 1)
        self.tokens = parameter("tokens", "int64", QUEUES)
        self.token_begins = parameter("token_begins", "int64", QUEUES + 1)
        self.token_times = parameter("token_times", "int64", size("token_room"))
        self.slots = parameter("slots", "int64", slots, 2)
        self.live = parameter("live", "int64", slots)
        self.costs = parameter("costs", "int64", size("loads"), size("splits"))
        self.times = parameter("times", "int64", n, 4)
        self.sources = parameter("sources", "int64", n, READS)
        self.status = parameter("status", "int64", 1 + ENGINES)
        self.position = scratch("int64", ENGINES)
        self.clock = scratch("int64", ENGINES)
        self.last = scratch("int64", ENGINES)
        self.head = scratch("int64", QUEUES)
        self.tail = scratch("int64", QUEUES)
        self.dram = Scalar("int64", T.int64(0))
        # The candidate of this round.
        self.engine = Scalar("int64", T.int64(-1))
        self.start = Scalar("int64", T.int64(0))
        self.ready = Scalar("int64", T.int64(0))
        self.turn = Scalar("int64", T.int64(0))


def _body() -> None:
    s = _State()
    for engine in range(ENGINES):
        s.position[engine] = s.begins[engine]
        s.clock[engine] = 0
        s.last[engine] = -1
    for queue in range(QUEUES):
        s.head[queue] = s.token_begins[queue]
        s.tail[queue] = s.token_begins[queue] + s.tokens[queue]
    s.status[0] = DONE
    with loop(s.count) as i, when(s.status[0] == DONE):
        s.engine.set(T.int64(-1))
        s.start.set(T.int64(_NEVER))
        s.turn.set(T.int64(_NEVER))
        for engine in range(ENGINES):
            with when(s.position[engine] < s.begins[engine + 1]):
                _consider(s, engine)
        either(s.engine.value < 0, lambda: _stop_deadlocked(s), lambda: _execute(s, i))


def _consider(s: _State, engine: int) -> None:
    """Make the engine's next step the candidate if it can start before the present one."""
    step = s.agenda[s.position[engine]]
    kind = Scalar("int64", s.table[step, KIND])
    ready = s.clock[engine]
    start = Scalar("int64", ready)
    # What has been ready longer has its turn first.
    turn = Scalar("int64", ready)
    with when(T.Or(kind.value == TRANSFER, kind.value == GOES_ON)):
        start.set(T.max(ready, s.dram.value))
    with when(kind.value == GOES_ON):
        turn.set(T.int64(-1))
    with when(kind.value == WAIT):
        queue = s.table[step, QUEUE]
        either(
            s.head[queue] < s.tail[queue],
            lambda: start.set(T.max(ready, s.token_times[s.head[queue]])),
            lambda: start.set(T.int64(_NEVER)),
        )
    earlier = start.value < s.start.value
    longer = T.And(start.value == s.start.value, turn.value < s.turn.value)
    with when(T.And(start.value < _NEVER, T.Or(earlier, longer))):
        s.engine.set(T.int64(engine))
        s.start.set(start.value)
        s.ready.set(ready)
        s.turn.set(turn.value)


def _stop(s: _State, code: int, step: Any, other: Any = None) -> None:
    s.status[0] = code
    s.status[1] = step
    if other is not None:
        s.status[2] = other


def _stop_deadlocked(s: _State) -> None:
    s.status[0] = DEADLOCK
    for engine in range(ENGINES):
        s.status[1 + engine] = -1
        with when(s.position[engine] < s.begins[engine + 1]):
            s.status[1 + engine] = s.agenda[s.position[engine]]


def _execute(s: _State, i: Any) -> None:
    engine = s.engine.value
    step = Scalar("int64", s.agenda[s.position[engine]]).value
    kind = Scalar("int64", s.table[step, KIND]).value
    cycles = Scalar("int64", s.table[step, CYCLES])
    with when(kind == WAIT):
        s.head[s.table[step, QUEUE]] = s.head[s.table[step, QUEUE]] + 1
    with when(kind == SIGNAL):
        queue = s.table[step, QUEUE]
        s.token_times[s.tail[queue]] = s.start.value + cycles.value
        s.tail[queue] = s.tail[queue] + 1
        cycles.set(T.int64(0))
    with when(kind >= WORK):
        for read in range(READS):
            slot = s.table[step, SOURCES + read]
            s.sources[step, read] = T.if_then_else(slot < 0, T.int64(-1), s.live[T.max(slot, 0)])
        for other in range(ENGINES):
            _find_race(s, step, other)
        with when(kind == SPARSE):
            _add_sparse_cycles(s, step, cycles)
        with when(s.table[step, SLOTS] >= 0):
            _write_slots(s, step)
    end = s.start.value + cycles.value
    s.times[step, START] = s.start.value
    s.times[step, END] = end
    s.times[step, READY] = s.ready.value
    s.times[i, ORDER] = step
    with when(T.Or(kind == TRANSFER, kind == GOES_ON)):
        s.dram.set(end)
    s.clock[engine] = end
    s.last[engine] = step
    s.position[engine] = s.position[engine] + 1


def _add_sparse_cycles(s: _State, step: Any, cycles: Scalar) -> None:
    """Add what the bitmap costs that the MMA's operand was last loaded with."""
    source = Scalar("int64", s.sources[step, s.table[step, BITMAP]]).value
    row = Scalar("int64", T.int64(-1))
    with when(source >= 0):
        row.set(s.table[source, COST])
    either(
        row.value < 0,
        lambda: _stop(s, NO_BITMAP, step),
        lambda: cycles.add(s.table[step, PASSES] * s.costs[row.value, s.table[step, SPLIT]]),
    )


def _overlap(table: Array, a: Any, a_column: int, b: Any, b_column: int) -> Any:
    """Whether two ranges share bytes; empty ranges are (0, 0)."""
    return T.And(
        table[a, a_column] < table[b, b_column + 1], table[b, b_column] < table[a, a_column + 1]
    )


def _find_race(s: _State, step: Any, other_engine: int) -> None:
    """Stop if the other engine's running step and this one touch the same bytes."""
    other = Scalar("int64", s.last[other_engine]).value
    writes = [RANGES + 2 * (READS + i) for i in range(WRITES)]
    reads = [RANGES + 2 * i for i in range(READS)]
    pairs = [(a, b) for a in writes for b in writes + reads]
    pairs += [(a, b) for a in reads for b in writes]
    running = Scalar("int64", cast("int64", other >= 0))
    with when(other >= 0):
        running.set(cast("int64", s.times[other, END] > s.start.value))
    with when(running.value != 0):
        clash: Any = None
        for a, b in pairs:
            overlap = _overlap(s.table, step, a, other, b)
            clash = overlap if clash is None else T.Or(clash, overlap)
        with when(clash):
            _stop(s, RACE, step, other)


def _write_slots(s: _State, step: Any) -> None:
    """Forget the loads that these writes overlap, then note this one."""
    with loop(s.slot_count) as j:
        for write in range(WRITES):
            column = RANGES + 2 * (READS + write)
            begin, end = s.table[step, column], s.table[step, column + 1]
            with when(T.And(s.slots[j, 0] < end, begin < s.slots[j, 1])):
                s.live[j] = -1
    for write in range(WRITES):
        slot = s.table[step, SLOTS + write]
        with when(slot >= 0):
            s.live[T.max(slot, 0)] = step
