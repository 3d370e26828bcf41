"""Energy: counted by hand, conserved, linear, with the band of what is uncertain."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.cost.analytical import dense_op_cost, encode_cost
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES, Scheme
from sparqle_tvm.target.cost.energy import (
    COMPONENTS,
    EnergyBreakdown,
    Term,
    energy,
    prices,
    reduction,
)
from sparqle_tvm.target.cost.energy_table import Band, energy_table
from sparqle_tvm.target.cost.events import NAMES, Events
from sparqle_tvm.target.cost.model import Totals
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
TABLE = energy_table("45nm", "lpddr4")
SOME = Events(**{name: 10 + i for i, name in enumerate(NAMES)})


def events_of(scheme: Scheme, density: float = 0.3, m: int = 64) -> Events:
    rng = np.random.default_rng(0)
    nnz = RowNnz(rng.binomial(8, density, size=(m, 32)).astype(np.int32), 8, 256)
    shape = DenseOp(m, 192, 256, 4, 32)
    # The same schedule for all: what another one costs is no matter of the scheme.
    schedule = Decisions(m=64, n=96, k=256, keep_outer=True)
    encode = encode_cost("x", nnz, schedule, 0, EDGE, scheme)
    op = dense_op_cost(shape, nnz, schedule, EDGE, scheme)
    return Totals.of((encode, op)).events


def test_by_hand(tiny: Accelerator) -> None:
    # 45 nm, 4 lanes of 4 bits. A product: 0.2 / 4^0.89 pJ; its digits: 8 bits at half of 0.03 pJ;
    # its addition: 8 + log2(4) = 10 bits, 0.03 + 0.07 * 2 / 24 pJ.
    got = energy(Events(lsb_products=1000), tiny, TABLE).components
    assert got["multiply"].mid == pytest.approx(1000 * (0.2 * 0.25**0.89 + 0.015))
    assert got["accumulate"].mid == pytest.approx(1000 * (0.03 + 0.07 / 12))
    # Narrow multipliers: a quarter to the power 1.05 or 0.73; registers: a quarter, or all.
    assert got["multiply"].low == pytest.approx(1000 * (0.2 * 0.25**1.05 + 0.0075))
    assert got["multiply"].high == pytest.approx(1000 * (0.2 * 0.25**0.73 + 0.03))
    # 8 x 4 bits: a half to the same power; 12 bits of digits; 12 + 2 bits to add.
    got = energy(Events(wide_products=1000), tiny, TABLE).components
    assert got["multiply"].mid == pytest.approx(1000 * (0.2 * 0.5**0.89 + 0.0225))
    assert got["accumulate"].mid == pytest.approx(1000 * (0.03 + 0.07 * 6 / 24))
    # LPDDR4: 8 pJ per bit, both ways.
    got = energy(Events(dram_read_bytes=3, dram_write_bytes=2), tiny, TABLE).components
    assert got["dram"] == Band.exact(5 * 64.0)
    # Two float32 products and an integer sum for each output.
    got = energy(Events(drained_elements=10), tiny, TABLE).components
    assert got["scale"].mid == pytest.approx(10 * (2 * 3.7 + 0.1))
    # 1 mW at 1 GHz is 1 pJ per cycle.
    got = energy(Events(cycles=7), tiny, TABLE, static_watts=1e-3).components
    assert got["static"] == Band.exact(7.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bands_are_in_order_for_all_digits(bits: int) -> None:
    accelerator = dataclasses.replace(EDGE, digit_bits=bits)
    for price in prices(accelerator, TABLE):
        assert price.pj.low <= price.pj.mid <= price.pj.high
    found = {p.event: p.pj for p in prices(accelerator, TABLE) if p.uncertain == "narrow_multiply"}
    # 8 x 8 bits are cited.
    assert ("lsb_products" in found) == (bits != 8)
    assert found["wide_products"].mid == pytest.approx(0.2 * (2 * bits * bits / 64) ** 0.89)


def test_buffers_cost_by_their_size() -> None:
    apart = dataclasses.replace(EDGE, scratchpad=False)
    larger = dataclasses.replace(apart, weight_buffer_bytes=4 * EDGE.weight_buffer_bytes)
    events = Events(weight_read_bytes=100, activation_read_bytes=100, accumulator_write_bytes=100)
    before, after = (energy(events, a, TABLE).components for a in (apart, larger))
    assert before["weight_buffer"] == before["activation_buffer"]
    # 1 MiB at 45 nm: 100 pJ per 8 bytes.
    assert before["accumulator_buffer"].mid == pytest.approx(100 * 12.5)
    assert after["weight_buffer"].mid > before["weight_buffer"].mid
    assert after["activation_buffer"] == before["activation_buffer"]
    # One memory of 2 MiB costs more than each of its parts.
    one = energy(events, EDGE, TABLE).components
    assert one["weight_buffer"] == one["accumulator_buffer"]
    assert one["weight_buffer"].mid > before["accumulator_buffer"].mid


@pytest.mark.parametrize("table", [TABLE, energy_table("7nm", "hbm2")], ids=lambda t: t.name)
def test_parts_add_up(table) -> None:
    result = energy(SOME, EDGE, table)
    assert tuple(result.components) == COMPONENTS
    for end in ("low", "mid", "high"):
        parts = sum(getattr(band, end) for band in result.components.values())
        assert parts == pytest.approx(getattr(result.total_pj, end))
        assert getattr(result.joules, end) == pytest.approx(parts * 1e-12)
    total = result.total_pj
    assert 0 < total.low < total.mid < total.high
    assert result.table == table.name


def test_every_event_costs_something_and_nothing_else() -> None:
    priced = {price.event for price in prices(EDGE, TABLE)}
    assert priced == set(NAMES)
    for name in NAMES:
        assert energy(Events(**{name: 1}), EDGE, TABLE).total_pj.mid > 0
    assert energy(Events(), EDGE, TABLE).total_pj == Band.exact(0.0)


def test_energy_is_linear() -> None:
    other = events_of("sparqle")
    once, twice, both = (energy(e, EDGE, TABLE).total_pj for e in (SOME, 2 * SOME, SOME + other))
    assert twice.mid == pytest.approx(2 * once.mid)
    assert both.mid == pytest.approx(once.mid + energy(other, EDGE, TABLE).total_pj.mid)


def test_order_of_the_schemes() -> None:
    total = {s: energy(events_of(s), EDGE, TABLE).total_pj.mid for s in ALL_SCHEMES}
    assert total["a4"] < total["sparqle"] < total["dense"]
    assert total["a4"] < total["native"] < total["dense"]
    # With every digit stored, the bitmap and what finds digits in it come on top.
    full = energy(events_of("sparqle", density=1.0), EDGE, TABLE).total_pj
    assert full.mid > total["dense"]
    assert energy(events_of("dense"), EDGE, TABLE).components["sparsity"].high == 0


def test_band_of_a_reduction_is_that_of_all_corners() -> None:
    before, after = (
        energy(events_of(s), EDGE, energy_table("7nm", "hbm2")) for s in ("dense", "sparqle")
    )
    got = reduction(before, after)
    names = sorted({t.uncertain for b in (before, after) for t in b.terms if t.uncertain})
    assert len(names) > 5

    def total(breakdown: EnergyBreakdown, ends: dict[str, str]) -> float:
        return sum(getattr(t.pj, ends.get(t.uncertain, "mid")) for t in breakdown.terms)

    corners = []
    for choice in itertools.product(("low", "high"), repeat=len(names)):
        ends = dict(zip(names, choice, strict=True))
        corners.append(1 - total(after, ends) / total(before, ends))
    assert got.low == pytest.approx(min(corners))
    assert got.high == pytest.approx(max(corners))
    assert got.mid == pytest.approx(1 - after.total_pj.mid / before.total_pj.mid)
    assert got.low < got.mid < got.high


def test_reduction_of_nothing_and_to_nothing() -> None:
    nothing = EnergyBreakdown("t", ())
    some = EnergyBreakdown("t", (Term("dram", Band(1, 2, 3), "x"),))
    assert reduction(nothing, some) == Band.exact(0.0)
    assert reduction(some, nothing) == Band.exact(1.0)
    assert reduction(some, some) == Band.exact(0.0)
