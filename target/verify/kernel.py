"""The verifier's two sequential passes over a trace, compiled once per process.

`schedule` plays the engines and queues: it finds an order of all steps that respects them, and for
every step a vector clock, that is how many steps of each engine are certain to be done by then.
`check_tiles` (`sparqle_tvm.target.verify.tiles`) walks that order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import tvm
from tvm.tirx.script import builder as T

from sparqle_tvm.target.isa.base import Kind
from sparqle_tvm.target.isa.header import Engine, Queue
from sparqle_tvm.target.verify.tiles import check_tiles
from sparqle_tvm.tirscript import Scalar, function, loop, parameter, repeat, scratch, size, when

_ENGINES = len(Engine)
_QUEUES = len(Queue)


class _Schedule:
    """Writes the kernel ``schedule``.

    Its parameters: `kinds` and `queues` of all steps; `lists`, the steps of engine e at
    ``starts[e]`` to ``starts[e + 1]``; `tokens` of the queues at the beginning; `fifos`, room for
    the signalling steps of each queue from `fifo_starts` on. It writes `order`, `clocks` (steps,
    engines), how far each engine came (`at`), and the tokens that are left (`counts`).
    """

    def __init__(self) -> None:
        steps = size("steps")
        self.kinds = parameter("kinds", "int32", steps, align=0)
        self.queues = parameter("queues", "int32", steps, align=0)
        self.lists = parameter("lists", "int32", steps, align=0)
        self.starts = parameter("starts", "int32", _ENGINES + 1, align=0)
        self.tokens = parameter("tokens", "int32", _QUEUES, align=0)
        self.fifo_starts = parameter("fifo_starts", "int32", _QUEUES, align=0)
        self.fifos = parameter("fifos", "int32", steps, align=0)
        self.order = parameter("order", "int32", steps, align=0)
        self.clocks = parameter("clocks", "int32", steps, _ENGINES, align=0)
        self.at = parameter("at", "int32", _ENGINES, align=0)
        self.counts = parameter("counts", "int32", _QUEUES, align=0)
        # Signals of each queue that were taken and given so far; the clock of each engine.
        self.taken = scratch("int32", _QUEUES)
        self.given = scratch("int32", _QUEUES)
        self.clock = scratch("int32", _ENGINES, _ENGINES)
        self.step, self.queue = Scalar("int32", 0), Scalar("int32", 0)
        self.done, self.moved = Scalar("int32", 0), Scalar("int32", 1)
        self.blocked = Scalar("int32", 0)

    def write(self) -> None:
        """Run every engine until it ends or waits, again and again until nothing moves."""
        for q in range(_QUEUES):
            self.taken[q], self.given[q] = 0, 0
        for e in range(_ENGINES):
            self.at[e] = self.starts[e]
            for f in range(_ENGINES):
                self.clock[e, f] = 0
        with repeat(self.moved.value != 0):
            self.moved.set(0)
            with loop(_ENGINES) as e:
                self.blocked.set(0)
                with repeat(self.blocked.value == 0, self.at[e] < self.starts[e + 1]):
                    self._try_step(e)
        with loop(_QUEUES) as q:
            self.counts[q] = self._held(q)

    def _held(self, queue: Any) -> Any:
        return self.tokens[queue] + self.given[queue] - self.taken[queue]

    def _try_step(self, e: Any) -> None:
        self.step.set(self.lists[self.at[e]])
        self.queue.set(self.queues[self.step.value])
        waits = self.kinds[self.step.value] == int(Kind.WAIT)
        with when(waits), when(self._held(self.queue.value) == 0):
            self.blocked.set(1)
        with when(self.blocked.value == 0):
            self._do_step(e, waits)

    def _do_step(self, e: Any, waits: Any) -> None:
        step, queue = self.step.value, self.queue.value
        self.clock[e, e] = self.clock[e, e] + 1
        with when(waits):
            self._take_token(e, queue)
        with when(self.kinds[step] == int(Kind.SIGNAL)):
            self.fifos[self.fifo_starts[queue] + self.given[queue]] = step
            self.given[queue] = self.given[queue] + 1
        for f in range(_ENGINES):
            self.clocks[step, f] = self.clock[e, f]
        self.order[self.done.value] = step
        self.done.add(1)
        self.at[e] = self.at[e] + 1
        self.moved.set(1)

    def _take_token(self, e: Any, queue: Any) -> None:
        """The oldest token: all that was done when it was signalled is done now."""
        with when(self.taken[queue] >= self.tokens[queue]):
            signal = Scalar("int32", 0)
            signal.set(self.fifos[self.fifo_starts[queue] + self.taken[queue] - self.tokens[queue]])
            for f in range(_ENGINES):
                self.clock[e, f] = T.max(self.clock[e, f], self.clocks[signal.value, f])
        self.taken[queue] = self.taken[queue] + 1


@lru_cache(maxsize=1)
def kernels() -> Any:
    """Compile; functions ``schedule`` and ``check_tiles`` of the result take NumPy arrays."""
    functions = {
        "schedule": function("schedule", lambda: _Schedule().write()),
        "check_tiles": check_tiles(),
    }
    return tvm.tirx.build(tvm.IRModule(functions), target="llvm")
