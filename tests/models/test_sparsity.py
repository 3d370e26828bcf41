"""Distributions of MSB digits: measured, around a number, from files; and what is drawn."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.models.shapes import LAYER_TYPES
from sparqle_tvm.models.sparsity import (
    CLASSES,
    MAX_DRAWN_ROWS,
    QUANTILES,
    MsbDistribution,
    constant,
    from_file,
    layer_type_of,
    measured,
    measured_file,
    msb_distribution,
    row_quantiles,
    row_spread,
    summarize,
)
from sparqle_tvm.numerics.row_nnz import RowNnz

BY_TYPE = dict.fromkeys(LAYER_TYPES, 0.5)
RUN_LAYERS = [
    {"consumers": ["blk_0_attn_q"], "row_density": [0.1, 0.1]},
    {"consumers": ["blk_0_attn_output"], "row_density": [0.2, 0.2]},
    {"consumers": ["blk_0_ffn_up"], "row_density": [0.3, 0.3]},
    {"consumers": ["blk_0_ffn_down"], "row_density": [0.4, 0.4]},
    {"consumers": ["output"], "row_density": [0.5, 0.5]},
    {"consumers": ["something else"], "row_density": [0.9, 0.9]},
]


@pytest.mark.parametrize("digit_bits", [2, 4, 8])
def test_measured_is_what_the_stored_file_says(digit_bits):
    data = json.loads(measured_file(digit_bits).read_text())
    assert data["digit_bits"] == digit_bits
    assert set(data["layer_types"]) == set(LAYER_TYPES)
    for kind, classes in data["layer_types"].items():
        assert len(classes) == (1 if kind == "output" else CLASSES)
        means = [np.mean(quantiles) for quantiles in classes]
        assert means == sorted(means)
        for quantiles in classes:
            assert len(quantiles) == QUANTILES
            assert quantiles == sorted(quantiles)
    found = measured(digit_bits)
    assert found.transferred
    assert found.digit_bits == digit_bits
    assert "SmolLM2" in found.label
    # What attention gives is denser than what the other layers read, at every width.
    by_type = {kind: found.msb_sparsity(kind) for kind in LAYER_TYPES}
    assert min(by_type, key=by_type.__getitem__) == "o"
    if digit_bits == 4:
        assert by_type["qkv"] > by_type["down"] > by_type["gate_up"] > by_type["o"]
    assert 0.3 < row_spread(digit_bits) < 1.0


@pytest.mark.slow
def test_measuring_again_gives_the_stored_files(tmp_path, monkeypatch):
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "msb_sparsity_table.py"
    monkeypatch.setattr("sys.argv", [str(script), "--folder", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    for k in (2, 4, 8):
        again, stored = from_file(tmp_path / measured_file(k).name), measured(k)
        for kind in LAYER_TYPES:
            # Float sums of another CPU may round an activation to the next integer.
            assert again.msb_sparsity(kind) == pytest.approx(stored.msb_sparsity(kind), abs=0.002)


def test_wider_digits_are_zero_less_often():
    # A digit of 8 bits is zero where 16-bit activations lie within 128 of zero: hardly ever.
    for kind in LAYER_TYPES:
        two, four, eight = (measured(k).msb_sparsity(kind) for k in (2, 4, 8))
        assert 1 > two > four > eight > 0
        assert eight < 0.2
    with pytest.raises(InvalidArgumentError, match="k must be 2, 4 or 8"):
        measured(3)


@pytest.mark.parametrize("digit_bits", [2, 8])
def test_digits_of_another_width_are_refused(tmp_path, digit_bits):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(BY_TYPE))
    message = (
        rf"mine\.json is about digits of 4 bits, the accelerator has digits of {digit_bits}: "
        rf".* a number from 0 to 1, or a file .* says \"digit_bits\": {digit_bits}"
    )
    with pytest.raises(InvalidArgumentError, match=message):
        msb_distribution(path, digit_bits)
    with pytest.raises(InvalidArgumentError, match="is about digits of 4 bits"):
        msb_distribution(measured(4), digit_bits)
    # A file may say its width; of a number, any width is taken.
    path.write_text(json.dumps({**BY_TYPE, "digit_bits": digit_bits}))
    assert msb_distribution(path, digit_bits).digit_bits == digit_bits
    with pytest.raises(InvalidArgumentError, match=rf"is about digits of {digit_bits} bits"):
        msb_distribution(path)
    assert msb_distribution(0.7, digit_bits).msb_sparsity("o") == pytest.approx(0.7)
    assert msb_distribution("measured", digit_bits) is measured(digit_bits)
    run = {"accelerator": {"digit_bits": digit_bits}, "msb_sparsity": {"layers": RUN_LAYERS}}
    path.write_text(json.dumps(run))
    assert msb_distribution(path, digit_bits).msb_sparsity("o") == pytest.approx(0.8)
    with pytest.raises(InvalidArgumentError, match=rf"is about digits of {digit_bits} bits"):
        msb_distribution(path)


@given(s=st.floats(0, 1))
@settings(max_examples=12, deadline=None)
def test_around_a_number_the_mean_is_that_number(s):
    found = constant(s)
    for kind in LAYER_TYPES:
        assert found.msb_sparsity(kind) == pytest.approx(s, abs=1e-6)
    nnz = found.draw("o", 0, 256, 4096, 64)
    assert nnz.msb_sparsity == pytest.approx(s, abs=0.004)


def test_rows_around_a_number_spread_as_documented():
    shares = constant(0.7).draw("o", 0, 1024, 1 << 14, 64).per_chunk(1 << 14)[:, 0] / (1 << 14)
    odds = np.log(shares / (1 - shares))
    assert odds.std() == pytest.approx(row_spread(), rel=0.05)


def test_ends_of_the_range():
    none, all_ = (constant(s).draw("o", 0, 10, 100, 16) for s in (1.0, 0.0))
    assert none.total == 0
    assert all_.total == 10 * 100


def test_drawn_rows_have_the_mean_of_their_class():
    found = measured(4)
    for kind in ("qkv", "down"):
        means = []
        for which in range(CLASSES):
            nnz = found.draw(kind, which, 512, 4096, 128)
            assert (nnz.rows, nnz.in_features, nnz.counts.shape[1]) == (512, 4096, 32)
            means.append(nnz.msb_sparsity)
        assert np.mean(means) == pytest.approx(found.msb_sparsity(kind), abs=0.003)
        # One row alone is a mean row.
        alone = found.draw(kind, 2, 1, 1 << 18, 128).msb_sparsity
        assert alone == pytest.approx(means[2], abs=0.005)
    again = found.draw("qkv", 0, 64, 256, 8, seed=1)
    assert (found.draw("qkv", 0, 64, 256, 8, seed=1).counts == again.counts).all()
    assert (found.draw("qkv", 0, 64, 256, 8, seed=2).counts != again.counts).any()
    with pytest.raises(ValueError, match="read-only"):
        again.counts[0] = 0


def test_many_rows_repeat_and_a_last_span_may_be_short():
    nnz = constant(0.5).draw("o", 0, MAX_DRAWN_ROWS + 3, 20, 16)
    assert nnz.counts.shape == (MAX_DRAWN_ROWS + 3, 2)
    assert (nnz.counts[:3] == nnz.counts[-3:]).all()
    assert nnz.counts[:, 1].max() <= 4


def test_layers_are_dealt_to_classes():
    found = measured(4)
    assert found.layer_counts("qkv", 32) == (7, 7, 6, 6, 6)
    assert found.layer_counts("qkv", 2) == (1, 1)
    assert found.layer_counts("output", 1) == (1,)
    assert constant(0.5).layer_counts("qkv", 32) == (32,)


def test_summary_of_layers():
    counts = np.array([[0, 8], [4, 4], [8, 8], [1, 0]])
    quantiles = row_quantiles(RowNnz(counts, 8, 16))
    assert quantiles[0] == round(1 / 16, 5)
    assert quantiles[-1] == 1.0
    assert len(quantiles) == QUANTILES
    layers = [("o", [0.1 * i, 0.1 * i + 0.2]) for i in range(7)] + [("down", [0.5, 0.5])]
    classes = summarize(layers)
    assert classes["down"] == [[0.5, 0.5]]
    # 7 layers in 5 parts: 2, 2, 1, 1, 1; a class is the mean of its layers.
    assert classes["o"] == [[0.05, 0.25], [0.25, 0.45], [0.4, 0.6], [0.5, 0.7], [0.6, 0.8]]
    assert layer_type_of(["blk_12_attn_q", "blk_12_attn_v"]) == "qkv"
    assert layer_type_of(["output"]) == "output"
    assert layer_type_of(["blk_0_attn_q", "blk_0_ffn_down"]) is None
    assert layer_type_of(["expert"]) is None


def test_files(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**BY_TYPE, "qkv": 0.9, "o": [[0.1, 0.3], [0.5, 0.7]]}))
    found = msb_distribution(path)
    assert not found.transferred
    assert "mine.json" in found.label
    assert found.msb_sparsity("qkv") == pytest.approx(0.9)
    assert found.msb_sparsity("o") == pytest.approx(0.6)
    assert found.layer_counts("o", 3) == (2, 1)
    # The package's own table has the same format.
    same = from_file(measured_file())
    assert same.msb_sparsity("down") == measured(4).msb_sparsity("down")


def test_what_a_run_wrote(tmp_path):
    layers = [dict(layer) for layer in RUN_LAYERS]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"msb_sparsity": {"layers": layers}}))
    found = msb_distribution(str(path))
    assert [round(found.msb_sparsity(kind), 6) for kind in LAYER_TYPES] == [0.9, 0.8, 0.7, 0.6, 0.5]
    del layers[0]["row_density"]
    path.write_text(json.dumps({"msb_sparsity": {"layers": layers}}))
    with pytest.raises(InvalidArgumentError, match=r"run\.json has no rows of layers"):
        msb_distribution(path)


def test_sources_by_name():
    assert msb_distribution() is measured(4)
    assert msb_distribution("0.25").msb_sparsity("o") == pytest.approx(0.25)
    mine = MsbDistribution("mine", False, measured(4).classes)
    assert msb_distribution(mine) is mine


@pytest.mark.parametrize("value", [1.5, -0.1, "2", float("nan"), float("inf")])
def test_sparsity_outside_is_refused(value):
    with pytest.raises(InvalidArgumentError, match="must be from 0 to 1"):
        msb_distribution(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "nor a JSON file"),
        ("[1]", "a JSON object by layer type"),
        ({**BY_TYPE, "qkv": 1.2}, "qkv = 1.2 must be from 0 to 1"),
        ({**BY_TYPE, "moe": 0.5}, r"unknown layer types \['moe'\]"),
        ({"qkv": 0.5}, "missing layer types"),
        ({**BY_TYPE, "o": [[0.5]]}, "o: shares of stored digits are lists"),
        ({**BY_TYPE, "o": [[0.5, 1.5]]}, "o: shares of stored digits are lists"),
        ({**BY_TYPE, "o": []}, "o: no class of layers"),
        ({**BY_TYPE, "o": "much"}, "o: a number or lists of numbers"),
        ({**BY_TYPE, "o": True}, "o: a number or lists of numbers"),
        ({"layer_types": 3}, "a JSON object by layer type"),
        ({**BY_TYPE, "digit_bits": 3}, r"wrong\.json: digit_bits: k must be 2, 4 or 8"),
    ],
)
def test_wrong_files_are_refused(tmp_path, content, message):
    path = tmp_path / "wrong.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InvalidArgumentError, match=message):
        msb_distribution(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="neither 'measured', nor a number"):
        msb_distribution(str(tmp_path / "none.json"))
