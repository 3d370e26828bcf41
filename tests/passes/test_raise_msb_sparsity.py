"""Factors and bands get into a module, and the scales of the weights take the factors in."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_changed, assert_equal_bits, assert_unchanged
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
from sparqle_tvm.passes import ChooseWindow, RaiseMsbSparsity

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8) // np.int8(2)
BIAS = -8 * W.sum(axis=1, dtype=np.int32)
SCALE = np.array([0.1, 0.2, 0.3], np.float32)
D = np.array([[0.25, 1], [0.5, 2], [1, 0.125]], np.float16)
M = np.array([[-1, 0.5], [2, 0], [-0.25, 1]], np.float16)
OFFSET = grouped_bias_term(QuantizedWeights(W, D), 4, "signed")

F = np.array([2, 2, 2, 2, 0.5, 0.5, 0.5, 0.5], np.float32)
ALPHA = np.full(8, 1.5, np.float32)
LO, HI = np.array([-8] * 4 + [-20] * 4, np.int8), np.array([7, 9] * 4, np.int8)
BANDS = np.stack([LO, HI])
# Powers of two: no rounding in the expected constants.
D_F, M_F = D * np.array([2, 0.5], np.float16), M * np.array([2, 0.5], np.float16)
OFFSET_F = grouped_bias_term(QuantizedWeights(W, D_F), 4, "signed")
CHOICES = {"up": EncodingChoice(F, LO, HI), "down": EncodingChoice(ALPHA)}


@I.ir_module
class Before:
    """One encoding with two readers, one with scales per channel."""

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
            b = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D), R.const(OFFSET, "float64"),
                k=4, window="signed", in_features=8, group_size=4, weight_bits=4, label="up",
            )  # fmt: skip
            enc_c = R.sparqle.quantize_encode(x, label="down")
            scale_c = enc_c[4]
            c = R.sparqle.split_dense_scaled(
                enc_c, scale_c, R.const(W), R.const(SCALE), R.const(BIAS),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=4, label="down",
            )  # fmt: skip
            R.output(a, b, c)
        return (a, b, c)


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, R.const(F), R.const(BANDS), group_size=4, label="up")
            scale = enc[4]
            sums = enc[5]
            a = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D_F), R.const(OFFSET_F, "float64"), R.const(M_F),
                sums,
                k=4, window="signed", in_features=8, group_size=4, weight_bits=4, label="gate",
            )  # fmt: skip
            b = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D_F), R.const(OFFSET_F, "float64"),
                k=4, window="signed", in_features=8, group_size=4, weight_bits=4, label="up",
            )  # fmt: skip
            enc_c = R.sparqle.quantize_encode(x, R.const(ALPHA), label="down")
            scale_c = enc_c[4]
            c = R.sparqle.split_dense_scaled(
                enc_c, scale_c, R.const(W), R.const(SCALE * ALPHA[:3]), R.const(BIAS),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=4, label="down",
            )  # fmt: skip
            R.output(a, b, c)
        return (a, b, c)


def test_expected_module() -> None:
    report = assert_changed(RaiseMsbSparsity, Before, Expected, choices=CHOICES)
    assert report.rewritten["RaiseMsbSparsity"] == 2
    assert report.skipped == []


@pytest.mark.parametrize("choices", [{}, {"up": EncodingChoice()}])
def test_nothing_to_change(choices: dict[str, EncodingChoice]) -> None:
    assert assert_unchanged(RaiseMsbSparsity, Before, choices=choices) == []


def test_bands_alone_leave_the_scales() -> None:
    after, _ = apply(RaiseMsbSparsity, Before, choices={"up": EncodingChoice(None, LO, HI)})
    calls = [b.value for block in after["main"].body.blocks for b in block.bindings]
    encode = next(call for call in calls if dialect.op_name(call) == "quantize_encode")
    assert_equal_bits(encode.args[1].value.numpy(), np.ones(8, np.float32))
    dense = next(call for call in calls if dialect.op_name(call) == "split_dense_scaled")
    assert_equal_bits(dense.args[3].value.numpy(), D)


def test_functions_share_the_new_constants() -> None:
    names = ("prefill", "decode")
    copies = [relax.utils.copy_with_new_vars(Before["main"]) for _ in names]
    mod = tvm.IRModule(
        {n: f.with_attr("global_symbol", n) for n, f in zip(names, copies, strict=True)}
    )
    after, _ = apply(RaiseMsbSparsity, mod, choices=CHOICES)
    scales = []
    for name in names:
        calls = [b.value for block in after[name].body.blocks for b in block.bindings]
        scales.append([c.args[3] for c in calls if dialect.op_name(c) == "split_dense_scaled"])
    for one, other in zip(*scales, strict=True):
        assert one.same_as(other)


def dense_of(*, reader: str = "scaled", sums: bool = False, offset: Any = OFFSET) -> tvm.IRModule:
    """An encoding "up" that is read in the way named."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "int8" if reader == "encode" else "float32"))
    d = relax.Var("d", relax.TensorType((3, 2), "float16"))
    attrs = {"k": 4, "window": "signed", "in_features": 8, "weight_bits": 8, "label": "up"}
    with builder.function("main", [x, d]):
        with builder.dataflow():
            quantizer = dialect.encode if reader == "encode" else dialect.quantize_encode
            enc = builder.emit(quantizer(x, group_size=4, label="up"))
            one = relax.const(1.0, "float32")
            if reader == "unscaled":
                dense = dialect.split_dense(enc, relax.const(W), relax.const(BIAS), **attrs)
            elif reader == "nothing":
                dense = relax.TupleGetItem(enc, 4)
            else:
                dense = dialect.split_dense_scaled(
                    enc, one, relax.const(W), d if reader == "parameter" else relax.const(D),
                    relax.const(offset, "float64"), group_size=4, **attrs,
                )  # fmt: skip
            outputs = [builder.emit_output(dense)]
            if sums or reader == "planes":
                outputs.append(builder.emit_output(relax.TupleGetItem(enc, 5 if sums else 1)))
        builder.emit_func_output(relax.Tuple(outputs))
    return builder.finalize()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reader": "encode"}, "it arrives quantized, with a scale of its own"),
        ({"reader": "unscaled"}, "up has no scales that could take factors in"),
        ({"reader": "parameter"}, "the weights or scales of up are no constants"),
        ({"reader": "nothing"}, "no dense op with scales reads it"),
        ({"reader": "planes"}, "its planes or group sums have a reader of another kind"),
        ({"sums": True}, "its planes or group sums have a reader of another kind"),
        ({"offset": OFFSET + 1}, "up adds a bias to its sums, which factors would scale"),
    ],
)
def test_what_is_left_alone(options: dict[str, Any], reason: str) -> None:
    choices = {"up": EncodingChoice(F)}
    mod = dense_of(**options)
    assert assert_unchanged(RaiseMsbSparsity, mod, choices=choices) == [reason]


