from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.compile.attention import attention_program
from sparqle_tvm.target.cost.attention import attention_cost
from sparqle_tvm.target.cost.attention_choice import choose_plan
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.cost.events import simulated_events
from sparqle_tvm.target.isa.operands import BLOCKS
from sparqle_tvm.target.simulator.attention import simulate_attention_timing
from sparqle_tvm.target.simulator.attention_work import CacheRows, Work

EDGE = PRESETS["sparqle/edge"]
CASES = 40
"""In CI; ``python -m tests.target.cost.test_attention_cost 300`` does as many as one likes."""


def random_op(rng: np.random.Generator) -> AttentionOp:
    """Prefill without and with a past, and decode."""
    rows = 1 if rng.random() < 0.5 else int(rng.integers(2, 300))
    past = int(rng.integers(4096)) if rows == 1 or rng.random() < 0.3 else 0
    scheme = "sparqle" if rng.random() < 0.7 else "dense"
    widths = [40, 64, 80, 96, 100, 128]
    sizes = (int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.choice(widths)))
    bits = {"key_bits": int(rng.choice([4, 8, 8])), "value_bits": int(rng.choice([5, 8, 8]))}
    if scheme == "sparqle":
        for name in ("key_planes", "value_planes"):
            bits[name] = "".join(rng.choice(["p", "-", "-"], sizes[0]))
    return AttentionOp(rows, rows + past, *sizes, scheme=scheme, window="unsigned", **bits)


