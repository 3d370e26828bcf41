"""Matrix product kernels: exact for integers, close to NumPy and independent of M for floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import (
    NATIVE,
    kernels_of,
    legalize,
    one_function,
    run_kernel,
    run_main,
    with_threads,
)
from tvm import relax, tirx

from sparqle_tvm.host import matmul
from sparqle_tvm.host.matmul import matmul_kernel
from sparqle_tvm.host.matmul_tile import MatmulSpec
from sparqle_tvm.host.register_tile import host_tile

INTEGERS = [("int8", "int8"), ("int8", "uint8"), ("uint8", "int8"), ("uint8", "uint8")]
Shape = tuple[int, ...]

# Every form of batch that TVM allows, M = 1, tails in M and N, empty M and K.
SHAPES: list[tuple[Shape, Shape]] = [
    ((3, 5), (5, 7)),
    ((1, 33), (33, 200)),
    ((13, 40), (40, 33)),
    ((300, 20), (20, 16)),
    ((0, 4), (4, 8)),
    ((3, 0), (0, 9)),
    ((2, 3, 4), (4, 5)),
    ((5, 4), (3, 4, 6)),
    ((1, 7, 3), (6, 3, 20)),
    ((6, 1, 30), (6, 30, 70)),
    ((2, 1, 3, 4), (5, 4, 6)),
    ((2, 3, 1, 8), (2, 1, 8, 9)),
]


def operand(rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def product(a: np.ndarray, b: np.ndarray, mod: Any = None) -> np.ndarray:
    """The product by a legalized module; by one for these very shapes if none is given."""
    out = "int32" if "int" in str(a.dtype) else str(a.dtype)
    if mod is None:
        mod = matmul_module(list(a.shape), str(a.dtype), list(b.shape), str(b.dtype), out)
    return run_main(mod, a, b)


def matmul_module(a: list[Any], a_dtype: str, b: list[Any], b_dtype: str, out: str) -> Any:
    mod = one_function(
        [("a", a, a_dtype), ("b", b, b_dtype)],
        lambda x, y: relax.op.matmul(x, y, out_dtype=out),
    )
    return legalize(mod)


def spec_2d(columns: int | None, channels: int | None, dtype: str, other: str = "") -> MatmulSpec:
    out = "int32" if "int" in dtype else dtype
    return MatmulSpec((), (), columns, channels, dtype, other or dtype, out, host_tile(NATIVE))


def run_2d(spec: MatmulSpec, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    shape = (a.shape[0], b.shape[1])
    return run_kernel(matmul_kernel(spec), [a, b], [(shape, spec.out_dtype)])[0]


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_integer_batches_are_exact(a: Shape, b: Shape) -> None:
    rng = np.random.default_rng(0)
    x, y = operand(rng, a, "int8"), operand(rng, b, "int8")
    np.testing.assert_array_equal(product(x, y), np.matmul(x.astype("i4"), y.astype("i4")))


@pytest.mark.parametrize(("a", "b"), SHAPES[::3])
def test_float_batches_are_close(a: Shape, b: Shape) -> None:
    rng = np.random.default_rng(1)
    x, y = operand(rng, a, "float32"), operand(rng, b, "float32")
    np.testing.assert_allclose(product(x, y), np.matmul(x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("a_dtype", "b_dtype"), INTEGERS)
def test_integer_extremes_over_several_chunks(a_dtype: str, b_dtype: str) -> None:
    spec = spec_2d(None, None, a_dtype, b_dtype)
    for rows in (1, 8):
        # The largest magnitudes, 3000 times: far above 2^24.
        a = np.full((rows, 3000), np.iinfo(a_dtype).min or 255, a_dtype)
        b = np.full((3000, 19), np.iinfo(b_dtype).min or 255, b_dtype)
        b[:, 3] = np.iinfo(b_dtype).max
        expected = a.astype("i4") @ b.astype("i4")
        np.testing.assert_array_equal(run_2d(spec, a, b), expected)


@settings(max_examples=60, deadline=None)
@given(
    dtypes=st.sampled_from([*INTEGERS, ("float32", "float32"), ("float64", "float64")]),
    rows=st.integers(0, 40),
    columns=st.integers(0, 90),
    channels=st.integers(0, 150),
    seed=st.integers(0, 99),
)
def test_symbolic_shapes(
    dtypes: tuple[str, str], rows: int, columns: int, channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a = operand(rng, (rows, columns), dtypes[0])
    b = operand(rng, (columns, channels), dtypes[1])
    found = run_2d(spec_2d(None, None, *dtypes), a, b)
    if "int" in dtypes[0]:
        np.testing.assert_array_equal(found, a.astype("i4") @ b.astype("i4"))
    else:
        tolerance = {"float32": 1e-4, "float64": 1e-12}[dtypes[0]]
        np.testing.assert_allclose(found, a @ b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_rows_do_not_depend_on_their_number(dtype: str) -> None:
    rng = np.random.default_rng(2)
    a, b = operand(rng, (250, 77), dtype), operand(rng, (77, 165), dtype)
    spec = spec_2d(None, None, dtype)
    whole = run_2d(spec, a, b)
    for rows in (1, 2, 12, 13, 100):
        np.testing.assert_array_equal(run_2d(spec, a[:rows], b), whole[:rows])


def test_long_row_segments_add_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = operand(rng, (2, 50), "float32"), operand(rng, (50, 5000), "float32")
    spec = spec_2d(50, 5000, "float32")
    monkeypatch.setattr(matmul, "_SEGMENT_PANELS", 4)
    segments = matmul_kernel.__wrapped__(spec)
    (one,) = run_kernel(segments, [a[:1], b], [((1, 5000), "float32")])
    np.testing.assert_array_equal(one, run_2d(spec, a, b)[:1])


def test_threads_do_not_change_the_result() -> None:
    rng = np.random.default_rng(4)
    a, b = operand(rng, (60, 90), "float32"), operand(rng, (90, 130), "float32")
    results = [
        with_threads(count, lambda: run_2d(spec_2d(90, 130, "float32"), a, b)) for count in (1, 2)
    ]
    np.testing.assert_array_equal(*results)


def test_symbolic_batch_and_length_of_attention() -> None:
    tokens, length = tirx.Var("t", "int64"), tirx.Var("s", "int64")
    mod = matmul_module([3, tokens, 8], "float32", [3, 8, length], "float32", "float32")
    rng = np.random.default_rng(5)
    a, b = operand(rng, (3, 5, 8), "float32"), operand(rng, (3, 8, 21), "float32")
    np.testing.assert_allclose(product(a, b, mod), a @ b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "dtype"),
    [([4], [4, 5], "float32"), ([3, 4], [4], "float32"), ([3, 4], [4, 5], "float16")],
)
def test_other_products_stay_with_tvm(a: list[int], b: list[int], dtype: str) -> None:
    mod = matmul_module(a, dtype, b, dtype, dtype)
    (kernel,) = kernels_of(mod).values()
    assert "op_pattern" not in kernel.attrs
    rng = np.random.default_rng(6)
    x, y = operand(rng, tuple(a), dtype), operand(rng, tuple(b), dtype)
    np.testing.assert_allclose(product(x, y, mod), x @ y, rtol=1e-2, atol=1e-2)


def test_unrelated_symbolic_batches_stay_with_tvm() -> None:
    p, q = tirx.Var("p", "int64"), tirx.Var("q", "int64")
    args = [("a", [p, 2, 3], "float32"), ("b", [q, 3, 4], "float32")]
    mod = one_function(args, lambda x, y: relax.op.matmul(x, y))
    assert kernels_of(legalize(mod, fold=False)) == {}
