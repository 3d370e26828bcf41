"""Functions return the bitmaps and scales of their encodings, and what bands clipped."""

from __future__ import annotations

import functools

import numpy as np
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, assert_changed, assert_equal_bits, assert_unchanged
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm.numerics import (
    EncodingChoice,
    encode,
    quantize_per_token,
    quantize_with_choice,
)
from sparqle_tvm.passes import CollectEncodings, DenseInfo, EncodingInfo, PassReport

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
BIAS = -8 * W.sum(axis=1, dtype=np.int32)
ZEROS = np.zeros(3, np.int32)
D, M, OFFSET = np.ones((3, 2), np.float16), np.zeros((3, 2), np.float16), np.zeros(3)


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), q: R.Tensor(("n", 8), "int8")):
        with R.dataflow():
            up = R.sparqle.quantize_encode(x, qmax=119, group_size=4, label="up")
            scale = up[4]
            sums = up[5]
            a = R.sparqle.split_dense_scaled(
                up, scale, R.const(W), R.const(D), R.const(OFFSET, "float64"), R.const(M), sums,
                k=4, window="signed", in_features=8, group_size=4, weight_bits=4, label="up",
            )  # fmt: skip
            gate = R.sparqle.split_dense(
                up, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="gate",
            )  # fmt: skip
            wide = R.sparqle.quantize_encode(x, qmax=127, label="wide")
            b = wide[4]
            given = R.sparqle.encode(q, k=4, window="signed", label="given")
            c = R.sparqle.split_dense(
                given, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="given",
            )  # fmt: skip
            exact = R.sparqle.encode(q, k=4, window="unsigned", label="exact")
            d = exact[0]
            R.output(a, gate, b, c, d)
        return (a, gate, b, c, d)


@I.ir_module
class Small:
    """Outside of dataflow blocks."""

    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), q: R.Tensor(("n", 8), "int8")):
        enc_x = R.sparqle.quantize_encode(x, qmax=119, label="up")
        enc_q = R.sparqle.encode(q, k=4, window="signed", label="down")
        y = enc_x[0]
        z = enc_q[0]
        return (y, z)

    @R.function
    def plain(x: R.Tensor(("n", 8), "float32")):
        y = R.abs(x)
        return y


@I.ir_module
class SmallExpected:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), q: R.Tensor(("n", 8), "int8")):
        R.func_attr({"sparqle_collected": True})
        enc_x = R.sparqle.quantize_encode(x, qmax=119, label="up")
        pbm_x = enc_x[1]
        scale_x = enc_x[4]
        enc_q = R.sparqle.encode(q, k=4, window="signed", label="down")
        pbm_q = enc_q[1]
        y = enc_x[0]
        z = enc_q[0]
        return ((y, z), (pbm_x, scale_x, pbm_q))

    @R.function
    def plain(x: R.Tensor(("n", 8), "float32")):
        y = R.abs(x)
        return y


def test_expected_module() -> None:
    assert_changed(CollectEncodings, Small, SmallExpected)


CENTRED = "centred on the zero point 0"
CHOSEN = f"chosen, by name or by measurement; by rule it were signed: {CENTRED}"


def test_infos() -> None:
    collect = CollectEncodings()
    collect(Before)
    assert collect.collected == {
        "main": [
            EncodingInfo(
                label="up",
                digit_bits=4,
                window="signed",
                window_reason=CENTRED,
                columns=8,
                quantizes=True,
                consumers=[
                    DenseInfo(
                        "up", n=3, k=8, weight_bits=4, group_size=4, has_min=True, scale_bytes=2
                    ),
                    DenseInfo(
                        "gate", n=3, k=8, weight_bits=8, group_size=0, has_min=False, scale_bytes=2
                    ),
                ],
            ),
            EncodingInfo("wide", 4, "signed", CENTRED, 8, quantizes=True),
            EncodingInfo(
                label="given",
                digit_bits=4,
                window="signed",
                window_reason=CENTRED,
                columns=8,
                quantizes=False,
                consumers=[DenseInfo("given", 3, 8, 8, 0, False, 2)],
            ),
            EncodingInfo("exact", 4, "unsigned", CHOSEN, 8, quantizes=False),
        ]
    }


