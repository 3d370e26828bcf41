"""The encoding kernels against the definition in sparqle_tvm.numerics, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import GENERIC, NATIVE, run_kernel, with_threads

from sparqle_tvm.host.encode import EncodeSpec, encode_kernel
from sparqle_tvm.host.planes import SplitForm
from sparqle_tvm.numerics import slicing
from sparqle_tvm.numerics.choice import (
    EncodingChoice,
    clip_to_bands,
    quantize_with_choice,
    window_limits,
)
from sparqle_tvm.numerics.quantization import quantize_per_token
from sparqle_tvm.numerics.window import WINDOWS


def spec_of(
    lead: int,
    columns: int,
    k: int,
    window: str,
    group_size: int = 0,
    qmax: int = 0,
    factors: bool = False,
    bands: bool = False,
    **form: Any,
) -> EncodeSpec:
    split = SplitForm(window, k, **form)
    return EncodeSpec(lead, columns, split, group_size, qmax, factors, bands)


def encode_outputs(spec: EncodeSpec, lead: tuple[int, ...]) -> list[tuple[tuple[int, ...], str]]:
    rows = int(np.prod(lead))
    shapes: list[tuple[tuple[int, ...], str]] = [
        ((*lead, spec.lsb_bytes), "uint8"),
        ((*lead, -(-spec.columns // 8)), "uint8"),
        ((rows * spec.lsb_bytes,), "uint8"),
        ((rows + 1,), "int32"),
    ]
    if spec.qmax:
        shapes.append(((*lead, 1), "float32"))
    if spec.groups:
        shapes.append(((*lead, spec.groups), "int32"))
    return shapes


def run(
    spec: EncodeSpec, source: np.ndarray, *operands: np.ndarray, target: Any = NATIVE
) -> list[np.ndarray]:
    outputs = encode_outputs(spec, source.shape[:-1])
    return run_kernel(encode_kernel(spec), [source, *operands], outputs, target)


def check_planes(
    spec: EncodeSpec, q: np.ndarray, found: list[np.ndarray], zero_point: Any = 0
) -> None:
    """The kernel's planes are those of the integers q (.., K)."""
    matrix = q.reshape(-1, spec.columns)
    window = spec.form.window
    expected = slicing.encode(matrix, k=spec.k, window=window, zero_point=zero_point)
    np.testing.assert_array_equal(found[0].reshape(expected.lsb.shape), expected.lsb)
    np.testing.assert_array_equal(found[1].reshape(expected.pbm.shape), expected.pbm)
    np.testing.assert_array_equal(found[3], expected.row_ptr)
    np.testing.assert_array_equal(found[2][: expected.row_ptr[-1]], expected.msb)
    # Nothing is written behind the stream.
    assert (found[2][expected.row_ptr[-1] :] == 0xAA).all()
    if spec.groups:
        sums = expected.group_sums(spec.group_size)
        np.testing.assert_array_equal(found[-1].reshape(sums.shape), sums)


def integers(
    rng: np.random.Generator, k: int, shape: tuple[int, ...], zero: Any = 0, signed: bool = True
) -> np.ndarray:
    """Mostly 2k-bit integers close to the zero point, the extremes among them."""
    limit = 2 ** (2 * k - 1)
    low = -limit if signed else 0
    high = low + 2 * limit - 1
    q = zero + np.rint(rng.standard_normal(shape) * limit / rng.choice([2, 8, 40]))
    q[rng.random(shape) < 0.05] = low
    q[rng.random(shape) < 0.05] = high
    dtype = "int16" if k == 8 else "int8"
    return np.clip(q, low, high).astype(dtype if signed else f"u{dtype}")


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize(("columns", "group_size"), [(1, 0), (37, 0), (48, 16)])
def test_encode_equals_numerics(k: int, window: str, columns: int, group_size: int) -> None:
    rng = np.random.default_rng(columns + k)
    spec = spec_of(1, columns, k, window, group_size)
    for rows in (0, 1, 3, 40):
        q = integers(rng, k, (rows, columns))
        check_planes(spec, q, run(spec, q))


