"""An order of the steps of a run that engines and tokens allow, and what is done by when."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa.base import Kind
from sparqle_tvm.target.isa.header import Engine, Queue
from sparqle_tvm.target.program.bound import BoundProgram
from sparqle_tvm.target.verify.kernel import kernels


def find_order(
    run: BoundProgram[Any], kinds: NDArray[np.int32], args: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Find an order of all steps that tokens allow, and the vector clocks of the steps.

    Parameters
    ----------
    run : BoundProgram
        The run.
    kinds, args : ndarray of int32, shape (steps,)
        `Kind` of every step; of WAIT and SIGNAL the queue.

    Returns
    -------
    order : ndarray of int32, shape (steps,)
        The steps.
    clocks : ndarray of int32, shape (steps, engines)
        How many steps of each engine are certain to be done when a step is, its own among them.

    Raises
    ------
    ProgramError
        If it deadlocks, or a queue does not end as it began.
    """
    steps = len(kinds)
    by_engine = np.argsort(run.engines, kind="stable").astype(np.int32)
    starts = np.searchsorted(run.engines[by_engine], np.arange(len(Engine) + 1)).astype(np.int32)
    tokens = np.array(run.header.tokens, dtype=np.int32)
    signals = np.bincount(args[kinds == Kind.SIGNAL], minlength=len(Queue))
    fifo_starts = (np.cumsum(signals) - signals).astype(np.int32)
    fifos, order = np.zeros(steps, dtype=np.int32), np.zeros(steps, dtype=np.int32)
    clocks = np.zeros((steps, len(Engine)), dtype=np.int32)
    reached = np.zeros(len(Engine), dtype=np.int32)
    counts = np.zeros(len(Queue), dtype=np.int32)
    kernels()["schedule"](
        *(kinds, args, by_engine, starts, tokens, fifo_starts),
        *(fifos, order, clocks, reached, counts),
    )
    _refuse_deadlock(run, by_engine, starts, reached)
    for queue in Queue:
        if counts[queue] != tokens[queue]:
            _refuse_unbalanced(run, queue, int(counts[queue]))
    return order, clocks


def _refuse_deadlock(
    run: BoundProgram[Any],
    by_engine: NDArray[np.int32],
    starts: NDArray[np.int32],
    reached: NDArray[np.int32],
) -> None:
    stuck = [int(by_engine[reached[e]]) for e in Engine if reached[e] < starts[e + 1]]
    if stuck:
        waits = "; ".join(run.name(step) for step in stuck[1:])
        raise run.error(stuck[0], f"waits for ever{f', as does {waits}' if waits else ''}")


def _refuse_unbalanced(run: BoundProgram[Any], queue: Queue, count: int) -> None:
    last = int(np.flatnonzero(run.queues == queue)[-1])
    began = run.header.tokens[queue]
    raise run.error(last, f"queue {queue.name} ends with {count} tokens, it began with {began}")
