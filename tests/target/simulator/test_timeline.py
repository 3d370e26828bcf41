"""The timeline shows what the counts say."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from simulator_programs import TINY, dense_program, header_for, random_operands

from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.simulator import SimResult, simulate
from sparqle_tvm.target.simulator.timeline import timeline

HEADER = header_for(TINY, 8, 8, 64, 32, label="an op")


@pytest.fixture(scope="module")
def result() -> SimResult:
    operands = random_operands(np.random.default_rng(0), HEADER, 8)
    return simulate(dense_program(HEADER, 4, 4), operands.tensors)


def test_cycles_of_the_tracks_are_those_of_the_engines(result):
    trace = timeline([result])
    cycles: dict[int, Counter[str]] = {engine: Counter() for engine in Engine}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            cycles[event["tid"]][event["name"]] += event["args"]["cycles"]
    for engine, time in result.engines.items():
        stalls = {f"stall: {reason}": n for reason, n in time.stalled_cycles.items()}
        assert cycles[engine] == {**time.busy_cycles, **stalls}
    assert trace["otherData"] == {
        "total_cycles": result.total_cycles,
        "shown_cycles": result.total_cycles,
    }


def test_runs_follow_each_other_without_overlap(result):
    events = json.loads(json.dumps(timeline([result, result])))["traceEvents"]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"accelerator", *(engine.name for engine in Engine)}
    for engine in Engine:
        track = [e for e in events if e["ph"] == "X" and e["tid"] == engine]
        ends = [round(1000 * (e["ts"] + e["dur"])) for e in track]
        begins = [round(1000 * e["ts"]) for e in track]
        assert all(end == begin for end, begin in zip(ends, begins[1:], strict=False))
        assert ends[-1] == 2 * result.total_cycles
    load = next(e for e in events if e["name"] == "LD.LSB")
    assert load["args"]["op"] == "an op"
    assert load["args"]["dram_bytes"] == 4 * 16
    assert "LD.LSB   ACT[" in load["args"]["instruction"]


def test_length_is_bounded(result):
    trace = timeline([result] * 100, max_events=50)
    assert len(trace["traceEvents"]) == 50
    assert 0 < trace["otherData"]["shown_cycles"] < result.total_cycles
    assert trace["otherData"]["total_cycles"] == 100 * result.total_cycles