@pytest.mark.parametrize("zeros", ["one", "row"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("k", [2, 4, 8])
def test_zero_points_equal_numerics(k: int, signed: bool, window: str, zeros: str) -> None:
    rng = np.random.default_rng(k)
    low = -(2 ** (2 * k - 1)) if signed else 0
    dtype = ("int16" if k == 8 else "int8") if signed else ("uint16" if k == 8 else "uint8")
    spec = spec_of(1, 36, k, window, 12, signed=signed, zeros=zeros)
    for rows in (1, 3, 40):
        shape = (rows, 1) if zeros == "row" else (1,)
        zero = rng.integers(low, low + 4**k, shape).astype(dtype)
        q = integers(rng, k, (rows, 36), zero.astype(np.int64), signed)
        check_planes(spec, q, run(spec, q, zero), zero if zeros == "row" else int(zero[0]))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("signed", [True, False])
def test_all_values_with_all_zero_points(signed: bool, window: str) -> None:
    values = np.arange(256).astype(np.uint8)
    values = values.view(np.int8) if signed else values
    q = np.repeat(values[None], 256, axis=0)
    spec = spec_of(1, 256, 4, window, 64, signed=signed, zeros="row")
    check_planes(spec, q, run(spec, q, values[:, None]), values.astype(np.int64))


@pytest.mark.parametrize("signed", [True, False])
def test_all_values_of_16_bits_with_16_zero_points(signed: bool) -> None:
    values = np.arange(2**16).astype(np.uint16)
    values = values.view(np.int16) if signed else values
    # The ends, what is next to them and to where the centre starts to follow, and some between.
    order = np.sort(values)
    near = [0, 1, 127, 128, 129, 255, 256, 1000]
    zeros = order[[*near, *(-1 - at for at in near)]][:, None]
    spec = spec_of(1, 2**16, 8, "signed", signed=signed, zeros="row")
    q = np.repeat(values[None], 16, axis=0)
    check_planes(spec, q, run(spec, q, zeros), zeros.astype(np.int64))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("k", "qmax"), [(2, 5), (4, 119), (4, 127), (8, 32639)])
def test_quantize_encode_equals_numerics(k: int, qmax: int, window: str) -> None:
    rng = np.random.default_rng(qmax)
    spec = spec_of(1, 50, k, window, 10, qmax)
    for rows in (0, 1, 2, 33):
        x = (rng.standard_normal((rows, 50)) * np.exp(rng.normal(size=(rows, 1)))).astype("f4")
        found = run(spec, x)
        amax = np.abs(x).max(axis=1, keepdims=True, initial=0)
        scale = np.maximum(amax, np.float32(1e-30)) / np.float32(qmax)
        q = np.clip(np.rint(x / scale), -qmax, qmax).astype("int16" if k == 8 else "int8")
        np.testing.assert_array_equal(found[4], scale)
        check_planes(spec, q, found)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(0, 5))
def test_quantize_encode_of_any_floats(data: st.DataObject, rows: int) -> None:
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(finite, min_size=rows * 6, max_size=rows * 6))
    x = np.array(values, dtype=np.float32).reshape(rows, 6)
    spec = spec_of(1, 6, 4, "signed", 3, 127)
    found = run(spec, x)
    q, scale = quantize_per_token(x)
    np.testing.assert_array_equal(found[4], scale)
    check_planes(spec, q, found)


def bands_outside(rng: np.random.Generator, spec: EncodeSpec) -> np.ndarray:
    """Bands (2, K) around the window, some of them empty, some up to the ends of q."""
    low, high = window_limits(spec.k, spec.form.window)
    limit = 2 ** (2 * spec.k - 1)
    lo = np.maximum(low - rng.integers(0, 20, spec.columns), -limit)
    hi = np.minimum(high + rng.integers(0, 20, spec.columns), limit - 1)
    lo[rng.random(spec.columns) < 0.1], hi[rng.random(spec.columns) < 0.1] = -limit, limit - 1
    return np.stack([lo, hi]).astype(spec.form.integer)


