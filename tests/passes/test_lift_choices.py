"""Factors and bands as parameters: every choice gives the bits of a module made for it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, assert_changed, assert_equal_bits, assert_unchanged
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm import dialect
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics import (
    EncodingChoice,
    QuantizedWeights,
    dense_reference,
    grouped_bias_term,
    quantize_with_choice,
    scale_weights,
)
from sparqle_tvm.passes import LiftChoices, LiftedEncoding, choice_arguments

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8) // np.int8(2)
BIAS = -8 * W.sum(axis=1, dtype=np.int32)
SCALE = np.array([0.1, 0.2, 0.3], np.float32)
D = np.array([[0.25, 1], [0.5, 2], [1, 0.125]], np.float16)
M = np.array([[-1, 0.5], [2, 0], [-0.25, 1]], np.float16)
OFFSET = grouped_bias_term(QuantizedWeights(W, D), 4, "signed")
SUMS = -8.0 * W.reshape(3, 2, 4).sum(axis=2)


@I.ir_module
class Before:
    """A reader with minima and one without, signed; one with scales per channel, unsigned."""

    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, group_size=4, label="up")
            scale = enc[4]
            sums = enc[5]
            a = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D), R.const(OFFSET, "float64"), R.const(M), sums,
                k=4, window="signed", in_features=8, group_size=4, weight_bits=4, label="gate",
            )  # fmt: skip
            enc_c = R.sparqle.quantize_encode(x, window="unsigned", label="down")
            scale_c = enc_c[4]
            c = R.sparqle.split_dense_scaled(
                enc_c, scale_c, R.const(W), R.const(SCALE), R.const(0 * BIAS),
                k=4, window="unsigned", in_features=8, group_size=0, weight_bits=4, label="down",
            )  # fmt: skip
            R.output(a, c)
        return (a, c)


@I.ir_module
class Expected:
    @R.function
    def main(
        x: R.Tensor(("n", 8), "float32"),
        factors: R.Tensor((16,), "float32"),
        bands: R.Tensor((2, 16), "int16"),
    ):
        R.func_attr({"sparqle_lifted": True})
        with R.dataflow():
            f = R.strided_slice(factors, [0], [0], [8], [1])
            b16 = R.strided_slice(bands, [1], [0], [8], [1])
            b = R.astype(b16, "int8")
            enc = R.sparqle.quantize_encode(x, f, b, group_size=4, label="up")
            scale = enc[4]
            sums = enc[5]
            g = R.strided_slice(factors, [0], [0], [8], [4])
            d32 = R.astype(R.const(D), "float32")
            df = R.multiply(d32, g)
            d = R.astype(df, "float16")
            m32 = R.astype(R.const(M), "float32")
            mf = R.multiply(m32, g)
            m = R.astype(mf, "float16")
            d64 = R.astype(d, "float64")
            terms = R.multiply(R.const(SUMS, "float64"), d64)
            offset = R.sum(terms, axis=[1])
            a = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), d, offset, m, sums,
                k=4, window="signed", in_features=8, group_size=4, weight_bits=4, label="gate",
            )  # fmt: skip
            f_c = R.strided_slice(factors, [0], [8], [16], [1])
            b16_c = R.strided_slice(bands, [1], [8], [16], [1])
            b_c = R.astype(b16_c, "int8")
            enc_c = R.sparqle.quantize_encode(x, f_c, b_c, window="unsigned", label="down")
            scale_c = enc_c[4]
            g_c = R.strided_slice(factors, [0], [8], [16], [8])
            s_c = R.multiply(R.const(SCALE), g_c)
            c = R.sparqle.split_dense_scaled(
                enc_c, scale_c, R.const(W), s_c, R.const(0 * BIAS),
                k=4, window="unsigned", in_features=8, group_size=0, weight_bits=4, label="down",
            )  # fmt: skip
            R.output(a, c)
        return (a, c)


def test_expected_module() -> None:
    report = assert_changed(LiftChoices, Before, Expected)
    assert report.rewritten["LiftChoices"] == 2
    assert report.skipped == []


def test_what_was_lifted() -> None:
    lift = LiftChoices()
    lift(Before)
    up, down = lift.lifted["main"]
    assert (up.label, up.start, up.columns, up.group_size) == ("up", 0, 8, 4)
    assert down == LiftedEncoding("down", 8, 8, 4, "unsigned", 8, 1024.0)


@I.ir_module
class Nothing:
    """An encoding that arrives quantized, and a function without any."""

    @R.function
    def main(q: R.Tensor(("n", 8), "int8")):
        enc = R.sparqle.encode(q, label="given")
        y = R.sparqle.split_dense(
            enc, R.const(W), R.const(BIAS),
            k=4, window="unsigned", in_features=8, weight_bits=8, label="given",
        )  # fmt: skip
        return y

    @R.function
    def plain(x: R.Tensor(("n", 8), "float32")):
        y = R.abs(x)
        return y


def test_nothing_to_lift() -> None:
    reasons = assert_unchanged(LiftChoices, Nothing)
    assert reasons == ["it arrives quantized, with a scale of its own"]


def test_functions_that_others_call_keep_their_parameters() -> None:
    builder = relax.BlockBuilder()
    callee = relax.utils.copy_with_new_vars(Before["main"]).with_attr("global_symbol", "callee")
    gv = builder.add_func(callee, "callee")
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("caller", [x]):
        builder.emit_func_output(builder.emit(relax.Call(gv, [x])))
    reasons = assert_unchanged(LiftChoices, builder.finalize())
    assert reasons == ["its function callee is called by another one"] * 2


@functools.cache
def lifted() -> tuple[Runnable, list[LiftedEncoding]]:
    lift = LiftChoices()
    return Runnable(Before, lift), lift.lifted["main"]


def expected(x: np.ndarray, up: EncodingChoice, down: EncodingChoice) -> list[np.ndarray]:
    found = []
    for choice, weights, window in (
        (up, QuantizedWeights(W, D, M), "signed"),
        (down, QuantizedWeights(W, SCALE), "unsigned"),
    ):
        q, scale, _ = quantize_with_choice(x, choice, window=window)
        scaled = scale_weights(weights, choice.factors_or_ones(8))
        found.append(dense_reference(q, scale, scaled))
    return found


def random_choice(rng: np.random.Generator, window: str, group_size: int) -> EncodingChoice:
    """Factors for groups of that size of 8 columns, bands, both or none."""
    factors = np.repeat(np.exp2(rng.uniform(-3, 6, 8 // group_size)), group_size)
    low, high = (-8, 7) if window == "signed" else (0, 15)
    lo, hi = low - rng.integers(0, 30, 8), high + rng.integers(0, 30, 8)
    bands = (lo.astype(np.int8), hi.astype(np.int8)) if rng.random() < 0.5 else (None, None)
    return EncodingChoice(factors.astype(np.float32) if rng.random() < 0.8 else None, *bands)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_every_choice_gives_the_numbers_of_the_definition(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 8), dtype=np.float32) ** 3
    choices = {"up": random_choice(rng, "signed", 4), "down": random_choice(rng, "unsigned", 8)}
    run, encodings = lifted()
    found = run(x, *choice_arguments(encodings, choices))
    assert_equal_bits(found, expected(x, choices["up"], choices["down"]))


def test_no_choice_is_plain_int8() -> None:
    x = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    run, encodings = lifted()
    found = run(x, *choice_arguments(encodings, {}))
    assert_equal_bits(found, Runnable(Before)(x))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (EncodingChoice(np.ones(4, np.float32)), "up: the choice is for K = 4 columns"),
        (
            EncodingChoice(np.arange(1, 9, dtype=np.float32)),
            "up: the factors change within group 0 of 4 columns",
        ),
        (
            EncodingChoice(None, np.zeros(8, np.int8), np.full(8, 9, np.int8)),
            r"up: the band \[0, 9\] of column 0 ends inside the signed window",
        ),
    ],
)
def test_choices_that_do_not_suit(choice: EncodingChoice, message: str) -> None:
    _, encodings = lifted()
    with pytest.raises(InvalidArgumentError, match=message):
        choice_arguments(encodings, {"up": choice})


def test_factors_too_large_for_the_scales() -> None:
    encoding = LiftedEncoding("up", 0, 8, 4, "signed", 4, largest_factor=300.0)
    choice = EncodingChoice(np.full(8, 301, np.float32))
    with pytest.raises(InvalidArgumentError, match=r"up: the factor 301 is too large.*300 is poss"):
        encoding.check(choice)
    d = np.full((3, 2), 4096, np.float16)
    offset = grouped_bias_term(QuantizedWeights(W, d), 4, "signed")
    lift = LiftChoices()
    lift(with_scales(d, offset))
    # 65504 / 4096 is 15.99; the sums: 254 * 36 * 4096 * f below 2^29 allows 14.3.
    assert 14.0 < lift.lifted["main"][0].largest_factor < 15.0


def with_scales(d: np.ndarray, offset: np.ndarray) -> tvm.IRModule:
    """A dense with these group scales."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            enc = builder.emit(dialect.quantize_encode(x, label="up"))
            dense = dialect.split_dense_scaled(
                enc, relax.const(1.0, "float32"), relax.const(W), relax.const(d),
                relax.const(offset, "float64"), k=4, window="signed", in_features=8,
                group_size=4, weight_bits=8, label="up",
            )  # fmt: skip
            output = builder.emit_output(dense)
        builder.emit_func_output(output)
    return builder.finalize()
