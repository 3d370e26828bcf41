"""Factors and bands: what they do to activations and weights, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics import (
    EncodingChoice,
    QuantizedWeights,
    clip_to_bands,
    dense_reference,
    encode,
    group_factors,
    quantize_per_token,
    quantize_weights,
    quantize_with_choice,
    scale_weights,
    window_limits,
    windows_from,
)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def i8(*values: int) -> np.ndarray:
    return np.array(values, np.int8)


def test_factors_by_hand():
    x = np.array([[127.0, 30.0, -30.0, 5.0]], np.float32)
    # Scale 1; steps 2, 2, 4, 0.5: 63.5 rounds to even, 7.5 too, 10 is below 127 / 0.5.
    q, scale, clipped = quantize_with_choice(x, EncodingChoice(f32(2, 2, 4, 0.5)))
    assert scale.tolist() == [[1.0]]
    assert q.tolist() == [[64, 15, -8, 10]]
    assert clipped == 0


def test_a_small_factor_clips_at_qmax():
    x = np.array([[127.0, -127.0, 20.0]], np.float32)
    q, _, _ = quantize_with_choice(x, EncodingChoice(f32(0.25, 0.25, 0.25)))
    assert q.tolist() == [[127, -127, 80]]


def test_what_lies_above_a_band_stays():
    x = np.array([[127.0, 125.0, 9.0]], np.float32)
    q, _, clipped = quantize_with_choice(
        x, EncodingChoice(None, i8(-8, -8, -8), i8(7, 120, 120)), qmax=127
    )
    assert q.tolist() == [[127, 125, 7]]
    assert clipped == 1


def test_bands_by_hand():
    q = i8(-12, -11, -9, -8, 0, 7, 8, 10, 11).reshape(1, -1)
    lo, hi = np.full(9, -11, np.int8), np.full(9, 10, np.int8)
    found, clipped = clip_to_bands(q, lo, hi)
    assert found.tolist() == [[-12, -8, -8, -8, 0, 7, 7, 7, 11]]
    assert clipped == 4
    # In the unsigned window [0, 15] the edges are others.
    lo, hi = np.full(9, -9, np.int8), np.full(9, 15, np.int8)
    found, clipped = clip_to_bands(q, lo, hi, window="unsigned")
    assert found.tolist() == [[-12, -11, 0, 0, 0, 7, 8, 10, 11]]
    assert clipped == 2


@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("window", ["signed", "unsigned"])
def test_window_limits_are_those_of_the_encoding(k, window):
    low, high = window_limits(k, window)
    q = np.arange(low - 1, high + 2).reshape(1, -1).astype("int16" if k == 8 else "int8")
    stored = np.unpackbits(encode(q, k=k, window=window).pbm, axis=1, bitorder="little")
    assert stored[0, : q.size].tolist() == [1, *[0] * (high - low + 1), 1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.sampled_from([2, 4, 8]), signed=st.booleans())
def test_bands_only_clip_from_outside_to_the_edge(seed, k, signed):
    window = "signed" if signed else "unsigned"
    rng = np.random.default_rng(seed)
    dtype = "int16" if k == 8 else "int8"
    low, high = window_limits(k, window)
    limit = 2 ** (2 * k - 1)
    q = rng.integers(-limit, limit, (5, 9)).astype(dtype)
    lo = rng.integers(-limit, low + 1, 9).astype(dtype)
    hi = rng.integers(high, limit, 9).astype(dtype)
    found, clipped = clip_to_bands(q, lo, hi, k=k, window=window)
    for row, column in np.ndindex(q.shape):
        value, expected = int(q[row, column]), int(q[row, column])
        if lo[column] <= value < low:
            expected = low
        if high < value <= hi[column]:
            expected = high
        assert int(found[row, column]) == expected
    assert clipped == int((found != q).sum())
    unchanged, none = clip_to_bands(
        q, np.full(9, low, dtype), np.full(9, high, dtype), k=k, window=window
    )
    np.testing.assert_array_equal(unchanged, q)
    assert none == 0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_layer_with_powers_of_two_is_that_of_a_finer_or_coarser_grid(seed, symmetric):
    """Powers of two only move exponents, so q * f times d stands for q times d * f, exactly."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, 64)).astype(np.float32)
    weights = quantize_weights(
        rng.standard_normal((6, 64)).astype(np.float32), group_size=16, symmetric=symmetric
    )
    choice = EncodingChoice.per_group([2.0, 8.0, 4.0, 1.0], 64)
    q, scale, _ = quantize_with_choice(x, choice)
    found = dense_reference(q, scale, scale_weights(weights, choice.factors))
    real_x = q.astype(np.float64) * choice.factors
    exact = real_x @ weights.dequantize().astype(np.float64).T * scale
    np.testing.assert_allclose(found, exact, rtol=2e-6)
    # And it is still the layer: nothing is clipped.
    plain = dense_reference(*quantize_per_token(x), weights)
    assert np.abs(found - plain).max() < 0.1 * np.abs(plain).max()


def test_scales_take_the_factors_in():
    weights = QuantizedWeights(
        np.ones((1, 4), np.int8),
        np.array([[0.5, 3.0]], np.float16),
        np.array([[-1.0, 0.1]], np.float16),
    )
    scaled = scale_weights(weights, f32(2, 2, 1.1, 1.1))
    assert scaled.values is weights.values
    # The products round once to float16.
    assert scaled.scale.tolist() == [[1.0, float(np.float16(np.float32(3) * np.float32(1.1)))]]
    expected = np.float16(np.float32(np.float16(0.1)) * np.float32(1.1))
    assert scaled.minimum is not None
    assert scaled.minimum.tolist() == [[-2.0, float(expected)]]
    channel = QuantizedWeights(np.ones((2, 4), np.int8), f32(0.1, 2))
    assert scale_weights(channel, f32(3, 3, 3, 3)).scale.tolist() == (f32(0.1, 2) * 3).tolist()


