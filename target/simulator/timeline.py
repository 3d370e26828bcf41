"""Timelines for chrome://tracing and Perfetto: one track per engine, busy and stalled times.

`sparqle_tvm.runtime.profile.Profile.export_trace` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparqle_tvm.target.isa.base import TRACE_INSTRUCTION
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.program.bound import Int64s
from sparqle_tvm.target.simulator.counts import REASONS, stall_reasons
from sparqle_tvm.target.simulator.machine import SimResult

MAX_EVENTS = 100_000

Event = dict[str, Any]


class Stretches(NamedTuple):
    """What the engines did when: each engine's stretches in order of time, without gaps.

    Attributes
    ----------
    step : int64 (n,)
        The step that was done or waited, the engine's last at the end; -1: it has none.
    engine : int64 (n,)
        Whose.
    start, end : int64 (n,)
        Cycles.
    reason : int64 (n,)
        Number in `REASONS` of what it waited for; -1: it worked.
    """

    step: Int64s
    engine: Int64s
    start: Int64s
    end: Int64s
    reason: Int64s


def stretches(run: SimResult) -> Stretches:
    """What the engines did, by the start of the steps; waits for the end of the run are last."""
    bound, when = run.bound, run.timing
    order = when.order
    engines, reasons = bound.engines[order], stall_reasons(bound)[order]
    waits = np.stack([order, engines, when.ready[order], when.start[order], reasons], axis=1)
    works = np.stack([order, engines, when.start[order], when.end[order], 0 * order - 1], axis=1)
    ends = []
    for engine in Engine:
        mine = np.flatnonzero(bound.engines == engine)
        last = int(when.end[mine].max(initial=0))
        step = int(mine[-1]) if len(mine) else -1
        ends.append((step, engine, last, run.total_cycles, REASONS.index("END")))
    steps = np.stack([waits, works], axis=1).reshape(-1, len(Stretches._fields))
    table = np.concatenate([steps, np.array(ends, dtype=np.int64)])
    return Stretches(*table[table[:, 3] > table[:, 2]].T)


def timeline(runs: Sequence[SimResult], *, max_events: int = MAX_EVENTS) -> dict[str, Any]:
    """Make a trace of runs, one after the other, in the Trace Event Format.

    Parameters
    ----------
    runs : sequence of SimResult
        Runs on accelerators with the same clock.
    max_events : int
        Events to write at most; later ones are left out, and `otherData` says how many cycles of
        the runs are shown.

    Returns
    -------
    dict
        For ``json.dump``. Times are microseconds; cycles, instruction and bytes are in ``args``.
    """
    events: list[Event] = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "accelerator"}}
    ]
    events += [track(engine, engine.name) for engine in Engine]
    begin = shown = 0
    for run in runs:
        for event in _run_events(run, begin):
            if len(events) >= max_events:
                return _trace(events, runs, shown)
            events.append(event)
            shown = max(shown, event["args"]["end_cycle"])
        begin += run.total_cycles
    return _trace(events, runs, begin)


def track(number: int, name: str) -> Event:
    """The event that names a track."""
    args = {"name": name}
    return {"ph": "M", "name": "thread_name", "pid": 0, "tid": int(number), "args": args}


def _trace(events: list[Event], runs: Sequence[SimResult], shown: int) -> dict[str, Any]:
    total = sum(run.total_cycles for run in runs)
    other = {"total_cycles": total, "shown_cycles": shown}
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": other}


def _run_events(run: SimResult, begin: int) -> Iterator[Event]:
    """Events of a run that begins at cycle `begin`, in order of time."""
    bound = run.bound
    cycles_per_us = bound.header.accelerator.clock_ghz * 1e3
    columns = (column.tolist() for column in stretches(run))
    for step, engine, start, end, reason in zip(*columns, strict=True):
        args: dict[str, Any] = {"op": bound.header.label}
        if step >= 0:
            index = int(bound.trace[step, TRACE_INSTRUCTION])
            args["instruction"] = f"{index}: {bound.program.instructions[index]}"
        args |= {"cycles": end - start, "end_cycle": begin + end}
        works = reason < 0
        if works and run.timing.dram_bytes[step]:
            args["dram_bytes"] = int(run.timing.dram_bytes[step])
        yield {
            "ph": "X",
            "name": bound.instruction_at(step).MNEMONIC if works else f"stall: {REASONS[reason]}",
            "cat": "busy" if works else "stall",
            "pid": 0,
            "tid": engine,
            "ts": (begin + start) / cycles_per_us,
            "dur": (end - start) / cycles_per_us,
            "args": args,
        }
