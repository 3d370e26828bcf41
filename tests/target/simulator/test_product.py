from __future__ import annotations

import numpy as np
import pytest

from sparqle_tvm.target.simulator.product import multiply


@pytest.mark.parametrize("seed", range(8))
def test_the_product_of_any_shape_is_exact(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        rows, depth, columns = rng.integers(0, 70, 3)
        digits = rng.integers(-8, 16, (rows, depth)).astype(rng.choice(["int8", "int16"]))
        weights = rng.integers(-128, 128, (depth, columns)).astype(np.int8)
        found = multiply(digits, weights.T.copy().T if seed % 2 else weights)
        assert found.dtype == np.int32
        assert np.array_equal(found, digits.astype(np.int64) @ weights.astype(np.int64))


def test_sums_that_float32_cannot_hold_are_exact():
    # Every partial sum of 2^24 + 1 and more would be rounded if all were added in float32.
    depth = 40_001
    digits, weights = np.full((1, depth), 15, np.uint8), np.full((depth, 1), -127, np.int8)
    assert multiply(digits, weights)[0, 0] == -15 * 127 * depth