@pytest.mark.parametrize("bands", [True, False])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("k", "qmax"), [(2, 5), (4, 119), (4, 127), (8, 32639)])
def test_factors_and_bands_equal_numerics(k: int, qmax: int, window: str, bands: bool) -> None:
    rng = np.random.default_rng(qmax + (window == "signed"))
    spec = spec_of(1, 50, k, window, 10, qmax, True, bands)
    factors = np.exp2(rng.uniform(-10, 10, 50) / rng.choice([1, 8], 50)).astype(np.float32)
    for rows in (1, 33):
        x = (rng.standard_normal((rows, 50)) * np.exp(rng.normal(size=(rows, 1)))).astype("f4")
        scale = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-30))
        scale = scale / np.float32(qmax)
        q = np.clip(np.rint(x / (scale * factors)), -qmax, qmax)
        q = q.astype(spec.form.integer)
        operands = [factors]
        if bands:
            operands.append(bands_outside(rng, spec))
            q, _ = clip_to_bands(q, *operands[1], k=k, window=window)
        found = run(spec, x, *operands)
        np.testing.assert_array_equal(found[4], scale)
        check_planes(spec, q, found)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), window=st.sampled_from(sorted(WINDOWS)))
def test_factors_and_bands_of_any_floats(data: st.DataObject, seed: int, window: str) -> None:
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(finite, min_size=18, max_size=18))
    factor = st.floats(width=32, min_value=2**-10, max_value=2**10)
    factors = np.array(data.draw(st.lists(factor, min_size=6, max_size=6)), np.float32)
    x = np.array(values, dtype=np.float32).reshape(3, 6)
    spec = spec_of(1, 6, 4, window, 3, 127, True, True)
    bands = bands_outside(np.random.default_rng(seed), spec)
    choice = EncodingChoice(factors, *bands)
    q, scale, _ = quantize_with_choice(x, choice, window=window)
    found = run(spec, x, factors, bands)
    np.testing.assert_array_equal(found[4], scale)
    check_planes(spec, q, found)


def test_factors_on_a_generic_target_give_the_same_bits() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((21, 100)).astype(np.float32)
    spec = spec_of(1, 100, 4, "signed", 20, 119, True, True)
    operands = rng.uniform(0.5, 4, 100).astype(np.float32), bands_outside(rng, spec)
    native, generic = run(spec, x, *operands), run(spec, x, *operands, target=GENERIC)
    for one, two in zip(native, generic, strict=True):
        np.testing.assert_array_equal(one, two)


def test_halves_round_to_even() -> None:
    x = np.array([[119, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 118.5]], dtype=np.float32)
    spec = spec_of(1, 8, 4, "unsigned", 1, 119)
    assert run(spec, x)[5].tolist() == [[119, 0, 2, 2, 0, -2, -2, 118]]


def test_generic_target_gives_the_same_bits() -> None:
    x = np.random.default_rng(3).standard_normal((21, 100)).astype(np.float32)
    spec = spec_of(1, 100, 4, "signed", 20, 119)
    for native, generic in zip(run(spec, x), run(spec, x, target=GENERIC), strict=True):
        np.testing.assert_array_equal(native, generic)


def test_threads_do_not_change_the_result() -> None:
    x = np.random.default_rng(4).standard_normal((100, 70)).astype(np.float32)
    spec = spec_of(1, 70, 4, "signed", 0, 119)
    results = [with_threads(count, lambda: run(spec, x)) for count in (1, 2)]
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("lead", [(), (5,), (1, 7), (2, 3, 4)])
def test_any_number_of_leading_dimensions(lead: tuple[int, ...]) -> None:
    q = integers(np.random.default_rng(5), 4, (*lead, 24))
    spec = spec_of(len(lead), 24, 4, "signed", 8)
    check_planes(spec, q, run(spec, q))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_not_finite_rows_get_the_scale_nan_and_the_value_zero(bad: float) -> None:
    x = np.random.default_rng(6).standard_normal((20, 33)).astype(np.float32)
    clean = x.copy()
    x[3, 17] = x[19, 0] = bad
    clean[[3, 19]] = 0
    spec = spec_of(1, 33, 4, "signed", 0, 127)
    found, expected = run(spec, x), run(spec, clean)
    assert np.flatnonzero(np.isnan(found[4][:, 0])).tolist() == [3, 19]
    check_planes(spec, quantize_per_token(clean)[0], found)
    others = [i for i in range(20) if i not in (3, 19)]
    np.testing.assert_array_equal(found[4][others], expected[4][others])
