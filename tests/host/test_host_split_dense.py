"""The split-precision dense kernels against the definition in sparqle_tvm.numerics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import GENERIC, NATIVE, panels, run_kernel, with_threads

from sparqle_tvm.host.register_tile import HostTile, host_tile
from sparqle_tvm.host.split_dense import DenseKernel, split_dense_kernel
from sparqle_tvm.numerics import slicing
from sparqle_tvm.target.op import DenseOp

TILE = host_tile(NATIVE)


def spec_of(form: str, columns: int, channels: int, **changes: Any) -> DenseKernel:
    """A kernel with int32 outputs, a scale per channel, or groups with minima."""
    grouped = form == "grouped"
    op = DenseOp(1, channels, columns, output="int32" if form == "int32" else "float32")
    op = replace(op, group_size=8 * grouped, has_min=grouped)
    outside = {"scale_shape": None, "tile": TILE}
    outside |= {name: changes.pop(name) for name in outside if name in changes}
    return DenseKernel(replace(op, **changes), lead=1, **outside)


class Problem:
    """Random operands of a kernel, with its exact result."""

    def __init__(self, spec: DenseKernel, rows: int, window: str = "signed", seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        k, shape = spec.op.digit_bits, (rows, spec.op.k)
        low, high = -(2 ** (2 * k - 1)), slicing.max_exact(k, window)
        q = np.clip(np.rint(rng.standard_normal(shape) * high / 6), low, high)
        q[rng.random(shape) < 0.1] = rng.choice([low, high])
        self.q = q.astype("int16" if k == 8 else "int8")
        bits = spec.op.weight_bits
        span = (-128, 128) if bits == 8 else (0, 2**bits)
        self.w = rng.integers(*span, (spec.op.n, spec.op.k)).astype(np.int8)
        self.spec, self.window = spec, window
        self.sliced = slicing.encode(self.q, k=k, window=window)
        scale_shape = (rows, 1) if spec.scale_shape is None else spec.scale_shape
        self.act_scale = (rng.random(scale_shape) + 0.1).astype(np.float32)
        scales = (spec.op.n, max(spec.op.groups, 1))
        self.d = (rng.standard_normal(scales) * 0.01).astype(np.float16)
        self.m = (rng.standard_normal(scales) * 0.05).astype(np.float16)
        self.w_scale = rng.standard_normal(spec.op.n).astype(np.float32)

    def inputs(self) -> list[np.ndarray]:
        spec, sliced, cols = self.spec, self.sliced, self.spec.tile.cols
        # The stream's buffer is of worst-case size, its end undefined.
        msb = np.full(sliced.lsb.size, 0xAA, np.uint8)
        msb[: sliced.msb.size] = sliced.msb
        found = [sliced.lsb, sliced.pbm, msb, sliced.row_ptr]
        weight, k = panels(self.w, cols), spec.op.digit_bits
        bias = slicing.bias_term(self.w, k, self.window)
        if not spec.op.scaled:
            return [*found, weight, panels(bias, cols)]
        if not spec.op.group_size:
            return [*found, self.act_scale, weight, panels(self.w_scale, cols), panels(bias, cols)]
        group_w = self.w.reshape(spec.op.n, max(spec.op.groups, 1), -1).sum(axis=2, dtype=np.int32)
        bias = slicing.window_bias(spec.op.digit_bits, self.window)
        offset = -bias * (group_w * self.d.astype("f8")).sum(1)
        found += [self.act_scale, weight, panels(self.d, cols, "float32"), panels(offset, cols)]
        if spec.op.has_min:
            found += [panels(self.m, cols, "float32"), self.sliced.group_sums(spec.op.group_size)]
        return found

    def run(self, target: Any = NATIVE) -> np.ndarray:
        shape = (self.q.shape[0], self.spec.op.n)
        kernel = split_dense_kernel(self.spec)
        return run_kernel(kernel, self.inputs(), [(shape, self.spec.op.out_dtype)], target)[0]

    def expected(self) -> np.ndarray:
        q, w = self.q.astype(np.int64), self.w.astype(np.int64)
        if not self.spec.op.group_size:
            acc = (q @ w.T).astype(np.int32)
            if not self.spec.op.scaled:
                return acc
            return (acc.astype(np.float32) * self.act_scale) * self.w_scale
        total = np.zeros((q.shape[0], w.shape[0]))
        for g in range(self.spec.op.groups):
            of = slice(g * self.spec.op.group_size, (g + 1) * self.spec.op.group_size)
            total += (q[:, of] @ w[:, of].T) * self.d[:, g].astype(np.float64)
            if self.spec.op.has_min:
                total += q[:, of].sum(1, keepdims=True) * self.m[:, g].astype(np.float64)
        return total.astype(np.float32) * self.act_scale

    def check(self, target: Any = NATIVE) -> None:
        np.testing.assert_array_equal(self.run(target), self.expected())


@pytest.mark.parametrize("form", ["int32", "channel", "grouped"])
@pytest.mark.parametrize(("k", "bits"), [(2, 2), (2, 8), (4, 2), (4, 4), (4, 8), (8, 4), (8, 8)])
def test_equals_the_integer_product(form: str, k: int, bits: int) -> None:
    # N is no multiple of a panel; K no multiple of a byte's digits where there are no groups.
    columns = 40 if form == "grouped" else 37
    spec = spec_of(form, columns, 2 * TILE.cols + 5, digit_bits=k, weight_bits=bits)
    if form == "grouped":
        spec = replace(spec, op=replace(spec.op, has_min=bits == 4))
    for rows, window in [(0, "signed"), (1, "signed"), (1, "unsigned"), (7, "unsigned")]:
        Problem(spec, rows, window).check()


@settings(max_examples=6, deadline=None)
@given(
    form=st.sampled_from(["int32", "channel", "grouped"]),
    columns=st.integers(1, 70),
    channels=st.integers(1, 40),
    rows=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_random_shapes(form: str, columns: int, channels: int, rows: int, seed: int) -> None:
    columns = columns * 8 if form == "grouped" else columns
    Problem(spec_of(form, columns, channels), rows, seed=seed).check()


@pytest.mark.parametrize("form", ["channel", "grouped"])
def test_many_rows_and_whole_panels(form: str) -> None:
    spec = spec_of(form, 96, 2 * TILE.cols, group_size=32 if form == "grouped" else 0)
    # 300 rows are more than a block.
    for rows in (1, 2, 15, 16, 300):
        Problem(spec, rows).check()


@pytest.mark.parametrize(("form", "group_size"), [("channel", 0), ("grouped", 1000)])
def test_long_sums_of_wide_weights_are_cut_into_exact_chunks(form: str, group_size: int) -> None:
    # 2000 * 127 * 128 is above 2^24, so float32 alone could not hold the sum.
    spec = spec_of(form, 2000, TILE.cols, weight_bits=8, group_size=group_size)
    assert spec.chunk < 1000
    problem = Problem(spec, 3)
    problem.q[:] = 119
    problem.w[:] = 127
    problem.sliced = slicing.encode(problem.q)
    problem.check()
    Problem(spec, 1).check()


@pytest.mark.parametrize("scale_shape", [(), (1,), (1, 1)])
def test_one_scale_for_all_rows(scale_shape: tuple[int, ...]) -> None:
    form = "channel" if scale_shape == (1,) else "grouped"
    Problem(spec_of(form, 16, TILE.cols, scale_shape=scale_shape), 5).check()


@pytest.mark.parametrize("value", [0, 100])
def test_all_zero_and_all_dense_msb_planes(value: int) -> None:
    problem = Problem(spec_of("int32", 33, TILE.cols), 4)
    problem.q[:] = value
    problem.sliced = slicing.encode(problem.q)
    problem.check()


@pytest.mark.parametrize("tile", [HostTile(4, 6), HostTile(16, 12)])
def test_other_tiles_give_the_same_bits(tile: HostTile) -> None:
    Problem(spec_of("grouped", 64, 45, tile=tile), 9).check(GENERIC)


def test_threads_do_not_change_the_result() -> None:
    problem = Problem(spec_of("grouped", 64, 5 * TILE.cols), 50)
    results = [with_threads(count, lambda: problem.run()) for count in (1, 2)]
    np.testing.assert_array_equal(*results)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    # Prefill and decode agree: a row alone gives the same bits as among others.
    spec = spec_of("grouped", 64, TILE.cols)
    many = Problem(spec, 9)
    one = Problem(spec, 1)
    one.q, one.act_scale = many.q[4:5], many.act_scale[4:5]
    one.w, one.d, one.m = many.w, many.d, many.m
    one.sliced = slicing.encode(one.q)
    np.testing.assert_array_equal(one.run(), many.run()[4:5])
