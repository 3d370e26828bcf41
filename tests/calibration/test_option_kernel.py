"""The kernel against the definition of quantization with factors."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.calibration.option_kernel import option_sums
from sparqle_tvm.numerics import EncodingChoice, quantize_with_choice

FACTORS = np.array([0.25, 1.0, 2.0**0.5, 16.0], np.float32)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.sampled_from([1, 31, 32, 33, 96]),
    size=st.sampled_from([1e-3, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_sums_are_those_of_numpy(rows, columns, size, seed):
    rng = np.random.default_rng(seed)
    x = (rng.laplace(size=(rows, columns)) * size).astype(np.float32)
    weight = rng.uniform(0.1, 2, rows).astype(np.float32)
    scale = np.abs(x).max(axis=1) / np.float32(127)
    error, stored = option_sums(x, scale, weight, FACTORS, 127)
    assert error.shape == (4, columns) and stored.shape == (2, 4, columns)
    for i, factor in enumerate(FACTORS):
        q, found, _ = quantize_with_choice(x, EncodingChoice.per_group([factor], columns))
        np.testing.assert_array_equal(found[:, 0], scale)
        np.testing.assert_array_equal(stored[0, i], ((q < -8) | (q > 7)).sum(axis=0))
        np.testing.assert_array_equal(stored[1, i], ((q < 0) | (q > 15)).sum(axis=0))
        exact = (x.astype(np.float64) - q * (scale * factor)[:, None].astype(np.float64)) ** 2
        expected = (exact * weight[:, None]).sum(axis=0)
        # The step is rounded to float32 once, so an error near zero keeps little of its digits.
        tiny = (np.abs(x).max() * 1e-6) ** 2 * rows * 2
        np.testing.assert_allclose(error[i], expected, rtol=1e-3, atol=tiny)


def test_rows_of_zeros():
    x = np.zeros((3, 40), np.float32)
    scale = np.full(3, 1e-30, np.float32)
    error, stored = option_sums(x, scale, np.ones(3, np.float32), FACTORS, 127)
    assert not error.any() and not stored.any()