def test_factors_that_suit_only_one_of_two_readers() -> None:
    (reason,) = assert_unchanged(RaiseMsbSparsity, two_readers(), choices={"up": EncodingChoice(F)})
    assert reason.startswith("up: the factors change within K; one scale can take in only one")


def two_readers() -> tvm.IRModule:
    """One reader with groups of 4, one with a scale per channel."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    attrs = {"k": 4, "window": "signed", "in_features": 8, "weight_bits": 8, "label": "up"}
    with builder.function("main", [x]):
        with builder.dataflow():
            enc = builder.emit(dialect.quantize_encode(x, label="up"))
            scale = builder.emit(relax.TupleGetItem(enc, 4))
            a = dialect.split_dense_scaled(
                enc, scale, relax.const(W), relax.const(SCALE), relax.const(BIAS),
                group_size=0, **attrs,
            )  # fmt: skip
            b = dialect.split_dense_scaled(
                enc, scale, relax.const(W), relax.const(D), relax.const(OFFSET, "float64"),
                group_size=4, **attrs,
            )  # fmt: skip
            outputs = [builder.emit_output(a), builder.emit_output(b)]
        builder.emit_func_output(relax.Tuple(outputs))
    return builder.finalize()


def test_labels_that_nothing_bears_are_reported() -> None:
    reasons = assert_unchanged(RaiseMsbSparsity, Before, choices={"upp": EncodingChoice(F)})
    assert reasons == ["no encoding has this label"]


def test_scales_beyond_float16_are_left_alone() -> None:
    large = EncodingChoice(np.full(8, 1024, np.float32))
    after, report = apply(RaiseMsbSparsity, with_scales(D), choices={"up": large})
    assert (report.rewritten["RaiseMsbSparsity"], report.skipped) == (1, [])
    reasons = assert_unchanged(RaiseMsbSparsity, after, choices={"up": large})
    assert reasons == ["it has factors already"]
    d = np.array([[1, 100], [1, 1], [1, 1]], np.float16)
    (reason,) = assert_unchanged(RaiseMsbSparsity, with_scales(d), choices={"up": large})
    assert reason.startswith("up: the factor 1024 makes the scale of group 1, output channel 0")


def test_sums_that_could_round_are_left_alone() -> None:
    large = EncodingChoice(np.full(8, 1024, np.float32))
    d = np.full((3, 2), 60, np.float16)
    (reason,) = assert_unchanged(RaiseMsbSparsity, with_scales(d), choices={"up": large})
    assert "float64 no longer adds exactly" in reason


def with_scales(d: np.ndarray) -> tvm.IRModule:
    """A dense with these group scales."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    offset = grouped_bias_term(QuantizedWeights(W, d), 4, "signed")
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


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (EncodingChoice(F[:4]), "up: the choice is for K = 4 columns, the encoding has 8"),
        (EncodingChoice(np.arange(1, 9, dtype=np.float32)), "up: the factors change within group"),
        (EncodingChoice(None, LO, HI - np.int8(4)), "up: the band .* ends inside the signed"),
    ],
)
def test_choices_that_cannot_suit_their_encoding(choice: EncodingChoice, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        RaiseMsbSparsity({"up": choice})(Before)


def random_choice(rng: np.random.Generator, window: str, group_size: int) -> EncodingChoice:
    """Factors for groups of that size of 8 columns, and sometimes bands."""
    factors = np.repeat(np.exp2(rng.uniform(-2, 4, 8 // group_size)), group_size)
    if rng.random() < 0.4:
        return EncodingChoice(factors.astype(np.float32))
    low, high = (-8, 7) if window == "signed" else (0, 15)
    lo, hi = low - rng.integers(0, 30, 8), high + rng.integers(0, 30, 8)
    return EncodingChoice(factors.astype(np.float32), lo.astype(np.int8), hi.astype(np.int8))


@functools.cache
def raised(window: str) -> tuple[Runnable, dict[str, EncodingChoice]]:
    rng = np.random.default_rng(3)
    choices = {"up": random_choice(rng, window, 4), "down": random_choice(rng, window, 8)}
    chosen = ChooseWindow(default=window), RaiseMsbSparsity(choices)
    return Runnable(Before, *chosen), choices


@pytest.mark.parametrize("window", ["signed", "unsigned"])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_numbers_are_those_of_the_definition(window: str, rows: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, 8), dtype=np.float32) ** 3
    run, choices = raised(window)
    expected = []
    for label, weights in (
        ("up", QuantizedWeights(W, D, M)),
        ("up", QuantizedWeights(W, D)),
        ("down", QuantizedWeights(W, SCALE)),
    ):
        choice = choices[label]
        q, scale, _ = quantize_with_choice(x, choice, window=window)
        assert choice.factors is not None
        expected.append(dense_reference(q, scale, scale_weights(weights, choice.factors)))
    assert_equal_bits(run(x), expected)
