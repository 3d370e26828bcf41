"""The baselines: what they compute, store and take."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost import baselines
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.baselines import (
    ALL_SCHEMES,
    array_of,
    scheme_name,
    scheme_notes,
    scheme_title,
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


def test_native_has_the_area_of_the_array():
    # 4 x 4 bits against 8 x 4: twice the product of the widths, half the lanes.
    for accelerator in PRESETS.values():
        native = array_of(accelerator, "native")
        k = accelerator.digit_bits
        assert native.lanes * 2 * k * k == accelerator.lanes * k * k
        assert dataclasses.replace(native, lanes=accelerator.lanes) == accelerator
        assert array_of(accelerator, "dense") is array_of(accelerator, "a4") is accelerator
    single = dataclasses.replace(EDGE, lanes=1)
    assert array_of(single, "native").lanes == 1


@pytest.mark.parametrize("k", [2, 4, 8])
def test_names_have_the_real_widths(k):
    accelerator = dataclasses.replace(EDGE, digit_bits=k)
    names = [scheme_name(accelerator, scheme) for scheme in ALL_SCHEMES]
    assert names == ["dense", "native", f"a{k}", "sparqle"]
    titles = [scheme_title(accelerator, scheme) for scheme in ALL_SCHEMES]
    assert titles == ["dense", f"native {2 * k}-bit", f"{k}-bit, not exact", "split"]
    notes = scheme_notes(accelerator)
    for words in (f"{2 * k}-bit multipliers", f"a{k}: activations of {k} bits", f"{2 * k}-bit act"):
        assert words in notes


@pytest.mark.parametrize("weight_bits", [2, 4, 8])
def test_cycles_and_bytes_of_a_prefill(weight_bits):
    costs = ops(256, 0.3, weight_bits)
    cycles = {scheme: op.mma_cycles for scheme, (_, op) in costs.items()}
    # Half the lanes in one pass take what all lanes take in two.
    assert cycles["native"] == cycles["dense"] == 2 * cycles["a4"]
    assert cycles["a4"] < cycles["sparqle"] < cycles["dense"]
    assert costs["native"][1].msb_cycles == costs["a4"][1].msb_cycles == 0
    stored = {s: e.activation_bytes for s, (e, _) in costs.items()}
    assert stored["native"] == stored["dense"] == 2 * stored["a4"] == 256 * 1024
    written = {s: e.dram_bytes for s, (e, _) in costs.items()}
    assert written["a4"] < written["sparqle"] < written["native"] == written["dense"]


def test_a_baseline_is_one_declaration(monkeypatch):
    # 8 x 8 bits on 4 x 4: four times the product of the widths, a quarter of the lanes.
    known = dict(baselines.BASELINES)
    before = {scheme: cost for scheme, cost in ops(64, 0.3).items() if scheme in known}
    declared = baselines.Baseline("native {wide} x {wide}", lane_divisor=4, wide=True)
    monkeypatch.setattr(baselines, "BASELINES", {**known, "native8": declared})
    nnz = RowNnz(np.full((64, 128), 3), 8, 1024)
    encode, (op,) = encoding_costs("x", nnz, [DenseOp(64, 1024, 1024)], EDGE, "native8")
    assert op.mma_cycles == 2 * before["native"][1].mma_cycles
    assert encode.activation_bytes == before["native"][0].activation_bytes
    assert (op.events.wide_products, op.events.lsb_products) == (64 * 1024 * 1024, 0)
    assert scheme_title(EDGE, "native8") == "native 8 x 8"
    assert {s: c for s, c in ops(64, 0.3).items() if s in known} == before


def test_nothing_is_below_the_floor():
    # Without any MSB digit, split precision still has its bitmap and a step of nothing.
    costs = ops(64, 0.0)
    assert costs["sparqle"][1].mma_cycles == costs["a4"][1].mma_cycles
    assert costs["sparqle"][1].total_cycles >= costs["a4"][1].total_cycles
    assert costs["sparqle"][1].dram_bytes > costs["a4"][1].dram_bytes