def drawn(header, limits, rng: np.random.Generator) -> Work:
    """Digits and live keys at random, other shares in every op."""
    work, op = Work.empty(header, limits), header.op
    cache = {}
    for what in ("key", "value"):
        if op.is_stored(what):
            digits = rng.binomial(op.head_dim, rng.random(), (op.kv_heads, limits["T"]))
            digits *= np.array(op.in_planes(what))[:, None]
            dense = -(-op.head_dim // 2) + -(-op.head_dim // 8)
            sizes = np.where(np.array(op.in_planes(what))[:, None], dense, op.row_bytes(what))
            ends = np.cumsum(np.append(0, sizes + -(-digits // 2)))
            begins = np.stack(
                [ends[h * limits["T"] :][: limits["T"] + 1] for h in range(len(digits))]
            )
            found = np.concatenate([np.zeros((len(digits), 1), int), digits.cumsum(axis=1)], axis=1)
            cache[what] = CacheRows(begins, found)
    work.note_cache(header, limits, cache)
    place = header.place(limits, np.arange(limits[BLOCKS]), 0)
    stored, live, wide = rng.random(), rng.random(), 0.3 * rng.random()
    for block, (rows, total) in enumerate(
        zip(place["rows"].tolist(), place["total"].tolist(), strict=True)
    ):
        work.note_queries(header, block, rng.random((rows, op.head_dim)) < stored)
        for chunk, begin in enumerate(range(0, total, header.key_chunk)):
            keys = min(header.key_chunk, total - begin)
            p = np.where(rng.random((rows, keys)) < wide, 200, 3) * (rng.random(keys) < live)
            held = (limits["T"] if header.stays else total) - begin
            where = (block // header.head_blocks(limits["M"]), begin)
            loaded = min(header.key_chunk, held)
            work.note_chunk(header, block, chunk, p.astype(np.uint8), loaded, where)
    return work


def tie(seed: int) -> tuple[AttentionOp, str, float]:
    """An op at random on a machine, and by how much its time by formula is off; counts agree."""
    rng = np.random.default_rng(seed)
    machine = PRESETS[str(rng.choice(list(PRESETS)))]
    op = random_op(rng)
    plan = choose_plan(op, machine)
    program = attention_program(op, machine, plan, verify=False)
    work = drawn(program.header, program.header.limits(op.rows, op.past), rng)
    result = simulate_attention_timing(program, op.rows, op.past, work)
    cost = attention_cost(op, machine, plan, work)
    assert replace(cost.events, cycles=0) == replace(simulated_events(result), cycles=0)
    assert cost.mma_cycles == result.array.busy
    assert cost.dma_cycles == result.dma_cycles
    assert cost.dram_bytes == result.counts.dram_bytes
    return op, machine.name, cost.total_cycles / result.total_cycles - 1


@pytest.mark.parametrize("seed", range(CASES))
def test_the_formula_is_tied_to_the_simulator(seed):
    _, _, difference = tie(seed)
    assert abs(difference) < 0.05


def test_baselines_differ_in_what_they_say():
    op = AttentionOp(64, 512, 2, 4, 64, scheme="dense", window="unsigned")
    plan = AttentionPlan(block_rows=64, key_chunk=128)
    work = Work.uniform(plan.header(op, EDGE), plan.header(op, EDGE).limits(64, 448), 1, 1, 1)
    dense, native, a4 = (
        attention_cost(op, EDGE, plan, work, scheme) for scheme in ("dense", "native", "a4")
    )
    # Two passes, or one over steps of 10 lanes, or one.
    assert 2 * a4.mma_cycles == dense.mma_cycles > native.mma_cycles > 1.6 * a4.mma_cycles
    assert dense.dram_bytes == native.dram_bytes
    # Queries of half the bytes.
    assert dense.dram_bytes - a4.dram_bytes > 0
    assert native.events.wide_products == dense.events.lsb_products
    assert native.events.lsb_products == 0
    assert a4.events.msb_products == 0
    assert {cost.macs for cost in (dense, native, a4)} == {op.macs}


def test_lanes_are_idle_in_the_last_step():
    op = AttentionOp(64, 512, 2, 4, 64, scheme="dense", window="unsigned")
    plan = AttentionPlan(block_rows=16, key_chunk=512)
    header = plan.header(op, EDGE)
    work = Work.uniform(header, header.limits(64, 448), 1, 1, 1)
    for scheme, passes, lanes in (("dense", 2, 16), ("native", 1, 10), ("a4", 1, 16)):
        # 2 heads of 16 blocks of 4 tokens; rows fill the array, values of 8 bits are two slices.
        steps = 0
        for seen in range(452, 513, 4):
            scores = math.ceil(seen / 16) * math.ceil(64 / lanes)
            mixes = math.ceil(64 / 16) * math.ceil(seen / lanes)
            steps += 2 * (scores + mixes)
        cost = attention_cost(op, EDGE, plan, work, scheme)
        assert cost.mma_cycles == 2 * passes * steps, scheme


def test_many_heads_take_as_long_as_they_do_one_by_one():
    op = AttentionOp(1, 4096, 32, 1, 128)
    plan = choose_plan(op, EDGE)
    costs = []
    for heads in (8, 16, 32):
        some = replace(op, kv_heads=heads)
        header = plan.header(some, EDGE)
        work = Work.uniform(header, header.limits(1, 4095), 0.5, 0.25, 0.05)
        costs.append(attention_cost(some, EDGE, plan, work))
    assert costs[1].total_cycles - costs[0].total_cycles == pytest.approx(
        (costs[2].total_cycles - costs[1].total_cycles) / 2, rel=1e-3
    )
    assert costs[2].events.vector_operations == 4 * costs[0].events.vector_operations


def main() -> None:
    """Print the largest differences of so many random ops (the first argument, by default 300)."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    found = sorted((tie(seed) for seed in range(count)), key=lambda each: -abs(each[2]))
    for op, machine, difference in found[:10]:
        print(f"{difference:+7.2%} {machine:15} {op}")
    sizes = np.array([abs(difference) for *_, difference in found])
    print(f"{count} ops: {sizes.max():.2%} at most, {np.median(sizes):.2%} in the middle")
    print(f"{(sizes > 0.05).sum()} beyond 5 %")


if __name__ == "__main__":
    main()
