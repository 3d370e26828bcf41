"""Nobody is slower for want of a good schedule: not split precision, not with larger buffers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench_never_slower import random_accelerator

from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.studies.sensitivity import COMPARED
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.cost.analytical import OpCost, costs_with, dense_op_cost, encoding_costs
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.energy import energy
from sparqle_tvm.target.cost.energy_table import default_table
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY, typical_digits
from sparqle_tvm.target.cost.schedule import overflows
from sparqle_tvm.target.cost.schedule_space import SPREAD
from sparqle_tvm.target.cost.tiling import choose_schedules
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
TABLE = default_table(EDGE)
LEAST = -0.01
"""Saved at least: the encode has a third pass of the vector unit, and buffers hold every digit."""


def cycles(op: DenseOp, accelerator: Accelerator, scheme: Scheme) -> int:
    """Of the op and the encoding that it reads alone, with as many digits as it is chosen for."""
    found = 0
    for density in (TYPICAL_DENSITY, SPREAD * TYPICAL_DENSITY):
        nnz = typical_digits(op.m, op.k, 8, density)
        encode, (cost,) = encoding_costs("x", nnz, [op], accelerator, scheme)
        found += encode.total_cycles + cost.total_cycles
    return found


@pytest.mark.parametrize("seed", range(3))
def test_split_precision_is_hardly_slower_on_random_accelerators(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(3):
        accelerator = random_accelerator(rng, number)
        for rows in (1, 8, 128):
            # Of a layer, not of each op: those of a few thousand cycles do not matter.
            ops = [DenseOp(rows, n, k) for n, k in ((4096, 4096), (11008, 4096), (4096, 11008))]
            dense, split = (
                sum(cycles(op, accelerator, scheme) for op in ops)
                for scheme in ("dense", "sparqle")
            )
            assert 1 - split / dense >= LEAST, (accelerator, rows)


def test_attention_that_is_left_dense_costs_what_dense_attention_does() -> None:
    # Its queries are not encoded: where the vector unit is the limit, that would be lost.
    machine = replace(EDGE, rows=64, cols=32, lanes=32, dram_bytes_per_cycle=800.0)
    found = estimate("smollm2-135m", "prefill", seq=512, target=machine, schemes=COMPARED)
    rest = [work for work in found.others if work.part in ("attention", "vector")]
    assert all(work.left_dense for work in rest if work.part == "attention")
    for work in rest:
        assert work.costs["sparqle"].total_cycles == work.costs["dense"].total_cycles


@pytest.mark.parametrize("scheme", ["dense", "sparqle"])
@pytest.mark.parametrize("op", [DenseOp(512, 1536, 576, 4, 32, True), DenseOp(256, 1024, 2048)])
def test_larger_buffers_are_not_slower(op: DenseOp, scheme: Scheme) -> None:
    """And never by more than 1 % for another buffer, in one memory or in three."""
    found = {}
    grid = [(a, w, c) for a in (0, 2) for w in (0, 2) for c in (0, 2)]
    for sizes in grid:
        activation, weight, accumulator = (1 << (16 + size) for size in sizes)
        machine = replace(
            EDGE,
            name="grid",
            scratchpad=False,
            activation_buffer_bytes=activation,
            weight_buffer_bytes=weight,
            accumulator_buffer_bytes=accumulator,
        )
        found[sizes] = cycles(op, machine, scheme)
        one = cycles(op, replace(machine, scratchpad=True), scheme)
        assert one <= 1.01 * found[sizes], sizes
    for small in grid:
        for large in grid:
            if all(a <= b for a, b in zip(small, large, strict=True)):
                assert found[large] <= 1.01 * found[small], (small, large)


@pytest.mark.parametrize("scratchpad", [True, False])
@pytest.mark.parametrize("bandwidth", [16.0, 32.0])
def test_savings_are_monotone_in_the_buffers(bandwidth: float, scratchpad: bool) -> None:
    """By 1 %, of time, and of energy with the same tiles for both.

    Energy of DRAM aside: planes save the same of every load of the activations, and larger tiles
    need fewer loads. Nor does a scheme do better with the tiles of the other.
    """
    ops = [DenseOp(512, n, k) for n, k in ((4096, 4096), (11008, 4096), (4096, 11008))]
    time, joules = [], []
    for factor in (0.5, 0.7, 1, 1.4, 2, 2.8, 4):
        sizes = {
            f"{name}_buffer_bytes": int(factor * getattr(EDGE, f"{name}_buffer_bytes"))
            for name in ("activation", "weight", "accumulator")
        }
        machine = replace(EDGE, scratchpad=scratchpad, dram_bytes_per_cycle=bandwidth, **sizes)
        sums = np.zeros(4)
        for op in ops:
            (own,), (split,) = (
                choose_schedules((op,), machine, scheme) for scheme in ("dense", "sparqle")
            )
            nnz = typical_digits(op.m, op.k, 8)
            cost = dense_op_cost(op, nnz, split, machine, "sparqle")
            best, same = costs_with([(op, own), (op, split)], machine, "dense")
            sums += [
                *(best.total_cycles, cost.total_cycles),
                *(on_chip(e.events) for e in (same, cost)),
            ]
            # A digit, a bit for each activation, and the stored digits, of which rows are padded.
            planes = op.m * op.k * (1 / 2 + 1 / 8) + nnz.total / 2
            loads = cost.tiling.activation_loads
            assert same.dram_bytes - cost.dram_bytes == pytest.approx(
                loads * (op.m * op.k - planes), rel=0.05
            )
            assert not better(same, best)
            if not overflows(op, machine, own):
                assert not better(dense_op_cost(op, nnz, own, machine, "sparqle"), cost)
        time.append(1 - sums[1] / sums[0])
        joules.append(1 - sums[3] / sums[2])
    for saved in (time, joules):
        assert min(saved) > 0
        assert (np.maximum.accumulate(saved) - saved <= 0.01).all(), saved


def on_chip(events: Events) -> float:
    """Joules but those of DRAM, of a memory of the same size: a larger one costs more."""
    alone = replace(events, dram_read_bytes=0, dram_write_bytes=0)
    return energy(alone, EDGE, TABLE).joules.mid


def better(one: OpCost, other: OpCost) -> bool:
    """Whether it takes less energy by more than 1 %, and no more time."""
    mine, theirs = (energy(c.events, EDGE, TABLE).joules.mid for c in (one, other))
    return mine < 0.99 * theirs and one.total_cycles <= other.total_cycles
