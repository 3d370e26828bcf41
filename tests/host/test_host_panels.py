"""Arrangement of weights in panels."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import GENERIC, nibble_panels, panels, run_kernel

from sparqle_tvm.host.panels import nibble_panel_kernel, panel_kernel


@pytest.mark.parametrize(("channels", "inner", "cols"), [(16, 5, 8), (21, 7, 16), (3, 1, 8)])
@pytest.mark.parametrize(("dtype", "panel_dtype"), [("int8", "int8"), ("float16", "float32")])
def test_panel_matrix(channels: int, inner: int, cols: int, dtype: str, panel_dtype: str) -> None:
    source = np.random.default_rng(0).integers(-99, 99, (channels, inner)).astype(dtype)
    expected = panels(source, cols, panel_dtype)
    kernel = panel_kernel((channels, inner), dtype, panel_dtype, cols)
    (found,) = run_kernel(kernel, [source], [(expected.shape, panel_dtype)], GENERIC)
    np.testing.assert_array_equal(found, expected)


def test_panel_matrix_keeps_subnormal_halves() -> None:
    source = np.array([[6e-8], [-6e-5], [65504], [-0.0]], dtype=np.float16)
    kernel = panel_kernel((4, 1), "float16", "float32", 4)
    (found,) = run_kernel(kernel, [source], [((1, 1, 4), "float32")], GENERIC)
    np.testing.assert_array_equal(found.ravel(), source.ravel().astype(np.float32))


@pytest.mark.parametrize("dtype", ["int32", "float32", "float64"])
def test_panel_vector(dtype: str) -> None:
    source = np.arange(1, 12).astype(dtype)
    kernel = panel_kernel((11,), dtype, dtype, 8)
    (found,) = run_kernel(kernel, [source], [((2, 8), dtype)], GENERIC)
    np.testing.assert_array_equal(found, panels(source, 8))


@pytest.mark.parametrize(("channels", "inner", "cols"), [(16, 5, 8), (37, 7, 32), (3, 1, 8)])
def test_two_weights_lie_in_a_byte(channels: int, inner: int, cols: int) -> None:
    """Each panel says whether its weights are signed; what pads it stands for zeros."""
    rng = np.random.default_rng(channels)
    source = rng.integers(0, 16, (channels, inner)).astype(np.int8)
    source[:cols] = rng.integers(-8, 8, source[:cols].shape)
    source[0, 0] = -8
    expected = nibble_panels(source, cols)
    kernel = nibble_panel_kernel(channels, inner, cols)
    (found,) = run_kernel(kernel, [source], [(expected.shape, "uint8")], GENERIC)
    np.testing.assert_array_equal(found, expected)
    assert set(found[:, -1, 0]) == ({0, 8} if channels > cols else {8})
