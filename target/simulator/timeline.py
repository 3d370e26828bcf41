"""Timelines for chrome://tracing and Perfetto: one track per engine, busy and stalled times.

`sparqle_tvm.runtime.profile.Profile.export_trace` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparqle_tvm.target.isa.base import TRACE_INSTRUCTION
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.simulator.counts import END_STALL, stall_reasons
from sparqle_tvm.target.simulator.machine import SimResult

MAX_EVENTS = 100_000

Event = dict[str, Any]


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
    for engine in Engine:
        args = {"name": engine.name}
        events.append(
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": int(engine), "args": args}
        )
    begin = shown = 0
    for run in runs:
        for event in _run_events(run, begin):
            if len(events) >= max_events:
                return _trace(events, runs, shown)
            events.append(event)
            shown = max(shown, event["args"]["end_cycle"])
        begin += run.total_cycles
    return _trace(events, runs, begin)


def _trace(events: list[Event], runs: Sequence[SimResult], shown: int) -> dict[str, Any]:
    total = sum(run.total_cycles for run in runs)
    other = {"total_cycles": total, "shown_cycles": shown}
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": other}


def _run_events(run: SimResult, begin: int) -> Iterator[Event]:
    """Events of a run that begins at cycle `begin`, in order of time."""
    bound, when = run.bound, run.timing
    busy = when.end > when.start
    stalled = when.start > when.ready
    reasons = stall_reasons(bound)
    for step in when.order[(busy | stalled)[when.order]].tolist():
        times = (int(when.ready[step]), int(when.start[step]), int(when.end[step]))
        if stalled[step]:
            yield _event(run, step, f"stall: {reasons[step]}", "stall", begin, times[0], times[1])
        if busy[step]:
            name = bound.instruction_at(step).MNEMONIC
            event = _event(run, step, name, "busy", begin, times[1], times[2])
            if when.dram_bytes[step]:
                event["args"]["dram_bytes"] = int(when.dram_bytes[step])
            yield event
    for engine in Engine:
        mine = np.flatnonzero(bound.engines == engine)
        last = int(when.end[mine].max(initial=0))
        if len(mine) and last < run.total_cycles:
            name = f"stall: {END_STALL}"
            yield _event(run, int(mine[-1]), name, "stall", begin, last, run.total_cycles)


def _event(
    run: SimResult, step: int, name: str, category: str, begin: int, start: int, end: int
) -> Event:
    bound = run.bound
    instruction = int(bound.trace[step, TRACE_INSTRUCTION])
    cycles_per_us = bound.header.accelerator.clock_ghz * 1e3
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": 0,
        "tid": int(bound.engines[step]),
        "ts": (begin + start) / cycles_per_us,
        "dur": (end - start) / cycles_per_us,
        "args": {
            "op": bound.header.label,
            "instruction": f"{instruction}: {bound.program.instructions[instruction]}",
            "cycles": end - start,
            "end_cycle": begin + end,
        },
    }
