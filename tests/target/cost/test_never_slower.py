"""Nobody is slower for want of a good schedule: not split precision, not with larger buffers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench_never_slower import random_accelerator

from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY, typical_digits
from sparqle_tvm.target.cost.tiling import SPREAD
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
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
