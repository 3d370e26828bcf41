"""What a drain makes of scaled sums: by hand, and operation by operation in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.numerics import Grid, requantize

OUT = Grid(0.5, -3, -128, 127)


def test_by_hand() -> None:
    sums = np.array([[0.25, 0.75, -100, 100, 1.26]], np.float32)
    # 0.5 and 1.5 steps are ties, which go to 0 and 2; 1.26 is 2.52 steps.
    assert requantize(sums, OUT).tolist() == [[-3, -1, -128, 127, 0]]
    bias = np.array([0.5, 0, 100, -100, 0.25], np.float32)
    # 1.5, 1.5, 0, 0 and 3.02 steps.
    assert requantize(sums, OUT, bias=bias).tolist() == [[-1, -1, -3, -3, 0]]
    # In steps of 0.25: 1, 3, -4 (the limit), 5 (the limit), 5.04; then 1.5, 1.5, 198, -197.5, 3.
    mid = Grid(0.25, 2, -2, 7)
    assert requantize(sums, OUT, bias=bias, mid=mid).tolist() == [[-1, -1, 127, -128, 0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_every_operation_is_rounded_by_itself(seed: int, biased: bool, twice: bool) -> None:
    """In float64 a product is exact, and a sum or quotient as good as exact, before it is cast."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.001, 2, 2).astype(np.float32).tolist()
    mid = Grid(steps[0], int(rng.integers(0, 256)), 0, 255) if twice else None
    out = Grid(steps[1], int(rng.integers(-128, 128)), -128, 127)
    sums = (rng.normal(0, 40, (5, 7)) * steps[0]).astype(np.float32)
    bias = (rng.normal(0, 40, 7) * steps[1]).astype(np.float32) if biased else None

    def single(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32).astype(np.float64)

    x = sums.astype(np.float64)
    if mid is not None:
        q = np.clip(np.rint(single(x / mid.scale)) + mid.zero, 0, 255)
        x = single((q - mid.zero) * mid.scale)
    if bias is not None:
        x = single(x + bias)
    expected = np.clip(np.rint(single(x / out.scale)) + out.zero, -128, 127)
    found = requantize(sums, out, bias=bias, mid=mid)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("low", [-128, -3])
def test_limits(low: int) -> None:
    grid = Grid(0.5, -3, low, 100)
    sums = np.array([[-np.inf, -3e38, 3e38, np.inf]], np.float32)
    assert requantize(sums, grid).tolist() == [[low, low, 100, 100]]
