"""What is collected of a module, against NumPy on the activations themselves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm import dialect
from sparqle_tvm.calibration.collect import Collector
from sparqle_tvm.calibration.statistics import FACTORS, UNCHANGED
from sparqle_tvm.errors import CalibrationError, QuantizationError
from sparqle_tvm.numerics import encode, quantize_per_token

dialect.register()
W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
SCALE, OFFSET = np.array([1.0, 0.5, 2.0], np.float32), -8 * W.sum(axis=1, dtype=np.int32)


@I.ir_module
class Layer:
    """A dense layer with one scale per output channel, and one that arrives quantized."""

    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), q: R.Tensor(("n", 8), "int8")):
        up = R.sparqle.quantize_encode(x, qmax=127, label="up")
        scale = up[4]
        y = R.sparqle.split_dense_scaled(
            up, scale, R.const(W), R.const(SCALE), R.const(OFFSET),
            k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="up",
        )  # fmt: skip
        given = R.sparqle.encode(q, k=4, window="unsigned", label="given")
        acc = R.sparqle.split_dense(
            given, R.const(W), R.const(np.zeros(3, np.int32)),
            k=4, window="unsigned", in_features=8, weight_bits=8, label="given",
        )  # fmt: skip
        return (y, acc)


@I.ir_module
class Plain:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        y = R.abs(x)
        return y


@I.ir_module
class Shifted:
    """uint8 with a constant zero point, and with one that comes at run time."""

    @R.function
    def main(q: R.Tensor(("n", 8), "uint8"), zero: R.Tensor((), "uint8")):
        fixed = R.sparqle.encode(q, k=4, window="signed", zero_point=250, label="fixed")
        a = R.sparqle.split_dense(
            fixed, R.const(W), R.const(np.zeros(3, np.int32)), k=4, window="signed",
            act_signed=0, zero_point=250, in_features=8, weight_bits=8, label="fixed",
        )  # fmt: skip
        later = R.sparqle.encode(q, zero, k=4, window="signed", label="later")
        b = R.sparqle.split_dense(
            later, R.const(W), R.const(np.zeros(3, np.int32)), k=4, window="signed",
            act_signed=0, in_features=8, weight_bits=8, label="later",
        )  # fmt: skip
        return (a, b)


@pytest.fixture(scope="module")
def compiled():
    return Collector(Layer, "main")


@pytest.fixture
def layer(compiled):
    """A collector that has seen nothing, around one compiled module."""
    return copy.copy(compiled)


def test_inputs_of_a_call(layer):
    x, q = np.linspace(-2, 3, 24, dtype=np.float32).reshape(3, 8), W
    _, observed = layer.call(x, q)
    inputs = layer.inputs(observed)
    assert list(inputs) == ["up", "given"]
    np.testing.assert_array_equal(inputs["up"], x)
    np.testing.assert_array_equal(inputs["given"], q)
    assert (inputs["up"].dtype, inputs["given"].dtype) == (np.float32, np.int8)


def test_sums_of_a_layer(layer):
    rng = np.random.default_rng(0)
    x = rng.laplace(size=(20, 8)).astype(np.float32)
    q = rng.integers(0, 128, (20, 8)).astype(np.int8)
    for part in (slice(0, 7), slice(7, 20)):
        layer.run(x[part], q[part], key=bytes([part.start]))
    found = layer.result(model_name="layer", text_name="noise", tokens=20)
    up, given = found["up"], found["given"]
    assert (up.rows, up.columns, up.tied, up.unit, up.macs) == (20, 8, True, 8, 24)
    quantized, scale = quantize_per_token(x)
    sparsity = encode(quantized, k=4, window="signed").msb_sparsity
    assert up.msb_sparsity("signed") == pytest.approx(sparsity, abs=1e-12)
    assert up.largest == np.abs(x).max()
    y = (quantized * scale).astype(np.float64) @ (W * SCALE[:, None]).T
    error = (x - quantized * scale).astype(np.float64) ** 2 / (y**2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(up.error[UNCHANGED], error.sum(axis=0), rtol=1e-3)
    np.testing.assert_allclose(
        up.dense[0].column_energy, ((W * SCALE[:, None]) ** 2).sum(axis=0), rtol=1e-6
    )
    assert up.dense[0].gain == pytest.approx(20)  # one op: its own outputs are what errors disturb
    assert not up.dense[0].stream and up.dense[0].share == 0
    assert given.qmax == 0 and (q > 119).any()
    stored = (q > 15).sum()
    assert given.stored[1, UNCHANGED].sum() == stored
    assert found.windows()["given"] == "unsigned"


def test_windows_are_measured_around_the_zero_point():
    collector = Collector(Shifted, "main")
    q = np.random.default_rng(2).integers(200, 256, (20, 8)).astype(np.uint8)
    q[:, 0] = 3
    collector.run(q, np.array(7, np.uint8))
    found = collector.result(model_name="", text_name="", tokens=20)
    # What comes at run time is not known to the statistics.
    assert [e.label for e in found.encodings] == ["fixed"]
    # The centre is 248, the largest, so digits are spared from 240 on.
    stored = [np.count_nonzero(q < 240), np.count_nonzero(q > 15)]
    assert found["fixed"].stored[:, UNCHANGED].sum(axis=1).tolist() == stored
    assert found.windows() == {"fixed": "signed"}


def test_a_sample_holds_whole_rows_whatever_the_order(layer):
    rng = np.random.default_rng(1)
    parts = [
        (rng.laplace(size=(90, 8)).astype(np.float32), np.zeros((90, 8), np.int8), bytes([i]))
        for i in range(2)
    ]
    samples = []
    for order in (parts, parts[::-1]):
        collector = copy.copy(layer)
        for x, q, key in order:
            collector.run(x, q, key=key)
        samples.append(collector.result(model_name="", text_name="", tokens=180))
    one, other = samples
    assert len(one.sample_keys) == 128 and (np.diff(one.sample_keys.astype(object)) > 0).all()
    np.testing.assert_array_equal(one.sample_keys, other.sample_keys)
    np.testing.assert_array_equal(one["up"].sample, other["up"].sample)
    x = np.concatenate([x for x, _, _ in parts])
    counts = {int(((q < -8) | (q > 7)).sum()) for q in quantize_per_token(x)[0]}
    assert set(one["up"].sample[:, UNCHANGED, 0].tolist()) <= counts


@I.ir_module
class Wide:
    """The same with digits of 8 bits."""

    @R.function
    def main(q: R.Tensor(("n", 8), "int16")):
        given = R.sparqle.encode(q, k=8, window="signed", label="wide")
        acc = R.sparqle.split_dense(
            given, R.const(W), R.const(np.zeros(3, np.int32)),
            k=8, window="signed", in_features=8, weight_bits=8, label="wide",
        )  # fmt: skip
        return acc


def test_what_cannot_be_collected(layer):
    with pytest.raises(CalibrationError, match=r"wide has digits of 8 bits, .* int8 activations"):
        Collector(Wide, "main")
    with pytest.raises(CalibrationError, match="function main has no quantized dense op"):
        Collector(Plain, "main")
    with pytest.raises(CalibrationError, match="nothing was run"):
        layer.result(model_name="", text_name="", tokens=0)
    x = np.ones((3, 8), np.float32)
    x[1, 2] = np.nan
    with pytest.raises(QuantizationError, match="up holds NaN or Inf in row 1"):
        layer.run(x, np.zeros((3, 8), np.int8))


def test_streams_of_a_llama(tiny):
    found = tiny.calibration
    assert found.tokens == 200 and len(found.encodings) == 8
    writers = {d.label for e in found for d in e.dense if d.stream}
    expected = {f"blk_{i}_{n}" for i in range(2) for n in ("attn_output", "ffn_down")}
    assert writers == expected
    for encoding in found:
        assert encoding.rows == 200 and not encoding.tied and encoding.unit == 32
        assert encoding.sample.shape == (128, len(FACTORS), encoding.units)
        for dense in encoding.dense:
            assert (dense.share > 0) == dense.stream
            assert dense.gain >= 200 * (1 - 1e-6)


def test_merged_halves_are_the_whole(tiny):
    halves = []
    for part in (tiny.tokens[:120], tiny.tokens[120:]):
        collector = copy.copy(tiny.unused)
        collector.run(part[None], key=part.tobytes())
        halves.append(collector.result(model_name="tiny", text_name="prose", tokens=len(part)))
    merged, whole = halves[0].merge(halves[1]), tiny.calibration
    assert merged.tokens == whole.tokens and merged.text_name == "prose"
    np.testing.assert_array_equal(merged.sample_keys, whole.sample_keys)
    for mine, theirs in zip(merged, whole, strict=True):
        np.testing.assert_array_equal(mine.stored, theirs.stored)
        np.testing.assert_array_equal(mine.sample, theirs.sample)
        np.testing.assert_allclose(mine.error, theirs.error, rtol=1e-6)
        assert mine.rows == theirs.rows
