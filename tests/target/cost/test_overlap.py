"""The walk through the loop nest: counted by hand, and any schedule against the simulator."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tie import draw_digits

from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.cost.analytical import dense_op_cost
from sparqle_tvm.target.cost.array import best_row_split
from sparqle_tvm.target.cost.overlap import OpLoads, Timeline
from sparqle_tvm.target.cost.schedule import Candidates, Decisions, Tiling, even_splits, overflows
from sparqle_tvm.target.op import SCHEMES, DenseOp
from sparqle_tvm.target.simulator import simulate_timing

# A byte per cycle, transfers without descriptors, 16 outputs drained in a cycle. Weights of 4 bits
# and activations of two digits, no parameters.
PLAIN = replace(
    PRESETS["sparqle/edge"],
    name="plain",
    dram_bytes_per_cycle=1.0,
    dma_descriptor_cycles=0,
    drain_elements_per_cycle=16,
)
# Tiles of 16 x 16 x 16: activations 256 bytes, weights 128, outputs 512 in 16 cycles of drain, that
# begin 2 cycles after the array's last step.
OP = DenseOp(16, 64, 16, output="int32", scheme="dense", window="unsigned")


def timeline(op: DenseOp, mma_cycles: float, **change: object) -> Timeline:
    decisions = replace(Decisions(m=16, n=16, k=16, keep_outer=True), **change)
    loads = OpLoads(op=op, accelerator=PLAIN, scheme="dense", activation_bytes=op.m * op.k)
    return Timeline(loads, decisions, mma_cycles)


def test_array_bound() -> None:
    # 256 + 128 of loads, 4 tiles of 1000, the last sums, drain and store.
    assert timeline(OP, 4000).run().total_cycles == 384 + 4000 + 2 + 16 + 512


def test_memory_bound() -> None:
    # Four tiles of weights and outputs beside each other, the last drain after all loads.
    work = timeline(OP, 40)
    assert work.dma_cycles == 256 + 4 * 128 + 4 * 512
    times = work.run()
    # The first two tiles of weights, then the array (10 + 2) and the drain (16) before a store.
    assert times.total_cycles == pytest.approx(work.dma_cycles + 16, abs=16)


def test_one_slot_of_weights_is_loaded_while_the_array_rests() -> None:
    one = timeline(OP, 4000, weight_slots=1).run()
    # Three more loads of 128 are not hidden, nor is the store before that each of them meets.
    assert one.total_cycles == 384 + 4000 + 3 * 128 + 2 + 16 + 512
    assert one.waits["weights"] == 4 * 128


def test_one_slot_of_accumulators_is_drained_while_the_array_rests() -> None:
    one = timeline(OP, 4000, accumulator_slots=1).run()
    # Two of the stores wait for the weights of the tile after the next, whose load begins when the
    # array is done, as the drain does.
    loads = 2 * (128 - 2 - 16)
    assert one.total_cycles == 384 + 4000 + 4 * (2 + 16 + 512) + loads
    assert one.waits["drain"] == 3 * (2 + 16 + 512) + loads


def test_a_load_without_a_slot_delays_no_store() -> None:
    # Outputs that are drained (128) and stored (512) one behind the other take longer than the
    # array (600). Weights (128) are loaded when it is done with a tile: behind a store, so in the
    # next drain.
    loads = OpLoads(
        op=replace(OP, n=1024),
        accelerator=replace(PLAIN, drain_elements_per_cycle=2),
        scheme="dense",
        activation_bytes=256,
    )
    times = Timeline(loads, Decisions(m=16, n=16, k=16, keep_outer=True), 64 * 600).run()
    assert times.total_cycles == 384 + 600 + 2 + 64 * (128 + 512)


def test_long_loops_are_as_long_as_their_iterations() -> None:
    # 100 tiles instead of 4: 96 more of 1000 cycles.
    longer = replace(OP, n=1600)
    assert timeline(longer, 100_000).run().total_cycles == 384 + 100_000 + 2 + 16 + 512


def test_causes_add_up() -> None:
    op = DenseOp(100, 200, 96, 4, 32, True)
    nnz = draw_digits(np.random.default_rng(0), 0.3, 100, 96)
    decisions = Decisions(m=48, n=64, k=32)
    cost = dense_op_cost(op, nnz, decisions, PRESETS["sparqle/edge"], "sparqle")
    loads = OpLoads(
        op=op,
        accelerator=PRESETS["sparqle/edge"],
        scheme="sparqle",
        activation_bytes=cost.activation_bytes / cost.tiling.activation_loads,
    )
    times = Timeline(loads, decisions, cost.mma_cycles).run()
    waits = sum(times.waits.values())
    assert cost.mma_cycles + waits + times.tail_cycles == pytest.approx(times.total_cycles)
    assert times.begin_cycles <= waits
    assert sum(cost.limits.values()) == cost.total_cycles


def test_candidates_at_once_are_those_one_by_one() -> None:
    op = DenseOp(100, 200, 96, 4, 32, True)
    some = [
        Decisions(m=m, n=n, k=k, rows_outer=rows, keep_outer=keep, weight_slots=slots)
        for m in (16, 112)
        for n in (48, 208)
        for k in (32, 96)
        for rows in (True, False)
        for keep in (True, False)
        for slots in (1, 2)
    ]
    loads = OpLoads(
        op=op, accelerator=PRESETS["sparqle/edge"], scheme="sparqle", activation_bytes=9000
    )
    mma = np.arange(1000, 1000 + 50 * len(some), 50)
    together = Timeline(loads, Candidates.of(some), mma).run().total_cycles
    alone = [Timeline(loads, d, c).run().total_cycles[0] for d, c in zip(some, mma, strict=True)]
    assert together.tolist() == alone


def random_case(rng: np.random.Generator) -> tuple[DenseOp, Accelerator, Decisions] | None:
    accelerator = PRESETS[str(rng.choice(list(PRESETS)))]
    bandwidth = float(rng.choice([4, 16, 64, 400]))
    accelerator = replace(accelerator, name="x", dram_bytes_per_cycle=bandwidth)
    m, n = (int(np.exp(rng.uniform(np.log(low), np.log(1000)))) for low in (1, 16))
    group, k = int(rng.choice([0, 32])), 32 * int(np.exp(rng.uniform(0, np.log(48))))
    scheme = SCHEMES[int(rng.integers(2))]
    bits, has_min = int(rng.choice([2, 4, 8])), group > 0 and bool(rng.integers(2))
    window = "signed" if scheme == "sparqle" else "unsigned"
    op = DenseOp(m, n, k, bits, group, has_min, scheme=scheme, window=window)
    unit = math.lcm(8, accelerator.lanes, max(group, 1))
    decisions = Decisions(
        m=int(rng.choice(even_splits(m, accelerator.rows))),
        n=int(rng.choice(even_splits(n, accelerator.cols))),
        k=int(rng.choice(even_splits(k, unit)[:8])),
        rows_outer=bool(rng.integers(2)),
        keep_outer=bool(rng.integers(2)),
        activation_slots=int(rng.integers(1, 3)),
        weight_slots=int(rng.integers(1, 3)),
        accumulator_slots=int(rng.integers(1, 3)),
    )
    split = best_row_split(op, accelerator, min(decisions.k, k))
    tiling = Tiling(op, decisions)
    few = tiling.m_tiles * tiling.n_tiles * tiling.k_tiles < 2000
    fits = not overflows(op, accelerator, decisions)
    return (op, accelerator, replace(decisions, row_split=split)) if few and fits else None


def test_any_schedule_against_the_simulator() -> None:
    """Bytes and the array's cycles are equal, the time nearly, the bound is one."""
    rng, found = np.random.default_rng(0), []
    while len(found) < 60:
        case = random_case(rng)
        if case is None:
            continue
        op, accelerator, decisions = case
        nnz = draw_digits(rng, float(rng.uniform(0, 0.6)), op.m, op.k)
        program = generate(schedule_with(op, accelerator, decisions), op, accelerator, verify=False)
        result = simulate_timing(program, op.m, nnz if op.scheme == "sparqle" else None)
        cost = dense_op_cost(op, nnz, decisions, accelerator, op.scheme)
        assert cost.dram_bytes == result.counts.dram_bytes
        assert cost.mma_cycles == result.array.busy
        loads = OpLoads(
            op=op,
            accelerator=accelerator,
            scheme=op.scheme,
            activation_bytes=cost.activation_bytes / cost.tiling.activation_loads,
        )
        least = Timeline(loads, decisions, cost.mma_cycles).least_cycles()[0]
        assert least <= 1.01 * result.total_cycles
        found.append(abs(cost.total_cycles / result.total_cycles - 1))
    assert np.median(found) < 0.01
    assert np.quantile(found, 0.9) < 0.05
    assert max(found) < 0.15
