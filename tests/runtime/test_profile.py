"""Profiles of simulated calls: parts add up, each call has its own, traces load and are bounded."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

import sparqle_tvm
from sparqle_tvm import numerics
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.runtime.profile import Profile
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.energy import energy
from sparqle_tvm.target.cost.energy_table import energy_table
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.isa.header import Engine

K, WIDE, OUT = 64, 96, 40
EDGE = PRESETS["sparqle/edge"]


@I.ir_module
class Model:
    """``prefill`` has two equal dense ops, which share programs; ``decode`` has one row."""

    @R.function
    def prefill(
        q: R.Tensor(("n", 64), "int8"),
        w_gate: R.Tensor((96, 64), "int8"),
        w_up: R.Tensor((96, 64), "int8"),
    ):
        with R.dataflow():
            gate = R.matmul(q, R.permute_dims(w_gate), out_dtype="int32")
            up = R.matmul(q, R.permute_dims(w_up), out_dtype="int32")
            y = R.subtract(gate, up)
            R.output(y)
        return y

    @R.function
    def decode(q: R.Tensor((1, 64), "int8"), w: R.Tensor((40, 64), "int8")):
        with R.dataflow():
            head = R.matmul(q, R.permute_dims(w), out_dtype="int32")
            R.output(head)
        return head


def random_int8(seed, *shape):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


W_GATE, W_UP, W_HEAD = (random_int8(i, n, K) for i, n in enumerate((WIDE, WIDE, OUT)))


@pytest.fixture(scope="module")
def executable():
    return sparqle_tvm.compile(Model, engine="simulator")


def prefill(executable, q):
    """The result, checked against NumPy, and the profile."""
    found = executable["prefill"](q, W_GATE, W_UP).numpy()
    expected = numerics.int_matmul(q, W_GATE) - numerics.int_matmul(q, W_UP)
    np.testing.assert_array_equal(found, expected)
    return executable.profile()


def decode(executable, q):
    found = executable["decode"](q, W_HEAD).numpy()
    np.testing.assert_array_equal(found, numerics.int_matmul(q, W_HEAD))
    return executable.profile()


@pytest.fixture(scope="module")
def profile(executable) -> Profile:
    return prefill(executable, random_int8(7, 37, K))


def test_interleaved_calls_have_their_own_profiles_and_right_results(executable):
    long, short, token = random_int8(3, 37, K), random_int8(4, 5, K), random_int8(5, 1, K)
    first = prefill(executable, long)
    before = first.to_json()
    later = [
        decode(executable, token),
        prefill(executable, short),
        decode(executable, token),
        prefill(executable, long),
    ]
    shapes = [[(r["label"], r["m"], r["n"], r["k"]) for r in p.rows()] for p in (first, *later)]
    pair = [[(label, m, WIDE, K) for label in ("gate", "up")] for m in (37, 5)]
    head = [("head", 1, OUT, K)]
    assert shapes == [pair[0], head, pair[1], head, pair[0]]
    assert first.to_json() == before == later[-1].to_json()
    assert later[0].to_json() == later[2].to_json()


def test_every_engine_is_busy_or_stalled_at_every_cycle(profile):
    totals = profile.totals()
    for figures in (totals, *profile.to_json()["ops"]):
        for engine in figures["engines"].values():
            spent = sum(engine["busy_cycles"].values()) + sum(engine["stalled_cycles"].values())
            assert spent == figures["cycles"]
    assert totals["cycles"] == profile.total_cycles > 0
    assert set(totals["engines"]["MMA"]["busy_cycles"]) == {"MMA.LSB", "MMA.MSB"}


def test_totals_are_the_work_that_the_operands_ask_for(profile):
    q = random_int8(7, 37, K)
    encoded = numerics.encode(q)
    totals = profile.totals()
    # Both ops read all planes; an int8 weight has two 4-bit slices.
    assert totals["planes"]["lsb"]["macs"] == 2 * 37 * WIDE * K * 2
    assert totals["planes"]["msb"]["macs"] == 2 * encoded.mask().sum() * WIDE * 2
    for plane in totals["planes"].values():
        parts = plane["macs"] + plane["waiting_lane_cycles"] + plane["padding_lane_cycles"]
        assert parts == plane["lane_cycles"]
    read = totals["dram_read_bytes"]
    assert (read["WGT"], read["PBM"]) == (2 * WIDE * K, 2 * encoded.pbm.nbytes)
    assert totals["dram_write_bytes"] == {"OUT": 2 * 37 * WIDE * 4}
    moved = sum(read.values()) + sum(totals["dram_write_bytes"].values())
    assert totals["dram_bytes"] == moved == profile.dram_bytes
    assert totals["drained_elements"] == 2 * 37 * WIDE


def test_json_holds_every_op_and_adds_up(profile):
    data = json.loads(json.dumps(profile.to_json()))
    assert (data["version"], data["accelerator"]) == (1, EDGE.name)
    assert [op["label"] for op in data["ops"]] == ["gate", "up"]

    def check(total, parts):
        for key, value in total.items():
            if isinstance(value, dict):
                check(value, [part.get(key, {}) for part in parts])
            else:
                assert value == sum(part.get(key, 0) for part in parts), key

    check(data["totals"], data["ops"])
    assert {key for op in data["ops"] for key in op} - set(data["totals"]) == set("mnk") | {"label"}


def test_an_empty_profile_has_every_total(profile):
    """The same keys, tensors and buffers that something was moved of aside."""

    def keys(figures, path=()):
        kinds = {key: value for key, value in figures.items() if "bytes" not in (*path, key)}
        return {(*path, key) for key in kinds} | {
            each
            for key, value in kinds.items()
            if isinstance(value, dict) and not key.endswith(("_bytes", "_cycles"))
            for each in keys(value, (*path, key))
        }

    empty = sparqle_tvm.compile(Model).profile().totals()
    assert keys(empty) == keys(profile.totals())


def test_a_call_without_the_accelerator_has_an_empty_profile(tmp_path):
    host = sparqle_tvm.compile(Model)
    profile = decode(host, random_int8(6, 1, K))
    assert (len(profile), profile.total_cycles, profile.totals()["cycles"]) == (0, 0, 0)
    assert json.loads(json.dumps(profile.to_json()))["ops"] == []
    assert profile.totals()["planes"]["msb"]["macs"] == 0
    profile.export_trace(tmp_path / "empty.json")
    with pytest.raises(InvalidArgumentError, match="no op 'head'; ops that ran: none"):
        profile.timeline("head")


def read_trace(path):
    """Names of the tracks, and the events of each in the order of the file."""
    data = json.loads(path.read_text())
    names, tracks = {}, defaultdict(list)
    for event in data["traceEvents"]:
        if event["ph"] == "X":
            tracks[names[event["tid"]]].append(event)
        elif event["name"] == "thread_name":
            names[event["tid"]] = event["args"]["name"]
    return data["otherData"], tracks


def assert_back_to_back(events, total_us):
    """Times rise, nothing overlaps, and no gap: an engine is busy or stalled."""
    at = 0.0
    for event in events:
        assert event["ts"] == pytest.approx(at, abs=1e-6)
        at = event["ts"] + event["dur"]
    assert at == pytest.approx(total_us, abs=1e-6)


def test_trace_shows_every_cycle_of_every_engine(profile, tmp_path):
    path = tmp_path / "trace.json"
    profile.export_trace(path)
    assert list(tmp_path.iterdir()) == [path]
    other, tracks = read_trace(path)
    assert other == {"total_cycles": profile.total_cycles, "ops": 2, "events_left_out": 0}
    cycles_per_us = EDGE.clock_ghz * 1e3
    assert set(tracks) == {"ops", *(engine.name for engine in Engine)}
    assert [event["name"] for event in tracks["ops"]] == ["gate", "up"]
    for name, events in tracks.items():
        assert_back_to_back(events, profile.total_cycles / cycles_per_us)
        if name == "ops":
            continue
        # The ops share a program, which is named after the first; the events are not.
        assert [*dict.fromkeys(event["args"]["op"] for event in events)] == ["gate", "up"]
        found: Counter[str] = Counter()
        for event in events:
            found[event["name"].removeprefix("stall: ")] += event["args"]["cycles"]
        engine = profile.totals()["engines"][name]
        assert found == engine["busy_cycles"] | engine["stalled_cycles"]


def test_trace_is_bounded_and_says_what_it_leaves_out(profile, tmp_path):
    full = profile.trace()
    events = [event for event in full["traceEvents"] if event.get("cat") in ("busy", "stall")]
    path = tmp_path / "short.json"
    profile.export_trace(path, max_events=16)
    other, tracks = read_trace(path)
    shown = sum(e["cat"] in ("busy", "stall") for track in tracks.values() for e in track)
    assert 0 < shown <= 16
    assert other["events_left_out"] == len(events) - shown > 0
    noted = [event for track in tracks.values() for event in track if "left out" in event["name"]]
    assert sum(event["args"]["events_left_out"] for event in noted) == other["events_left_out"]
    total_us = profile.total_cycles / (EDGE.clock_ghz * 1e3)
    for track in tracks.values():
        assert_back_to_back(track, total_us)


def test_trace_that_cannot_be_written(profile, tmp_path):
    with pytest.raises(InvalidArgumentError, match="cannot be written: no such folder"):
        profile.export_trace(tmp_path / "none" / "trace.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidArgumentError, match="cannot be written: it is a folder"):
        profile.export_trace(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_timeline_of_one_op(profile):
    figure = profile.timeline("up")
    assert figure.axes[0].get_title().startswith(f"up: 37 x {WIDE} x {K} - ")
    with pytest.raises(InvalidArgumentError, match="no op 'down'; ops that ran: gate, up"):
        profile.timeline("down")


def test_energy_is_that_of_the_events(executable, profile):
    q = random_int8(7, 37, K)
    events = profile.events
    # Weights of 8 bits have two slices; both ops read the same activations.
    stored = int(numerics.encode(q).row_nnz().sum())
    assert events.lsb_products == 2 * 2 * 37 * WIDE * K
    assert events.msb_products == events.selected_products == 2 * 2 * stored * WIDE
    assert events.cycles == profile.total_cycles
    assert events.dram_bytes == profile.dram_bytes
    assert events.drained_elements == 2 * 37 * WIDE
    by_op = [Profile([record]) for record in profile]
    assert sum((op.events for op in by_op), Events()) == events
    joules = profile.energy().joules
    assert sum(op.energy().joules.mid for op in by_op) == pytest.approx(joules.mid)
    assert profile.energy().table == "7nm + LPDDR4"
    table = energy_table("45nm", "hbm2")
    assert profile.energy(table, static_watts=0.0) == energy(events, EDGE, table, static_watts=0.0)
    with pytest.raises(InvalidArgumentError, match="the profile is empty"):
        Profile([]).energy()
