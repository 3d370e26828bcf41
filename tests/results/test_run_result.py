"""The JSON form of a run: its keys are a promise, and what is no such file is refused."""

import json

import pytest
from run_result_helper import EDGE, SHAPE, run_result

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.results.run import RunResult, by_kind, mean_sparsity
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.limits import LIMITS


def test_json_keys():
    data = json.loads(json.dumps(run_result().to_json(), allow_nan=False))
    assert data["version"] == 4
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
        schemes = data[phase]["schemes"]
        assert list(schemes) == ["dense", "sparqle"]
        for part in ("dense_layers", "whole_model"):
            for cost in schemes.values():
                assert cost[part]["cycles"] > 0
                assert cost[part]["dram_bytes"] > 0
                assert sum(cost[part]["limits"][x] for x in LIMITS) == cost[part]["cycles"]
                joules = cost[part]["energy"]["joules"]
                assert 0 < joules["low"] <= joules["mid"] <= joules["high"]
            dense, sparqle = (schemes[s][part] for s in ("dense", "sparqle"))
            saved = sparqle["saved"]
            assert saved["cycles"] == pytest.approx(1 - sparqle["cycles"] / dense["cycles"])
            mids = [cost["energy"]["joules"]["mid"] for cost in (dense, sparqle)]
            assert saved["energy"]["mid"] == pytest.approx(1 - mids[1] / mids[0])
            assert saved["energy"]["low"] <= saved["energy"]["mid"] <= saved["energy"]["high"]
        dense = schemes["dense"]
        assert dense["whole_model"]["cycles"] > dense["dense_layers"]["cycles"]
        assert schemes["sparqle"]["mma_saved"] > 0
    assert Accelerator(**data["accelerator"]) == run_result().accelerator
    assert (data["table"]["node"], data["table"]["memory"]) == ("7nm", "lpddr4")


def test_kinds_are_weighted_by_macs():
    layers = run_result().msb_sparsity.layers
    attention, up = by_kind(layers)
    assert (attention.kind, attention.layers, attention.windows) == (
        "attn_q attn_k",
        2,
        ("signed",),
    )
    assert attention.lowest <= attention.mean <= attention.highest
    assert attention.macs_share == pytest.approx(0.5)
    expected = 0.5 * attention.mean + 0.5 * up.mean
    assert mean_sparsity(layers) == pytest.approx(expected)


def saved(tmp_path, data):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    return path


def test_a_file_holds_what_the_run_had(tmp_path):
    result = run_result()
    run = RunResult.load(saved(tmp_path, result.to_json()))
    assert (run.accelerator, run.transformer, run.model.name) == (EDGE, SHAPE, "tiny")
    assert run.passes == result.passes
    assert run.msb_sparsity == result.msb_sparsity
    assert run.table.sram == result.table.sram
    assert run.to_json() == result.to_json()


def damaged(change):
    data = json.loads(json.dumps(run_result().to_json()))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("version"), "has version None"),
        (lambda d: d.update(version=2), "has version 2, not"),
        (lambda d: d.pop("decode"), "missing required field `decode`"),
        (
            lambda d: d["prefill"]["layers"][0].pop("macs"),
            r"missing required field `macs` - at `\$\.prefill\.layers\[0\]`",
        ),
        (
            lambda d: d["prefill"]["layers"][0]["costs"].update(dense=3),
            r"Expected `object`, got `int` - at `\$\.prefill\.layers\[0\]\.costs",
        ),
        (
            lambda d: d["prefill"]["schemes"]["dense"]["whole_model"].update(cycles="many"),
            r"Expected `int`, got `str` - at `\$\.prefill\.schemes\[\.\.\.\]\.whole_model\.cycles`",
        ),
        (lambda d: d["decode"].pop("schemes"), r"field `schemes` - at `\$\.decode`"),
        (lambda d: d["decode"].update(phase="dinner"), r"'dinner' - at `\$\.decode\.phase`"),
        (lambda d: d["accelerator"].update(rows=-1), "rows = -1 must be positive"),
        (lambda d: d["accelerator"].update(wheels=4), r"\$\.accelerator\.wheels is unknown"),
        (lambda d: d["transformer"].update(layers=0), r"\$\.transformer\.layers"),
        (lambda d: d["perplexity"].pop("sparqle"), "perplexity must be that of float, int8 and"),
        (
            lambda d: d["prefill"]["schemes"]["dense"]["whole_model"]["limits"].popitem(),
            "limits must be those of array, waiting_rows",
        ),
        (
            lambda d: d["decode"]["layers"][0]["costs"]["dense"]["limits"].update(array=10**9),
            "limits must add up to the",
        ),
        (
            lambda d: d["decode"]["schemes"]["sparqle"]["dense_layers"].update(saved=None),
            "a part does not say what it saves of dense",
        ),
        (lambda d: d["decode"]["layers"][0]["costs"].pop("dense"), "lacks the cost of a scheme"),
        (
            lambda d: d["msb_sparsity"]["layers"][0].update(row_density=[0.5]),
            "row_density must have as many points",
        ),
        (lambda d: d["perplexity"].update(float="\ud800"), "surrogates not allowed"),
    ],
)
def test_what_is_no_whole_file(tmp_path, change, message):
    with pytest.raises(ResultFileError, match=rf"run\.json.*{message}") as caught:
        RunResult.load(saved(tmp_path, damaged(change)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [[], 3, None, "text"])
def test_json_of_another_kind(data):
    with pytest.raises(ResultFileError, match="the result has version None"):
        RunResult.from_json(data)


def test_no_json_and_no_file(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(ResultFileError, match=r"run\.json cannot be read: No such file"):
        RunResult.load(path)
    path.write_text('{"version": ')
    with pytest.raises(ResultFileError, match=r"run\.json is not JSON"):
        RunResult.load(path)
    for number in ("NaN", "-Infinity", "1e400"):
        path.write_text(f'{{"version": {number}}}')
        with pytest.raises(ResultFileError, match=f"{number} is no finite number"):
            RunResult.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ResultFileError, match=r"run\.json is not JSON \(.*recursion"):
        RunResult.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultFileError, match=r"run\.json is not JSON"):
        RunResult.load(path)
