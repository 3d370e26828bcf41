"""Quantizers for activations and weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics import (
    QuantizedWeights,
    check_weight_range,
    encode,
    pack_int4,
    quantize_per_tensor,
    quantize_per_token,
    quantize_weights,
    unpack_int4,
)

finite_floats = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=60, deadline=None)
@given(
    x=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=finite_floats),
    k=st.sampled_from([2, 4, 8]),
)
def test_per_token_uses_the_whole_range(x, k):
    qmax = 2 ** (2 * k - 1) - 1
    q, scale = quantize_per_token(x, k=k)
    dtype = np.int16 if k == 8 else np.int8
    assert (q.dtype, scale.dtype, scale.shape) == (dtype, np.float32, (x.shape[0], 1))
    assert np.abs(q.astype(np.int32)).max() <= qmax
    rows = np.abs(x).max(axis=1) > 1e-30
    assert (np.abs(q.astype(np.int32)).max(axis=1)[rows] == qmax).all()
    np.testing.assert_array_equal(encode(q, k=k).decode(), q)
    # Half a step, and one rounding of the quotient at magnitude qmax.
    error = np.abs(q * scale.astype(np.float64) - x)
    assert (error <= scale.astype(np.float64) * (0.5 + qmax * 2**-22)).all()


def test_per_token_by_hand():
    x = np.array([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0]], dtype=np.float32)
    q, scale = quantize_per_token(x)
    # Scale 1: halves go to the even neighbour.
    assert q.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert scale[0, 0] == 1.0
    assert scale[1, 0] == np.float32(1e-30) / np.float32(127)
    q, scale = quantize_per_token(x, qmax=119)
    assert q[0, 0] == 119


def test_per_token_accepts_no_rows():
    q, scale = quantize_per_token(np.zeros((0, 3), np.float32))
    assert (q.shape, scale.shape) == ((0, 3), (0, 1))


def test_per_tensor_by_hand():
    x = np.array([[0.0, 0.25, 0.75, -1.0, 100.0, -100.0, 3e38]], dtype=np.float32)
    q = quantize_per_tensor(x, 0.5, zero_point=3, qmin=-20, qmax=119)
    # Quotients 0, 0.5, 1.5, -2, 200, -200, inf; rounded half to even, plus 3, clipped.
    assert q.tolist() == [[3, 3, 5, 1, 119, -20, 119]]
    assert quantize_per_tensor(x, 1e-3).dtype == np.int8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_named(bad):
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = x[2, 0] = bad
    with pytest.raises(QuantizationError, match=r"layer 7 o_proj: -?(nan|inf) at \[1, 2\]"):
        quantize_per_token(x, name="layer 7 o_proj")
    with pytest.raises(QuantizationError, match=r"down: -?(nan|inf) at \[1, 2\]"):
        quantize_per_tensor(x, 1.0, name="down")
    with pytest.raises(QuantizationError, match=r"weight: -?(nan|inf) at \[1, 2\]"):
        quantize_weights(x)


def test_quantizers_refuse_wrong_arguments():
    x = np.zeros((2, 4), np.float32)
    with pytest.raises(QuantizationError, match="expected dtype float32"):
        quantize_per_token(x.astype(np.float64))
    with pytest.raises(QuantizationError, match="K = 0"):
        quantize_per_token(x[:, :0])
    with pytest.raises(InvalidArgumentError, match="qmax must be 1 to 127"):
        quantize_per_token(x, qmax=128)
    with pytest.raises(InvalidArgumentError, match="qmax must be 1 to 7"):
        quantize_per_token(x, qmax=8, k=2)
    with pytest.raises(InvalidArgumentError, match="k must be"):
        quantize_per_token(x, k=3)
    for scale in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InvalidArgumentError, match="scale must be positive and finite"):
            quantize_per_tensor(x, scale)
    with pytest.raises(InvalidArgumentError, match="zero_point 128"):
        quantize_per_tensor(x, 1.0, zero_point=128)
    with pytest.raises(InvalidArgumentError, match="needs a group_size"):
        quantize_weights(x, symmetric=False)
    with pytest.raises(InvalidArgumentError, match="K = 4 is not a multiple of 3"):
        quantize_weights(x, group_size=3)
    with pytest.raises(InvalidArgumentError, match="k must be"):
        quantize_weights(x, bits=3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("group_size", "symmetric"), [(None, True), (8, True), (8, False)])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_weights_are_within_a_step(bits, group_size, symmetric, data):
    shape = (data.draw(st.integers(1, 4)), 8 * data.draw(st.integers(1, 3)))
    w = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-4, 4, width=16)))
    quantized = quantize_weights(w, bits=bits, group_size=group_size, symmetric=symmetric)
    assert quantized.group_size == (group_size or 0)
    assert (quantized.minimum is None) == symmetric
    check_weight_range(quantized.values, bits)
    step = quantized.scale.astype(np.float64)
    if group_size:
        step = np.repeat(step, group_size, axis=1)
        # Rounding scale and minimum to float16 moves the ends of the grid.
        slack = 2.0**bits * np.spacing(np.float16(8)) if bits == 8 else 0.02
    else:
        step, slack = step[:, None], 1e-6
    assert (np.abs(quantized.dequantize() - w) <= 0.5 * step * (1 + 1e-3) + slack).all()


def test_group_weights_by_hand():
    # One group from -1 to 6.5: step 0.5, minimum -1, so values are 2 * (w + 1).
    w = np.array([[-1.0, 6.5, 0.0, 0.5]], dtype=np.float32)
    quantized = quantize_weights(w, group_size=4, symmetric=False)
    assert quantized.values.tolist() == [[0, 15, 2, 3]]
    assert (quantized.scale.tolist(), quantized.minimum.tolist()) == ([[0.5]], [[-1.0]])
    np.testing.assert_array_equal(quantized.dequantize(), w)
    # 4 values of 4 bits, a float16 scale, a float16 minimum.
    assert quantized.nbytes == 2 + 2 + 2
    constant = quantize_weights(np.full((1, 4), 2.5, np.float32), group_size=4, symmetric=False)
    np.testing.assert_array_equal(constant.dequantize(), np.full((1, 4), 2.5))


def test_ternary_weights():
    w = np.array([[0.9, -1.0, 0.1, -0.4]], dtype=np.float32)
    assert quantize_weights(w, bits=2).values.tolist() == [[1, -1, 0, 0]]


def test_group_scale_beyond_float16_is_refused():
    w = np.full((2, 4), 1e6, np.float32)
    w[0] = 1.0
    with pytest.raises(QuantizationError, match="group 0 of output channel 1 needs 142857"):
        quantize_weights(w, group_size=4)


def test_weight_range():
    check_weight_range(np.array([[-8, 7]], np.int8), 4)
    check_weight_range(np.array([[0, 15]], np.int8), 4)
    with pytest.raises(QuantizationError, match=r"q_proj: value 9 at \[1, 0\] is out of the int4"):
        check_weight_range(np.array([[-1, 7], [9, 0]], np.int8), 4, "q_proj")
    with pytest.raises(QuantizationError, match=r"value 16 at \[0, 1\] is out of the uint4 range"):
        check_weight_range(np.array([[0, 16]], np.int8), 4)
    with pytest.raises(QuantizationError, match="out of the int2 range"):
        check_weight_range(np.array([[0, -3]], np.int8), 2)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), signed=st.booleans())
def test_int4_packing(data, signed):
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9)))
    limits = (-8, 7) if signed else (0, 15)
    values = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(*limits)))
    packed = pack_int4(values)
    assert packed.shape == (shape[0], -(-shape[1] // 2))
    unpacked = unpack_int4(packed, columns=shape[1], signed=signed)
    np.testing.assert_array_equal(unpacked, values)


def test_int4_packing_by_hand():
    assert pack_int4(np.array([[1, -2, 7]], np.int8)).tobytes().hex() == "e107"
    with pytest.raises(QuantizationError, match="out of the int4 range"):
        pack_int4(np.array([[-1, 8]], np.int8))
    with pytest.raises(QuantizationError, match="5 columns need 3 bytes, got 2"):
        unpack_int4(np.zeros((1, 2), np.uint8), columns=5)


def test_quantized_weights_are_checked():
    values = np.zeros((2, 8), np.int8)
    scale = np.ones((2, 2), np.float16)
    QuantizedWeights(values, scale, scale)
    for bad in (
        np.ones(3, np.float32),
        np.ones(2, np.float16),
        scale.astype(np.float64),
        np.ones((2, 3), np.float16),
    ):
        with pytest.raises(InvalidArgumentError, match="weight scale: expected"):
            QuantizedWeights(values, bad)
    with pytest.raises(InvalidArgumentError, match="weight minimum: needs group scales"):
        QuantizedWeights(values, np.ones(2, np.float32), scale)
    with pytest.raises(InvalidArgumentError, match="weight minimum: expected float16"):
        QuantizedWeights(values, scale, scale.astype(np.float32))
    QuantizedWeights(values, scale.astype(np.float32), -scale.astype(np.float32) * 63)
    for name in ("scale", "minimum"):
        parts = {"scale": scale.astype(np.float32), "minimum": scale.astype(np.float32)}
        parts[name] = parts[name] / np.float32(3)
        with pytest.raises(QuantizationError, match=f"weight {name}: .* no multiple of 2"):
            QuantizedWeights(values, **parts)
    with pytest.raises(QuantizationError, match="weight scale: inf"):
        QuantizedWeights(values, np.full((2, 2), np.inf, np.float16))
    with pytest.raises(QuantizationError, match="int4 range"):
        QuantizedWeights(np.full((2, 8), -9, np.int8), scale)
