"""Kernels of attention against the definition, bit for bit: 320 shapes, masks, NaN, a cache."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tvm
from kernel_runner import GENERIC, NATIVE, with_threads
from tvm import relax, tirx

from sparqle_tvm import dialect
from sparqle_tvm.compiler import lowering_passes
from sparqle_tvm.numerics import attention as defined

# Heads, key heads, channels, channels of values, causal: groups 1 to 8, odd widths.
FORMS = [
    (1, 1, 1, 1, 1),
    (2, 1, 7, 7, 1),
    (9, 3, 64, 64, 1),
    (4, 1, 33, 20, 0),
    (10, 2, 16, 48, 1),
    (6, 1, 5, 31, 0),
    (7, 1, 80, 80, 1),
    (16, 2, 12, 65, 1),
]
SIZES = 40


@cache
def functions(heads, kv_heads, channels, value_channels, causal, target=NATIVE, batch=0):
    """Attention of (T, H, D) with and without a mask, and out of a cache, T and N symbolic."""
    dialect.register()
    tokens, keys = tirx.Var("t", "int64"), tirx.Var("n", "int64")
    lead = [batch] if batch else []
    shapes = {
        "q": [*lead, tokens, heads, channels],
        "k": [*lead, keys, kv_heads, channels],
        "v": [*lead, keys, kv_heads, value_channels],
    }
    builder = relax.BlockBuilder()
    for name in ("plain", "masked", "stored"):
        params = [relax.Var(x, relax.TensorType(s, "float32")) for x, s in shapes.items()]
        if name == "masked":
            params.append(relax.Var("mask", relax.TensorType([tokens, keys], "bool")))
        with builder.function(name, params):
            operands = list(params)
            if name == "stored":
                operands[1:3] = [
                    builder.emit(dialect.quantize_heads(x, levels=levels))
                    for x, levels in zip(params[1:3], (127, 31), strict=True)
                ]
            call = dialect.attention(*operands, causal=causal, scale=channels**-0.5)
            builder.emit_func_output(builder.emit(call))
    steps = tvm.transform.Sequential(lowering_passes())
    built = relax.build(builder.get(), target, relax_pipeline=steps)
    machine = relax.VirtualMachine(built, tvm.cpu())

    def call(name, *arrays):
        return machine[name](*[tvm.runtime.tensor(a) for a in arrays]).numpy()

    return call


def operands(form, tokens, past, seed):
    heads, kv_heads, channels, value_channels, _ = form
    rng = np.random.default_rng(seed)
    shapes = (
        (tokens, heads, channels),
        (tokens + past, kv_heads, channels),
        (tokens + past, kv_heads, value_channels),
    )
    spread = rng.uniform(0.3, 4)
    return [
        (rng.standard_normal(s) * rng.uniform(0.2, spread, (*s[:2], 1))).astype(np.float32)
        for s in shapes
    ]


def assert_bits(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_definition(form):
    call, rng = functions(*form), np.random.default_rng(form)
    for case in range(SIZES):
        tokens = 1 if case % 4 == 0 else int(rng.integers(1, 40))
        past = 0 if case % 3 == 0 else int(rng.integers(1, 90))
        q, k, v = operands(form, tokens, past, [*form, case])
        causal = bool(form[-1])
        assert_bits(call("plain", q, k, v), defined.attention(q, k, v, causal=causal))
        if case % 8 == 1:
            mask = rng.random((tokens, tokens + past)) < rng.uniform(0, 0.6)
            expected = defined.attention(q, k, v, causal=causal, mask=mask)
            assert_bits(call("masked", q, k, v, mask), expected)
            expected = defined.attention(q, k, v, causal=causal, value_levels=31)
            assert_bits(call("stored", q, k, v), expected)


def test_a_plain_processor_and_a_batch():
    form = (4, 2, 9, 11, 1)
    call = functions(*form, target=GENERIC, batch=2)
    both = [operands(form, 14, 6, seed) for seed in (1, 2)]
    found = call("plain", *(np.stack(pair) for pair in zip(*both, strict=True)))
    for one, (q, k, v) in zip(found, both, strict=True):
        assert_bits(one, defined.attention(q, k, v))


def test_threads_do_not_matter():
    form = FORMS[2]
    q, k, v = operands(form, 70, 30, 7)
    single = with_threads(1, lambda: functions(*form)("plain", q, k, v))
    assert_bits(single, functions(*form)("plain", q, k, v))


def test_a_long_row_needs_more_than_one_chunk_of_values():
    form = FORMS[2]
    q, k, v = operands(form, 2, 1500, 3)
    # Flat scores: all keys count, more than a float32 sums exactly at once.
    assert_bits(
        functions(*form)("plain", q * 1e-3, k, v), defined.attention(q * np.float32(1e-3), k, v)
    )


@pytest.mark.parametrize("magnitude", [1e-38, 1e-20, 1e20, 3e38])
def test_any_finite_magnitude(magnitude):
    q, k, v = (np.float32(magnitude) * np.sign(x) for x in operands(FORMS[4], 5, 9, 1))
    assert_bits(functions(*FORMS[4])("plain", q, k, v), defined.attention(q, k, v))


@pytest.mark.parametrize("tokens, keys", [(0, 0), (0, 5), (3, 0)])
def test_nothing_to_do_or_to_look_at(tokens, keys):
    form = FORMS[3]
    q, k = np.ones((tokens, 4, 33), np.float32), np.ones((keys, 1, 33), np.float32)
    found = functions(*form)("plain", q, k, np.ones((keys, 1, 20), np.float32))
    assert found.shape == (tokens, 4, 20) and not found.any()


def test_more_queries_than_keys_leave_the_first_without_any():
    form = FORMS[1]
    q, k, v = operands(form, 5, 0, 4)
    found = functions(*form)("plain", q, k[:3], v[:3])
    assert not found[:2].any()
    assert_bits(found[2:], defined.attention(q[2:], k[:3], v[:3]))


def test_rows_that_see_nan_or_infinity_are_nan_and_no_others():
    form = FORMS[2]
    q, k, v = operands(form, 20, 5, 9)
    expected = defined.attention(q, k, v)
    k[15, 1, 3], v[20, 2, 0], q[1, 0, 5] = np.nan, -np.inf, np.inf
    found = functions(*form)("plain", q, k, v)
    bad = np.zeros((20, 9), bool)
    # Query i stands at key 5 + i; heads 3 to 5 read key head 1, heads 6 to 8 key head 2.
    bad[10:, 3:6] = bad[15:, 6:9] = bad[1, 0] = True
    assert np.isnan(found[bad]).all()
    assert_bits(found[~bad], expected[~bad])


def test_a_row_whose_mask_hides_all_keys_gives_zeros():
    form = FORMS[2]
    q, k, v = operands(form, 6, 10, 3)
    mask = np.random.default_rng(3).random((6, 16)) < 0.5
    mask[[0, 3]] = False
    mask[:, 15] = False
    expected = defined.attention(q, k, v, causal=bool(form[-1]), mask=mask)
    # What nobody sees may be anything; of what row 4 alone sees nobody else hears.
    k[15], v[15] = np.nan, np.inf
    found = functions(*form)("masked", q, k, v, mask)
    assert not found[[0, 3]].any() and found[1].any()
    assert_bits(found, expected)
    mask[:, 2], mask[4, 2] = False, True
    expected = defined.attention(q, np.nan_to_num(k), np.nan_to_num(v, posinf=0), mask=mask)
    v[2] = np.nan
    found = functions(*form)("masked", q, k, v, mask)
    assert np.isnan(found[4]).all()
    others = [0, 1, 2, 3, 5]
    assert_bits(found[others], expected[others])


def test_a_cache_holds_integers_and_the_bytes_of_the_scale():
    x = np.random.default_rng(0).standard_normal((3, 2, 6)).astype(np.float32)
    x[1, 0, 2] = np.nan
    builder = relax.BlockBuilder()
    param = relax.Var("x", relax.TensorType(x.shape, "float32"))
    with builder.function("main", [param]):
        builder.emit_func_output(builder.emit(dialect.quantize_heads(param, levels=15)))
    steps = tvm.transform.Sequential(lowering_passes())
    machine = relax.VirtualMachine(
        relax.build(builder.get(), NATIVE, relax_pipeline=steps), tvm.cpu()
    )
    found = machine["main"](tvm.runtime.tensor(x)).numpy()
    assert found.shape == (3, 2, 10)
    scale = np.ascontiguousarray(found[..., 6:]).view("<f4")[..., 0]
    assert np.isnan(scale[1, 0]) and not found[1, 0, :6].any()
    x[1, 0] = 0
    expected = defined.quantize_heads(x, levels=15)
    good = np.ones((3, 2), bool)
    good[1, 0] = False
    assert np.array_equal(found[..., :6], expected.values)
    assert np.array_equal(scale[good], expected.scale[good])
