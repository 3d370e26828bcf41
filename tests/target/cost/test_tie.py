"""The formulas against the simulator: bytes and the array's cycles equal, the time nearly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tie import OpTie, draw_digits, tie_encoding

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.energy import energy
from sparqle_tvm.target.cost.energy_table import energy_table
from sparqle_tvm.target.cost.model import EncodedActivation
from sparqle_tvm.target.op import SCHEMES, DenseOp, ProgramScheme

COMPUTE_BOUND_TOLERANCE = 0.03
TOLERANCE = 0.10

# (N of the readers), K, share of stored digits, weight bits, group size, minima
Layer = tuple[tuple[int, ...], int, float, int, int, bool]

SMOLLM2: tuple[Layer, ...] = (
    ((576, 192, 192), 576, 0.11, 4, 32, True),
    ((576,), 576, 0.52, 4, 32, True),
    ((1536, 1536), 576, 0.40, 4, 32, True),
    ((576,), 1536, 0.24, 4, 32, True),
)
SMOLLM2_HEAD: Layer = ((49152,), 576, 0.40, 8, 32, False)
LLAMA2: tuple[Layer, ...] = (
    ((4096, 4096, 4096), 4096, 0.2, 4, 0, False),
    ((11008, 11008), 4096, 0.3, 4, 0, False),
    ((4096,), 11008, 0.3, 4, 128, True),
)
SWEEP: tuple[tuple[int, Layer], ...] = (
    (7, ((100,), 96, 0.3, 4, 32, False)),
    (16, ((1536, 64), 576, 0.3, 4, 32, True)),
    (33, ((257,), 1024, 0.5, 8, 0, False)),
    (64, ((576,), 1536, 0.3, 4, 32, True)),
    (100, ((192, 576), 576, 0.6, 4, 32, True)),
    (256, ((2048,), 512, 0.3, 2, 0, False)),
    (300, ((1000,), 1984, 0.3, 4, 32, False)),
    (1000, ((128,), 4096, 0.3, 8, 32, False)),
    (2048, ((64,), 256, 0.1, 4, 32, False)),
    (2048, ((2048,), 2048, 0.0, 4, 0, False)),
)


def ties(
    rows: int, layer: Layer, preset: str, scheme: ProgramScheme, block_groups: int = 0
) -> tuple[OpTie, ...]:
    readers, k, density, bits, group, has_min = layer
    # Drawn like this the layers of one model differ, and every run draws the same.
    rng = np.random.default_rng([rows, k, int(100 * density)])
    shapes = tuple(DenseOp(rows, n, k, bits, group, has_min, f"{n}x{k}") for n in readers)
    encoding = EncodedActivation("x", draw_digits(rng, density, rows, k), "signed", shapes)
    accelerator = PRESETS[preset]
    return tie_encoding(encoding, accelerator, scheme, block_groups * accelerator.rows)


def check(found: tuple[OpTie, ...]) -> None:
    for tie in found:
        assert tie.mma_cycles == tie.analytical.mma_cycles
        assert tie.dram_bytes == tie.analytical.dram_bytes
        # All that costs energy is equal, but time.
        assert replace(tie.events, cycles=0) == replace(tie.analytical.events, cycles=0)
        limit = COMPUTE_BOUND_TOLERANCE if tie.bound == "compute" else TOLERANCE
        assert abs(tie.difference) <= limit, (tie.shape, tie.analytical, tie.stalls)
        counted, simulated = (
            energy(events, PRESETS["sparqle/edge"], energy_table()).joules.mid
            for events in (tie.analytical.events, tie.events)
        )
        assert counted == pytest.approx(simulated, rel=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tokens", [512, 1])
def test_layers_of_smollm2(tokens: int, preset: str, scheme: ProgramScheme) -> None:
    for layer in (*SMOLLM2, *([SMOLLM2_HEAD] if tokens == 1 else [])):
        check(ties(tokens, layer, preset, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tokens", [2048, 1])
def test_layers_of_llama2(tokens: int, preset: str, scheme: ProgramScheme) -> None:
    for layer in LLAMA2:
        check(ties(tokens, layer, preset, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("preset", PRESETS)
def test_sweep(preset: str, scheme: ProgramScheme) -> None:
    for rows, layer in SWEEP:
        check(ties(rows, layer, preset, scheme))


@pytest.mark.parametrize("preset", PRESETS)
def test_sorted_rows(preset: str) -> None:
    waited = ties(512, SMOLLM2[2], preset, "sparqle")
    for blocks in (2, 8):
        ordered = ties(512, SMOLLM2[2], preset, "sparqle", blocks)
        check(ordered)
        assert ordered[0].mma_cycles < waited[0].mma_cycles
        waited = ordered
    for rows, layer in ((512, SMOLLM2[0]), (100, SWEEP[4][1]), (300, SWEEP[6][1])):
        check(ties(rows, layer, preset, "sparqle", 2))


@pytest.mark.parametrize("seed", range(4))
def test_random_ops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(12):
        m, n = (int(np.exp(rng.uniform(np.log(low), np.log(2048)))) for low in (1, 16))
        group = int(rng.choice([0, 32]))
        k = 32 * int(np.exp(rng.uniform(0, np.log(64))))
        bits, has_min = int(rng.choice([2, 4, 8])), group > 0 and bool(rng.integers(2))
        preset, scheme = str(rng.choice(list(PRESETS))), SCHEMES[int(rng.integers(len(SCHEMES)))]
        density = float(rng.uniform(0, 0.6))
        check(ties(m, ((n,), k, density, bits, group, has_min), preset, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("has_min", [False, True])
def test_loads_that_get_in_the_way_of_stores(has_min: bool, scheme: ProgramScheme) -> None:
    # Bound by the drain, with nothing to load for it: weights come whenever the array is done.
    check(ties(282, ((2130,), 128, 0.3, 4, 32, has_min), "sparqle/edge", scheme))


def test_windows_cost_the_same_and_offsets_their_bytes() -> None:
    plain = DenseOp(64, 192, 576, 4, 32, True)
    nnz = draw_digits(np.random.default_rng(0), 0.5, 64, 576)
    signed, unsigned, biased = (
        tie_encoding(
            EncodedActivation("x", nnz, window, (shape,)), PRESETS["sparqle/edge"], "sparqle"
        )
        for window, shape in (
            ("signed", plain),
            ("unsigned", plain),
            ("unsigned", replace(plain, has_offset=True)),
        )
    )
    check(biased)
    assert signed[0].total_cycles == unsigned[0].total_cycles
    assert signed[0].dram_bytes == unsigned[0].dram_bytes == biased[0].dram_bytes - 192 * 8


def test_stalls_add_up() -> None:
    (tie,) = ties(64, SWEEP[3][1], "sparqle/edge", "dense")
    assert tie.mma_cycles + sum(tie.stalls["MMA"].values()) == tie.total_cycles


def test_drawn_digits() -> None:
    nnz = draw_digits(np.random.default_rng(0), 0.3, 200, 1024)
    assert nnz.counts.max() <= 8
    assert 1 - nnz.msb_sparsity == pytest.approx(0.3, rel=0.05)
    per_token = nnz.per_chunk(1024)[:, 0] / 1024
    assert per_token.std() / per_token.mean() == pytest.approx(0.3, rel=0.2)
