"""Functions return what their encodings quantize, and what their dense ops give."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, assert_changed, assert_equal_bits, assert_unchanged
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm.passes import CollectActivations, PassReport

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
W8 = np.arange(-32, 32, dtype=np.int8).reshape(8, 8)
D, OFFSET = np.ones(3, np.float32), np.zeros(3, np.int32)
D8, OFFSET8 = np.ones(8, np.float32), np.zeros(8, np.int32)
BIAS = np.ones((1, 8), np.float32)


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), q: R.Tensor(("n", 8), "int8")):
        with R.dataflow():
            up = R.sparqle.quantize_encode(x, qmax=119, label="up")
            scale = up[4]
            inner = R.sparqle.split_dense_scaled(
                up, scale, R.const(W), R.const(D), R.const(OFFSET),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="up",
            )  # fmt: skip
            written = R.sparqle.split_dense_scaled(
                up, scale, R.const(W8), R.const(D8), R.const(OFFSET8),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="down",
            )  # fmt: skip
            biased = R.add(written, R.const(BIAS))
            stream = R.add(x, written)
            given = R.sparqle.encode(q, k=4, window="unsigned", label="given")
            acc = R.sparqle.split_dense(
                given, R.const(W), R.const(OFFSET),
                k=4, window="unsigned", in_features=8, weight_bits=8, label="given",
            )  # fmt: skip
            R.output(inner, biased, stream, acc)
        return (inner, biased, stream, acc)


@I.ir_module
class Small:
    """Outside of dataflow blocks."""

    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        up = R.sparqle.quantize_encode(x, qmax=119, label="up")
        y = up[0]
        return y


@I.ir_module
class SmallExpected:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        R.func_attr({"sparqle_observed": True})
        up = R.sparqle.quantize_encode(x, qmax=119, label="up")
        observed = x
        y = up[0]
        return (y, (observed,))


@I.ir_module
class Plain:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        y = R.abs(x)
        return y


def test_expected_module():
    assert_changed(CollectActivations, Small, SmallExpected)


def test_nothing_to_collect():
    assert_unchanged(CollectActivations, Plain)


def test_what_is_returned_is_described():
    report = PassReport()
    collect = CollectActivations(report=report)
    collect(Before)
    found = [
        (info.label, dense and dense.label, kind) for info, dense, kind in collect.collected["main"]
    ]
    assert found == [
        ("up", None, "input"),
        ("up", "up", "output"),
        ("up", "down", "output"),
        ("up", "down", "stream"),  # the sum with x, not that with a constant
        ("given", None, "input"),
    ]
    up, given = collect.collected["main"][0][0], collect.collected["main"][-1][0]
    assert (up.columns, up.qmax, up.digit_bits, up.window) == (8, 119, 4, "signed")
    assert (given.qmax, given.window) == (0, "unsigned")
    assert [(d.out_features, d.stream, d.returned) for d in up.dense] == [
        (3, False, True),
        (8, True, True),
    ]
    assert (up.dense[1].weight.value.numpy() == W8).all()
    assert up.dense[1].minimum is None
    assert [d.returned for d in given.dense] == [False]
    assert report.rewritten == {"CollectActivations": 1}


@functools.cache
def runnables():
    return Runnable(Before), Runnable(Before, CollectActivations())


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_values_are_those_of_the_function(rows, seed):
    plain, observed = runnables()
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 8)).astype(np.float32)
    q = rng.integers(-100, 100, (rows, 8)).astype(np.int8)
    expected = plain(x, q)
    result, (seen_x, inner, written, stream, seen_q) = observed(x, q)
    assert_equal_bits(result, expected)
    np.testing.assert_array_equal(seen_x, x)
    np.testing.assert_array_equal(seen_q, q)
    np.testing.assert_array_equal(inner, expected[0])
    np.testing.assert_array_equal(written + BIAS, expected[1])
    np.testing.assert_array_equal(stream, expected[2])
