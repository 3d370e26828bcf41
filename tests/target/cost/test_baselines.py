"""The baselines: what they compute, store and take."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost import area, baselines
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.baselines import (
    ALL_SCHEMES,
    array_of,
    scheme_name,
    scheme_notes,
)
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]


def ops(m: int, density: float, weight_bits: int = 4):
    counts = np.random.default_rng(0).binomial(8, density, size=(m, 128)).astype(np.int32)
    nnz, shape = RowNnz(counts, 8, 1024), DenseOp(m, 1024, 1024, weight_bits)
    costs = {}
    for scheme in ALL_SCHEMES:
        encode, (op,) = encoding_costs("x", nnz, [shape], EDGE, scheme)
        costs[scheme] = (encode, op)
    return costs


@pytest.mark.parametrize("k", [2, 4, 8])
def test_native_has_the_area_of_the_array(k):
    for preset in PRESETS.values():
        accelerator = dataclasses.replace(preset, digit_bits=k)
        native = array_of(accelerator, "native")
        # The nearest whole lane; one more or less is farther away.
        off = [
            abs(
                area.pe_um2(k, "native", native.lanes + more)
                - area.pe_um2(k, "dense", preset.lanes)
            )
            for more in (-1, 0, 1)
        ]
        assert min(off) == off[1]
        assert dataclasses.replace(native, lanes=accelerator.lanes) == accelerator
        assert array_of(accelerator, "dense") is array_of(accelerator, "a4") is accelerator
    assert array_of(EDGE, "native").lanes == 10
    single = dataclasses.replace(EDGE, lanes=1)
    assert array_of(single, "native").lanes == 1


def test_areas_of_arrays_and_buffers():
    # 256 PEs, 16 lanes each; what split precision needs comes on top.
    assert area.array_mm2(EDGE, "dense") == pytest.approx(256 * (16 * 7223.8 + 16668) / 1e6)
    split = area.array_mm2(EDGE, "sparqle") / area.array_mm2(EDGE, "dense")
    assert 1.3 < split < 1.6
    # 2 MiB of 6 to 12 um2 a bit.
    band = area.buffers_mm2(EDGE)
    assert (band.low, band.high) == pytest.approx((16.777 * 6, 16.777 * 12), rel=1e-4)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_names_have_the_real_widths(k):
    accelerator = dataclasses.replace(EDGE, digit_bits=k)
    names = [scheme_name(accelerator, scheme) for scheme in ALL_SCHEMES]
    assert names == ["dense", "split", "native", f"a{k}"]
    notes = scheme_notes(accelerator)
    for words in (f"{2 * k}-bit multipliers", f"a{k}: activations of {k} bits", f"{2 * k}-bit act"):
        assert words in notes


@pytest.mark.parametrize("weight_bits", [2, 4, 8])
def test_cycles_and_bytes_of_a_prefill(weight_bits):
    costs = ops(256, 0.3, weight_bits)
    cycles = {scheme: op.mma_cycles for scheme, (_, op) in costs.items()}
    # One pass with 10 of 16 lanes.
    assert cycles["dense"] == 2 * cycles["a4"]
    assert cycles["native"] == pytest.approx(1.6 * cycles["a4"], rel=0.02)
    assert cycles["a4"] < cycles["sparqle"] < cycles["dense"]
    assert costs["native"][1].msb_cycles == costs["a4"][1].msb_cycles == 0
    stored = {s: e.activation_bytes for s, (e, _) in costs.items()}
    assert stored["native"] == stored["dense"] == 2 * stored["a4"] == 256 * 1024
    written = {s: e.dram_bytes for s, (e, _) in costs.items()}
    assert written["a4"] < written["sparqle"] < written["native"] == written["dense"]


def test_a_baseline_is_one_declaration(monkeypatch):
    known = dict(baselines.BASELINES)
    before = {scheme: cost for scheme, cost in ops(64, 0.3).items() if scheme in known}
    declared = baselines.Baseline("two passes", name="native {wide} x {wide}", passes=2, wide=True)
    monkeypatch.setattr(baselines, "BASELINES", {**known, "native8": declared})
    nnz = RowNnz(np.full((64, 128), 3), 8, 1024)
    encode, (op,) = encoding_costs("x", nnz, [DenseOp(64, 1024, 1024)], EDGE, "native8")
    assert op.mma_cycles == 2 * before["native"][1].mma_cycles
    assert encode.activation_bytes == before["native"][0].activation_bytes
    assert (op.events.wide_products, op.events.lsb_products) == (64 * 1024 * 1024, 0)
    assert scheme_name(EDGE, "native8") == "native 8 x 8"
    assert {s: c for s, c in ops(64, 0.3).items() if s in known} == before


def test_nothing_is_below_the_floor():
    # Without any MSB digit, split precision still has its bitmap and a step of nothing.
    costs = ops(64, 0.0)
    assert costs["sparqle"][1].mma_cycles == costs["a4"][1].mma_cycles
    assert costs["sparqle"][1].total_cycles >= costs["a4"][1].total_cycles
    assert costs["sparqle"][1].dram_bytes > costs["a4"][1].dram_bytes
