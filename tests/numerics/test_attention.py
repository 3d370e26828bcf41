"""Attention in integers: by hand, against float64 within a bound, and in blocks."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics import attention as defined

EXPONENTIAL_ERROR = 1.2e-4


def float64_attention(q, k, v, scale, visible):
    """Softmax attention of (T, H, D), (N, kv, D), (N, kv, Dv) in float64; hidden rows give 0."""
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    s = np.einsum("thd,nhd->htn", q.astype(np.float64), k) * scale
    s = np.where(visible, s, -np.inf)
    top = s.max(axis=2, keepdims=True, initial=-1e300)
    e = np.exp(s - top)
    total = e.sum(axis=2, keepdims=True)
    weights = np.divide(e, total, out=np.zeros_like(e), where=total > 0)
    return np.einsum("htn,nhd->thd", weights, v), weights


def case(seed, heads=None, spread=1.0):
    rng = np.random.default_rng(seed)
    kv = int(rng.integers(1, 4))
    group = heads or int(rng.integers(1, 9))
    channels = int(rng.integers(1, 40))
    tokens, past = int(rng.integers(1, 9)), int(rng.integers(0, 40))
    shapes = ((tokens, kv * group), (tokens + past, kv), (tokens + past, kv))
    q, k, v = (
        (rng.standard_normal((*s, channels)) * rng.uniform(0.2, 3, (*s, 1)) * spread).astype(
            np.float32
        )
        for s in shapes
    )
    return q, k, v


def test_one_key_gives_its_value():
    q = np.array([[[3.0, -1.0]]], np.float32)
    v = np.array([[[127.0, -64.0, 0.0]]], np.float32)
    # v's scale is 1, p = 255, out = (255 * v) * (1 / 255).
    out = defined.attention(q, q, v)
    unit = np.float32(1) / np.float32(255)
    assert out.tolist() == [[[np.float32(255 * x) * unit for x in (127, -64, 0)]]]


def test_two_keys_by_hand():
    # Values of heads that are already integers: scales are exactly 1.
    keys = defined.Heads(np.array([[[1]], [[2]]], np.int8), np.ones((2, 1), np.float32))
    values = defined.Heads(
        np.array([[[100]], [[-50]]], np.int8), np.array([[0.5], [0.25]], np.float32)
    )
    # An octave between the scores: row_factor 2^15, so x = 2^15, 2^16 and e = 1/2, 1.
    block = defined.attend_rows(
        np.array([[1]], np.int8), np.array([2.0**15], np.float32), keys, values, 0
    )
    # w = 1/4, 1/4: both 255; the sum of e is 1.5, row_scale = 0.25 / (1.5 * 255).
    assert block.probabilities.tolist() == [[255, 255]]
    assert block.out[0, 0] == np.float32(255 * 50) * (np.float32(0.25) / np.float32(1.5 * 255))


def test_exponential_over_its_whole_range():
    t = np.arange(0, (25 << 15) + 1, dtype=np.int32)
    x = -t.astype(np.float32)[None]
    e = defined.exponentials(x)[0]
    assert e[0] == 1 << 24 and e[-1] == 0
    assert (np.diff(e) <= 0).all()
    real = 2.0 ** (24 - t / 2**15)
    # The shift rounds down to a whole unit.
    assert (np.abs(e - real) <= real * EXPONENTIAL_ERROR + 1).all()


def test_exponential_equals_its_polynomial_in_rationals():
    c1, c2, c3 = defined.EXPONENT_COEFFICIENTS
    for t in [0, 1, 77, 12345, 32767, 32768, 99999, 24 << 15, (25 << 15) - 1]:
        n, f = divmod(t, 2**15)
        m = c3
        for c in (c2, c1, 2**16):
            m = c + math.floor(Fraction(m * f, 2**15))
        e = defined.exponentials(np.array([[0, -t]], np.float32))[0, 1]
        assert e == math.floor(Fraction(m * 2**8, 2**n))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), causal=st.booleans(), masked=st.booleans())
def test_close_to_float_attention(seed, causal, masked):
    q, k, v = case(seed)
    tokens, keys = len(q), len(k)
    visible = np.ones((tokens, keys), bool)
    if causal:
        visible = np.tri(tokens, keys, keys - tokens, dtype=bool)
    mask = np.random.default_rng(seed).random((tokens, keys)) < 0.7 if masked else None
    if mask is not None:
        visible &= mask
    out = defined.attention(q, k, v, causal=causal, mask=mask)
    # Against attention of the numbers that Q, K and V were rounded to: what is left is P.
    real = [
        h.values * h.scale[..., None].astype(np.float64)
        for h in map(defined.quantize_heads, (q, k, v))
    ]
    wanted, weights = float64_attention(*real, 1 / math.sqrt(q.shape[2]), visible)
    # Half a step of P for each visible key, times the largest value of V's integers.
    v_scale = np.repeat(np.abs(v).max(axis=2) / 127, q.shape[1] // k.shape[1], axis=1).T
    step = (weights * v_scale[:, None, :]).max(axis=2) / 255
    bound = 0.5 * step.T * visible.sum(axis=1)[:, None] * 127
    bound += 4 * EXPONENTIAL_ERROR * np.abs(v).max()
    assert (np.abs(out - wanted) <= bound[:, :, None]).all()
    hidden = ~visible.any(axis=1)
    assert not out[hidden].any()


def test_close_to_float_attention_of_a_long_row():
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((300, 2, 64)).astype(np.float32) for _ in range(3))
    out = defined.attention(q, k, v)
    wanted, _ = float64_attention(q, k, v, 1 / 8, np.tri(300, dtype=bool))
    error = np.linalg.norm(out - wanted) / np.linalg.norm(wanted)
    assert 0.001 < error < 0.02


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 9))
def test_blocks_do_not_matter(seed, size):
    q, k, v = case(seed)
    whole = defined.attention(q, k, v, block_tokens=1000)
    assert np.array_equal(whole, defined.attention(q, k, v, block_tokens=size))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_decode_equals_prefill(seed):
    q, k, v = case(seed)
    whole, past = defined.attention(q, k, v), len(k) - len(q)
    for i in range(len(q)):
        end = past + i + 1
        assert np.array_equal(whole[i : i + 1], defined.attention(q[i : i + 1], k[:end], v[:end]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_keys_with_probability_zero_add_nothing(seed):
    q, k, v = case(seed, spread=4.0)
    heads = [defined.quantize_heads(x) for x in (q, k, v)]
    group, channels = q.shape[1] // k.shape[1], q.shape[2]
    rows = heads[0].values[:, :group].reshape(-1, channels)
    factor = defined.row_factors(heads[0].scale[:, :group].reshape(-1), channels**-0.5)
    block = defined.attend_rows(rows, factor, heads[1], heads[2], 0)
    live = block.probabilities.any(axis=0)
    spoiled = heads[2].values.copy()
    spoiled[~live] = 99
    other = defined.attend_rows(rows, factor, heads[1], defined.Heads(spoiled, heads[2].scale), 0)
    assert np.array_equal(block.out, other.out)
    assert block.probabilities.max(axis=1).tolist() == [255] * len(rows)


def test_rows_do_not_depend_on_hidden_keys():
    q, k, v = case(3)
    mask = np.zeros((len(q), len(k)), bool)
    mask[0, :2] = True
    out = defined.attention(q, k, v, causal=False, mask=mask)
    k[2:], v[2:] = 1e30, -1e30
    assert np.array_equal(out, defined.attention(q, k, v, causal=False, mask=mask))
    assert out[0].any() and not out[1:].any()


@pytest.mark.parametrize("magnitude", [1e-38, 1e-20, 1e20, 3e38])
def test_any_finite_magnitude_gives_finite_numbers(magnitude):
    q, k, v = (np.float32(magnitude) * np.sign(x) for x in case(11))
    with np.errstate(all="raise", under="ignore"):
        out = defined.attention(q, k, v)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= magnitude * (1 + 2 * EXPONENTIAL_ERROR)


@pytest.mark.parametrize("tokens, keys", [(0, 0), (0, 5), (3, 0)])
def test_nothing_to_do_or_to_look_at(tokens, keys):
    q, k = np.ones((tokens, 4, 3), np.float32), np.ones((keys, 2, 3), np.float32)
    out = defined.attention(q, k, k, causal=False)
    assert out.shape == (tokens, 4, 3) and not out.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["queries", "keys", "values"])
def test_refuses_nan_and_infinity(which, value):
    tensors = dict(zip(("queries", "keys", "values"), case(2), strict=True))
    tensors[which][0, 0, 0] = value
    with pytest.raises(QuantizationError, match=which):
        defined.attention(*tensors.values())


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((2, 3, 8), (2, 2, 8), (2, 2, 8)), "3 query heads are not a multiple of 2"),
        (((2, 2, 8), (2, 2, 4), (2, 2, 4)), "do not fit"),
        (((2, 2, 8), (2, 2, 8), (3, 2, 8)), "do not fit"),
        (((3, 2, 8), (2, 2, 8), (2, 2, 8)), "3 queries look at 2 keys"),
        (((2, 8), (2, 2, 8), (2, 2, 8)), "expected \\(tokens, heads, channels\\)"),
        (((2, 2, 0), (2, 2, 0), (2, 2, 4)), "queries: expected float32"),
    ],
)
def test_refuses_shapes(shapes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        defined.attention(*(np.ones(s, np.float32) for s in shapes))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_refuses_a_scale(scale):
    with pytest.raises(InvalidArgumentError, match="scale of scores"):
        defined.attention(*case(1), scale=scale)


def test_refuses_a_mask_of_another_shape():
    q, k, v = case(1)
    with pytest.raises(InvalidArgumentError, match="the mask is bool"):
        defined.attention(q, k, v, mask=np.ones((1, 1), bool))


def test_refuses_more_keys_than_the_accumulator_holds():
    keys = np.zeros((defined.MAX_KEYS + 1, 1, 1), np.float32)
    with pytest.raises(QuantizationError, match="fits the int32 accumulator up to"):
        defined.attention(keys[:1], keys, keys)
