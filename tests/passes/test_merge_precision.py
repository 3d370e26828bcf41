"""The plain form of a module in split precision: other ops, the same bits."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, assert_changed, assert_equal_bits, assert_unchanged
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from sparqle_tvm.numerics import QuantizedWeights, grouped_bias_term
from sparqle_tvm.passes import MergePrecision

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8) // np.int8(2)
BIAS = -8 * W.sum(axis=1, dtype=np.int32)
CHANNEL = np.array([5, -6, 7], np.int32)
SCALE = np.array([0.1, 0.2, 0.3], np.float32)
D = np.array([[0.25, 1], [0.5, 2], [1, 0.125]], np.float16)
M = np.array([[-1, 0.5], [2, 0], [-0.25, 1]], np.float16)
OFFSET = grouped_bias_term(QuantizedWeights(W, D), 4, "signed")
F = np.array([2, 2, 2, 2, 0.5, 0.5, 0.5, 0.5], np.float32)
BANDS = np.array([[-20] * 8, [9] * 8], np.int8)


@I.ir_module
class Before:
    """Group scales with factors and bands, scales per channel, and int32 with a bias."""

    @R.function
    def main(x: R.Tensor((1, "n", 8), "float32"), q: R.Tensor(("n", 8), "int8")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, R.const(F), R.const(BANDS), group_size=4, label="up")
            scale = enc[4]
            sums = enc[5]
            a = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D), R.const(OFFSET, "float64"), R.const(M), sums,
                k=4, window="signed", in_features=8, group_size=4, weight_bits=4, label="up",
            )  # fmt: skip
            enc_c = R.sparqle.quantize_encode(x, qmax=127, label="down")
            scale_c = enc_c[4]
            c = R.sparqle.split_dense_scaled(
                enc_c, scale_c, R.const(W), R.const(SCALE), R.const(BIAS + CHANNEL),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=4, label="down",
            )  # fmt: skip
            given = R.sparqle.encode(q, window="signed", label="given")
            d = R.sparqle.split_dense(
                given, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=4, label="given",
            )  # fmt: skip
            R.output(a, c, d)
        return (a, c, d)


@I.ir_module
class Small:
    """Scales per channel with factors, and int32 of integers."""

    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), q: R.Tensor(("n", 8), "int8")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, R.const(F), qmax=127, label="up")
            scale = enc[4]
            a = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(SCALE), R.const(BIAS),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=4, label="up",
            )  # fmt: skip
            given = R.sparqle.encode(q, window="signed", group_size=4, label="given")
            sums = given[4]
            b = R.sparqle.split_dense(
                given, R.const(W), R.const(BIAS + CHANNEL),
                k=4, window="signed", in_features=8, weight_bits=4, label="given",
            )  # fmt: skip
            R.output(a, b, sums)
        return (a, b, sums)


@I.ir_module
class SmallExpected:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), q: R.Tensor(("n", 8), "int8")):
        n = T.int64()
        with R.dataflow():
            magnitude = R.abs(x)
            amax = R.max(magnitude, axis=[-1], keepdims=True)
            bounded = R.maximum(amax, R.const(1e-30, "float32"))
            scale = R.divide(bounded, R.const(127.0, "float32"))
            step = R.multiply(scale, R.const(F))
            ratio = R.divide(x, step)
            rounded = R.round(ratio)
            limited = R.clip(rounded, -127, 127)
            q8 = R.astype(limited, "int8")
            acc = R.matmul(q8, R.const(W.T.copy()), out_dtype="int32")
            real = R.astype(acc, "float32")
            scaled = R.multiply(real, scale)
            a = R.multiply(scaled, R.const(SCALE))
            wide = R.astype(q, "int32")
            grouped = R.reshape(wide, (n, 2, 4))
            sums = R.sum(grouped, axis=[-1])
            product = R.matmul(q, R.const(W.T.copy()), out_dtype="int32")
            b = R.add(product, R.const(CHANNEL))
            R.output(a, b, sums)
        return (a, b, sums)


def test_expected_module() -> None:
    report = assert_changed(MergePrecision, Small, SmallExpected)
    assert report.rewritten["MergePrecision"] == 2
    assert report.skipped == []


@I.ir_module
class Nothing:
    """An encoding whose bitmap is returned, and a function without any."""

    @R.function
    def main(q: R.Tensor(("n", 8), "int8")):
        enc = R.sparqle.encode(q, label="given")
        pbm = enc[1]
        y = R.sparqle.split_dense(
            enc, R.const(W), R.const(0 * BIAS),
            k=4, window="unsigned", in_features=8, weight_bits=8, label="given",
        )  # fmt: skip
        return (y, pbm)

    @R.function
    def plain(x: R.Tensor(("n", 8), "float32")):
        y = R.abs(x)
        return y


def test_planes_that_are_read_keep_their_encoding() -> None:
    reasons = assert_unchanged(MergePrecision, Nothing)
    assert reasons == ["its planes have other readers than dense ops"]


@functools.cache
def split_and_merged() -> tuple[Runnable, Runnable]:
    return Runnable(Before), Runnable(Before, MergePrecision())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_same_bits_as_the_split_form(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, rows, 8), dtype=np.float32) ** 3
    q = rng.integers(-128, 128, (rows, 8)).astype(np.int8)
    split, merged = split_and_merged()
    assert_equal_bits(merged(x, q), split(x, q))


@I.ir_module
class Parameters:
    """Weights and scales that are parameters."""

    @R.function
    def main(
        x: R.Tensor(("n", 8), "float32"),
        w: R.Tensor((3, 8), "int8"),
        d: R.Tensor((3, 2), "float16"),
    ):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, label="up")
            scale = enc[4]
            a = R.sparqle.split_dense_scaled(
                enc, scale, w, d, R.const(OFFSET, "float64"),
                k=4, window="signed", in_features=8, group_size=4, weight_bits=4, label="up",
            )  # fmt: skip
            R.output(a)
        return a


def test_weights_that_are_parameters() -> None:
    rng = np.random.default_rng(1)
    args = [
        rng.standard_normal((4, 8), dtype=np.float32),
        rng.integers(-8, 8, (3, 8)).astype(np.int8),
        rng.uniform(0.1, 1, (3, 2)).astype(np.float16),
    ]
    split, merged = Runnable(Parameters), Runnable(Parameters, MergePrecision())
    assert_equal_bits(merged(*args), split(*args))