def test_no_choice_is_plain_quantization():
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    q, scale, clipped = quantize_with_choice(x, EncodingChoice())
    expected, expected_scale = quantize_per_token(x)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scale, expected_scale)
    assert clipped == 0
    ones, _, _ = quantize_with_choice(x, EncodingChoice(np.ones(8, np.float32)))
    np.testing.assert_array_equal(ones, expected)


def test_steps_beyond_float32_give_zero():
    x = np.array([[3e38, -1e38]], np.float32)
    q, scale, _ = quantize_with_choice(x, EncodingChoice(f32(1024, 1)), qmax=1)
    assert q.tolist() == [[0, 0]]
    assert np.isfinite(scale).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": f32(1, 0, 1)}, "factor 0.0 of column 1 is not between"),
        ({"factors": f32(-1, 1)}, "factor -1.0 of column 0"),
        ({"factors": f32(1, np.nan)}, "factor nan of column 1"),
        ({"factors": f32(np.inf)}, "factor inf of column 0"),
        ({"factors": f32(2000)}, "not between 2\\^-10 and 2\\^10"),
        ({"factors": np.ones(3)}, "factors: expected float32, got float64"),
        ({"factors": np.ones((1, 3), np.float32)}, r"expected a NumPy array \(K,\), got shape"),
        ({"factors": [1.0]}, "got list"),
        ({"factors": f32()}, "got shape \\(0,\\)"),
        ({"band_lo": i8(-9)}, "band_lo and band_hi go together"),
        ({"band_lo": i8(9), "band_hi": i8(8)}, "column 0 has lo = 9 above hi = 8"),
        ({"band_lo": f32(9), "band_hi": i8(8)}, "band_lo: expected int8 or int16, got float32"),
        ({"band_lo": i8(-9, -9), "band_hi": i8(8)}, r"has \[1, 2\] columns"),
        ({"factors": f32(1), "band_lo": i8(-9, -9), "band_hi": i8(8, 9)}, "columns"),
    ],
)
def test_bad_choices(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        EncodingChoice(**arguments)


def test_choices_that_do_not_fit_the_encoding():
    choice = EncodingChoice(f32(1, 2))
    with pytest.raises(InvalidArgumentError, match=r"up: the choice is for K = 2 columns.* 3"):
        choice.check(3, 4, "signed", "up")
    bands = EncodingChoice(None, i8(-8, -7), i8(7, 7))
    with pytest.raises(InvalidArgumentError, match=r"\[-7, 7\] of column 1 ends inside the signed"):
        bands.check(2, 4, "signed")
    with pytest.raises(InvalidArgumentError, match="int16 for k = 8, got int8"):
        EncodingChoice(None, i8(-128), i8(127)).check(1, 8, "signed")
    with pytest.raises(InvalidArgumentError, match="window must be"):
        bands.check(2, 4, "wide")
    x = np.ones((1, 3), np.float32)
    with pytest.raises(InvalidArgumentError, match="up: the choice is for K = 2"):
        quantize_with_choice(x, choice, name="up")
    with pytest.raises(InvalidArgumentError, match="do not divide K = 8 into equal groups"):
        EncodingChoice.per_group([1.0, 2.0, 3.0], 8)


def test_factors_that_the_weights_cannot_take_in():
    with pytest.raises(InvalidArgumentError, match="2 factors for K = 4"):
        group_factors(f32(1, 1), 4, 2)
    with pytest.raises(InvalidArgumentError, match="change within group 1 of 2 columns"):
        group_factors(f32(1, 1, 2, 3), 4, 2)
    with pytest.raises(InvalidArgumentError, match="change within K; one scale"):
        group_factors(f32(1, 1, 2, 2), 4, 0)
    with pytest.raises(InvalidArgumentError, match=r"up: the factor 0\.0 of column 3"):
        group_factors(f32(1, 1, 1, 0), 4, 2, "up")
    weights = QuantizedWeights(np.ones((1, 4), np.int8), np.array([[1, 60000]], np.float16))
    with pytest.raises(QuantizationError, match=r"factor 2 makes the scale of group 1.*120000"):
        scale_weights(weights, f32(1, 1, 2, 2))


def test_windows_from_measured_sparsity():
    measured = {
        "gelu": {"signed": 0.60, "unsigned": 0.75},
        "tie": {"signed": 0.70, "unsigned": 0.705},
        "norm": {"signed": 0.89, "unsigned": 0.50},
    }
    windows = windows_from(measured)
    assert windows == {"gelu": "unsigned", "tie": "signed", "norm": "signed"}
    assert windows_from(measured, margin=0.0)["tie"] == "unsigned"
    assert windows_from(measured, margin=0.2)["gelu"] == "signed"


@pytest.mark.parametrize("bad", [{"signed": 0.5}, {"signed": 0.5, "unsigned": float("nan")}])
def test_windows_need_both_shares(bad):
    with pytest.raises(InvalidArgumentError, match="up: needs an MSB sparsity from 0 to 1"):
        windows_from({"up": bad})
    with pytest.raises(InvalidArgumentError, match="margin must be 0 or more"):
        windows_from({}, margin=-0.1)
