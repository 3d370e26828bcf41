"""The value of a quantized dense layer, whole and from the planes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics import (
    QuantizedWeights,
    bias_term,
    dense_reference,
    encode_digits,
    grouped_bias_term,
    int_matmul,
    quantize_per_token,
    quantize_weights,
)


def random_layer(seed: int, group_size: int | None, symmetric: bool, bits: int = 4):
    rng = np.random.default_rng(seed)
    q, act_scale = quantize_per_token(rng.standard_normal((3, 64)).astype(np.float32))
    w = rng.standard_normal((5, 64)).astype(np.float32)
    weights = quantize_weights(w, bits=bits, group_size=group_size, symmetric=symmetric)
    return q, act_scale, weights


def test_per_channel_by_hand():
    q = np.array([[2, -3], [1, 1]], np.int8)
    weights = QuantizedWeights(np.array([[7, 1], [-8, 0]], np.int8), np.array([0.5, 2], np.float32))
    act_scale = np.array([[0.25], [4.0]], np.float32)
    # Products 11, -16 and 8, -8.
    y = dense_reference(q, act_scale, weights)
    assert y.dtype == np.float32
    assert y.tolist() == [[1.375, -8.0], [16.0, -64.0]]


def test_grouped_by_hand():
    q = np.array([[2, -3, 4, 1]], np.int8)
    weights = QuantizedWeights(
        np.array([[7, 1, 0, 2]], np.int8),
        np.array([[0.5, 2.0]], np.float16),
        np.array([[-1.0, 0.25]], np.float16),
    )
    # Group 0: p 11, sigma -1: 5.5 + 1; group 1: p 2, sigma 5: 4 + 1.25; times 2.
    assert dense_reference(q, np.float32(2), weights).tolist() == [[23.5]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), symmetric=st.booleans(), bits=st.sampled_from([2, 4, 8]))
def test_grouped_sum_is_exact(seed, symmetric, bits):
    q, act_scale, weights = random_layer(seed, 16, symmetric, bits)
    y = dense_reference(q, act_scale, weights)
    m, n = seed % 3, seed % 5
    real = Fraction(0)
    for column in range(64):
        step = Fraction(float(weights.scale[n, column // 16]))
        value = int(weights.values[n, column]) * step
        if weights.minimum is not None:
            value += Fraction(float(weights.minimum[n, column // 16]))
        real += int(q[m, column]) * value
    # One rounding to float32, one multiplication.
    assert y[m, n] == np.float32(float(real)) * act_scale[m, 0]


@pytest.mark.parametrize("window", ["signed", "unsigned"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), symmetric=st.booleans())
def test_split_form_equals_the_reference_bit_for_bit(window, seed, symmetric):
    q, act_scale, weights = random_layer(seed, 16, symmetric)
    lsb, msb = encode_digits(q, 4, window)
    total = np.zeros((3, 5)) + grouped_bias_term(weights, 4, window)
    # Backwards over the groups: the order must not matter.
    for group in reversed(range(4)):
        columns = slice(16 * group, 16 * (group + 1))
        w = weights.values[:, columns]
        partial = int_matmul(lsb[:, columns], w) + (int_matmul(msb[:, columns], w) << 4)
        total += partial * weights.scale[:, group].astype(np.float64)
        if weights.minimum is not None:
            sigma = q[:, columns].sum(axis=1, dtype=np.int32)[:, None]
            total += sigma * weights.minimum[:, group].astype(np.float64)
    split = total.astype(np.float32) * act_scale
    np.testing.assert_array_equal(split, dense_reference(q, act_scale, weights))


@pytest.mark.parametrize("window", ["signed", "unsigned"])
def test_split_form_per_channel(window):
    q, act_scale, weights = random_layer(7, None, True)
    lsb, msb = encode_digits(q, 4, window)
    acc = int_matmul(lsb, weights.values) + (int_matmul(msb, weights.values) << 4)
    acc += bias_term(weights.values, 4, window)
    split = (acc.astype(np.float32) * act_scale) * weights.scale
    np.testing.assert_array_equal(split, dense_reference(q, act_scale, weights))


def test_close_to_the_float_layer():
    rng = np.random.default_rng(11)
    x = rng.standard_normal((8, 128)).astype(np.float32)
    w = rng.standard_normal((16, 128)).astype(np.float32)
    q, scale = quantize_per_token(x)
    for weights in (
        quantize_weights(w, bits=8),
        quantize_weights(w, bits=8, group_size=32),
        quantize_weights(w, bits=8, group_size=32, symmetric=False),
    ):
        y = dense_reference(q, scale, weights)
        assert np.linalg.norm(y - x @ w.T) < 0.02 * np.linalg.norm(x @ w.T)


def test_refusals():
    q, act_scale, weights = random_layer(0, 16, False)
    with pytest.raises(QuantizationError, match="differ in K"):
        dense_reference(q[:, :32], act_scale, weights)
    with pytest.raises(QuantizationError, match="expected dtype int8"):
        dense_reference(q.astype(np.int16), act_scale, weights)
    huge = QuantizedWeights(np.full((1, 64), 7, np.int8), np.full((1, 4), 60000, np.float16))
    with pytest.raises(QuantizationError, match="output channel 0 allow sums"):
        dense_reference(np.full((1, 64), 119, np.int8), act_scale, huge)
    with pytest.raises(InvalidArgumentError, match="use bias_term"):
        grouped_bias_term(random_layer(0, None, True)[2], 4, "signed")
