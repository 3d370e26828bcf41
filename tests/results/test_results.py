"""The JSON form of a run: its keys are a promise."""

import json

import pytest
from run_result_helper import EDGE, run_result

from sparqle_tvm.results.run import by_kind, mean_sparsity, reduction
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.energy import energy


def test_json_keys():
    data = json.loads(json.dumps(run_result().to_json(), allow_nan=False))
    assert data["exact"] is True
    assert set(data["perplexity"]) == {"float", "int8", "sparqle"}
    assert data["msb_sparsity"]["mean"] == 0.7
    assert [layer["label"] for layer in data["msb_sparsity"]["layers"]] == [
        "blk_0_attn_q",
        "blk_0_ffn_up",
        "blk_1_attn_q",
        "blk_1_ffn_up",
    ]
    for phase in ("prefill", "decode"):
        for part in ("dense_layers", "whole_model"):
            both = data[phase][part]
            for scheme in ("dense", "sparqle"):
                assert both[scheme]["cycles"] > 0
                assert both[scheme]["dram_bytes"] > 0
                shares = ("compute_bound_share", "memory_bound_share")
                assert sum(both[scheme][share] for share in shares) == pytest.approx(1)
            saved = 1 - both["sparqle"]["cycles"] / both["dense"]["cycles"]
            assert both["reduction"]["cycles"] == pytest.approx(saved)
        whole, dense = data[phase]["whole_model"], data[phase]["dense_layers"]
        assert whole["dense"]["cycles"] > dense["dense"]["cycles"]
        assert data[phase]["mma_cycles"]["reduction"] > 0
    assert Accelerator(**data["accelerator"]) == run_result().accelerator


def test_kinds_are_weighted_by_macs():
    result = run_result()
    attention, up = by_kind(result.layers)
    assert (attention.kind, attention.layers, attention.windows) == (
        "attn_q attn_k",
        2,
        ("signed",),
    )
    assert attention.lowest <= attention.mean <= attention.highest
    assert attention.macs_share == pytest.approx(0.5)
    expected = 0.5 * attention.mean + 0.5 * up.mean
    assert mean_sparsity(result.layers) == pytest.approx(expected)


def test_reduction():
    assert reduction(100, 80) == pytest.approx(0.2)
    assert reduction(100, 110) == pytest.approx(-0.1)
    assert reduction(0, 0) == 0


def test_energy_is_that_of_the_events():
    result = run_result()
    data = result.to_json()["energy"]
    assert data["table"] == result.table.name == "7nm + LPDDR4"
    for name, phase in (("prefill", result.prefill), ("decode", result.decode)):
        for part in ("dense_layers", "whole_model"):
            both = getattr(phase, part)
            for scheme in ("dense", "sparqle"):
                found = energy(getattr(both, scheme).events, EDGE, result.table)
                assert data[name][part][scheme] == found.to_json()
            saved = data[name][part]["reduction"]
            dense, sparqle = (data[name][part][s]["joules"]["mid"] for s in ("dense", "sparqle"))
            assert saved["mid"] == pytest.approx(1 - sparqle / dense)
            assert saved["low"] <= saved["mid"] <= saved["high"]