def test_infos_come_again_from_what_is_collected_already() -> None:
    first, second = CollectEncodings(), CollectEncodings()
    second(first(Before))
    assert first.collected == second.collected


def test_nothing_to_collect() -> None:
    mod = tvm.IRModule({"plain": Small["plain"]})
    assert assert_unchanged(CollectEncodings, mod) == []
    collect = CollectEncodings()
    collect(mod)
    assert collect.collected == {}


@I.ir_module
class Hidden:
    """An encoding in a branch, and one in a function that another one calls."""

    @R.function
    def branch(q: R.Tensor((4, 8), "int8"), flag: R.Tensor((), "bool")):
        if flag:
            enc = R.sparqle.encode(q, label="then")
            y = enc[0]
        else:
            y = R.zeros((4, 4), "uint8")
        return y

    @R.function
    def callee(q: R.Tensor((4, 8), "int8")) -> R.Tensor((4, 4), "uint8"):
        enc = R.sparqle.encode(q, label="callee")
        y = enc[0]
        return y

    @R.function
    def caller(q: R.Tensor((4, 8), "int8")) -> R.Tensor((4, 4), "uint8"):
        cls = Hidden
        y = cls.callee(q)
        return y


def test_what_cannot_be_returned_is_reported() -> None:
    report = PassReport()
    CollectEncodings(report=report)(Hidden)
    assert {entry.label: entry.reason for entry in report.skipped} == {
        "then": "stands in a branch",
        "callee": "its function callee is called by another one",
    }
    assert_unchanged(CollectEncodings, Hidden)


@functools.cache
def plain_and_collecting() -> tuple[Runnable, Runnable]:
    return Runnable(Before), Runnable(Before, CollectEncodings())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_observations_equal_the_reference(rows: int, seed: int) -> None:
    plain, collecting = plain_and_collecting()
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 8), dtype=np.float32)
    q = rng.integers(-128, 128, (rows, 8)).astype(np.int8)
    result, observed = collecting(x, q)
    assert_equal_bits(result, plain(x, q))
    small, scale = quantize_per_token(x, qmax=119)
    large, wide_scale = quantize_per_token(x, qmax=127)
    planes = [
        encode(v, window=window).pbm
        for v, window in ((small, "signed"), (large, "signed"), (q, "signed"), (q, "unsigned"))
    ]
    expected = [planes[0], scale, planes[1], wide_scale, planes[2], planes[3]]
    assert_equal_bits(observed, expected)


F = np.array([0.5, 0.5, 2, 2, 1, 1, 4, 4], np.float32)
BANDS = np.array([[-12] * 4 + [-8] * 4, [7] * 4 + [30] * 4], np.int8)


@I.ir_module
class Chosen:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            scaled = R.sparqle.quantize_encode(x, R.const(F), qmax=119, label="factors")
            both = R.sparqle.quantize_encode(x, R.const(F), R.const(BANDS), qmax=127, label="bands")
            a = scaled[4]
            b = both[4]
            R.output(a, b)
        return (a, b)


@functools.cache
def chosen() -> tuple[Runnable, CollectEncodings]:
    collect = CollectEncodings()
    return Runnable(Chosen, collect), collect


def test_infos_tell_factors_and_bands() -> None:
    _, collect = chosen()
    found = [(i.label, i.has_factors, i.has_bands) for i in collect.collected["main"]]
    assert found == [("factors", True, False), ("bands", True, True)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_clipped_elements_are_counted(rows: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, 8), dtype=np.float32)
    _, observed = chosen()[0](x)
    expected = []
    for qmax, choice in ((119, EncodingChoice(F)), (127, EncodingChoice(F, BANDS[0], BANDS[1]))):
        q, scale, clipped = quantize_with_choice(x, choice, qmax=qmax)
        expected += [encode(q).pbm, scale]
        if choice.bands is not None:
            expected.append(np.array(clipped, np.int32))
    assert_equal_bits(observed, expected)
