"""The split-precision dense kernels against the definition in sparqle_tvm.numerics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import GENERIC, NATIVE, nibble_panels, panels, run_kernel, with_threads

from sparqle_tvm.host.planes import SplitForm
from sparqle_tvm.host.register_tile import HostTile, host_tile
from sparqle_tvm.host.split_dense import DenseKernel, split_dense_kernel
from sparqle_tvm.numerics import slicing
from sparqle_tvm.target.op import DenseOp

TILE = host_tile(NATIVE)


def spec_of(form: str, columns: int, channels: int, **changes: Any) -> DenseKernel:
    """A kernel with int32 outputs, a scale per channel, or groups with minima.

    How integers are split is set by the `Problem`.
    """
    grouped = form == "grouped"
    op = DenseOp(1, channels, columns, output="int32" if form == "int32" else "float32")
    op = replace(op, group_size=8 * grouped, has_min=grouped)
    outside = {"scale_shape": None, "tile": TILE}
    outside |= {name: changes.pop(name) for name in outside if name in changes}
    op = replace(op, **changes)
    return DenseKernel(op, SplitForm("signed", op.digit_bits), lead=1, **outside)


class Problem:
    """Random operands of a kernel, with its exact result."""

    def __init__(
        self,
        spec: DenseKernel,
        rows: int,
        window: str = "signed",
        seed: int = 0,
        signed: bool = True,
        zeros: Literal["", "one", "row"] = "",
    ) -> None:
        rng = np.random.default_rng(seed)
        k, shape = spec.op.digit_bits, (rows, spec.op.k)
        low = -(2 ** (2 * k - 1)) if signed else 0
        high = low + 4**k - 1
        integer = ("int16" if k == 8 else "int8") if signed else ("uint16" if k == 8 else "uint8")
        self.zeros = np.zeros((rows, 1), integer)
        if zeros:
            self.zeros[:] = rng.integers(low, high + 1, (rows, 1) if zeros == "row" else ())
            # The ends are as likely as all the rest.
            self.zeros[rng.random((rows, 1)) < (0.5 if zeros == "row" else 0)] = low
        q = np.rint(rng.standard_normal(shape) * 4**k / 12) + self.zeros
        q = np.clip(q, low, high)
        q[rng.random(shape) < 0.1] = low
        q[rng.random(shape) < 0.1] = high
        self.q = q.astype(integer)
        spec = replace(spec, form=SplitForm(window, k, signed, zeros))
        bits = spec.op.weight_bits
        half = 2 ** (bits - 1)
        span = (-half, half) if bits == 8 or seed % 2 else (0, 2 * half)
        self.w = rng.integers(*span, (spec.op.n, spec.op.k)).astype(np.int8)
        self.spec, self.window = spec, window
        self.encode()
        scale_shape = (rows, 1) if spec.scale_shape is None else spec.scale_shape
        self.act_scale = (rng.random(scale_shape) + 0.1).astype(np.float32)
        scales = (spec.op.n, max(spec.op.groups, 1))
        self.d = (rng.standard_normal(scales) * 0.01).astype(np.float16)
        self.m = (rng.standard_normal(scales) * 0.05).astype(np.float16)
        self.w_scale = rng.standard_normal(spec.op.n).astype(np.float32)

    def encode(self) -> None:
        k = self.spec.op.digit_bits
        self.sliced = slicing.encode(self.q, k=k, window=self.window, zero_point=self.zeros)

    def inputs(self) -> list[np.ndarray]:
        spec, sliced, cols = self.spec, self.sliced, self.spec.tile.cols
        # The stream's buffer is of worst-case size, its end undefined.
        msb = np.full(sliced.lsb.size, 0xAA, np.uint8)
        msb[: sliced.msb.size] = sliced.msb
        found = [sliced.lsb, sliced.pbm, msb, sliced.row_ptr]
        if spec.form.zeros:
            found.append(self.zeros if spec.form.zeros == "row" else self.zeros[0])
        arranged = nibble_panels if spec.op.weight_bits <= 4 else panels
        weight, offset = arranged(self.w, cols), self.offset()
        bias = self.w.sum(axis=1, dtype=np.int32) * offset
        if not spec.op.scaled:
            return [*found, weight, panels(bias, cols)]
        if not spec.op.group_size:
            return [*found, self.act_scale, weight, panels(self.w_scale, cols), panels(bias, cols)]
        group_w = self.w.reshape(spec.op.n, max(spec.op.groups, 1), -1).sum(axis=2, dtype=np.int32)
        offset = offset * (group_w * self.d.astype("f8")).sum(1)
        found += [self.act_scale, weight, panels(self.d, cols, "float32"), panels(offset, cols)]
        if spec.op.has_min:
            found += [panels(self.m, cols, "float32"), self.sliced.group_sums(spec.op.group_size)]
        return found

    def offset(self) -> int:
        """What the constants of channels undo, per weight: what rows differ in is left out."""
        if self.spec.form.zeros == "row":
            return -self.sliced.digits.bias
        return int(self.sliced.digits.offset.flat[0]) if len(self.q) else 0

    def run(self, target: Any = NATIVE) -> np.ndarray:
        shape = (self.q.shape[0], self.spec.op.n)
        kernel = split_dense_kernel(self.spec)
        return run_kernel(kernel, self.inputs(), [(shape, self.spec.op.out_dtype)], target)[0]

    def expected(self) -> np.ndarray:
        # Rows with zero points of their own lack their shift: q - centre is multiplied.
        rows = self.spec.form.zeros == "row"
        minus = self.sliced.digits.centre if rows else self.zeros.astype(np.int64)
        q, w = self.q.astype(np.int64) - minus, self.w.astype(np.int64)
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
                real = self.q[:, of].astype(np.int64) - self.zeros
                total += real.sum(1, keepdims=True) * self.m[:, g].astype(np.float64)
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


# Stored digits of the unsigned window do not depend on zero points.
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("window", "zeros"), [("unsigned", ""), ("signed", ""), ("signed", "one"), ("signed", "row")]
)
def test_types_and_zero_points(window: str, signed: bool, zeros: Literal["", "one", "row"]) -> None:
    for k, bits in ((2, 4), (4, 4), (4, 8), (8, 4)):
        for form in ("int32", "grouped"):
            spec = spec_of(form, 40, TILE.cols + 3, digit_bits=k, weight_bits=bits)
            for rows in (1, 7):
                Problem(spec, rows, window, seed=rows, signed=signed, zeros=zeros).check()


def test_all_values_with_all_zero_points() -> None:
    for signed in (True, False):
        problem = Problem(spec_of("int32", 256, TILE.cols), 256, signed=signed, zeros="row")
        values = np.arange(256).astype(np.uint8).view(problem.q.dtype)
        problem.q, problem.zeros = np.repeat(values[None], 256, axis=0), values[:, None]
        problem.encode()
        problem.check()


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
    problem.q[:] = 127
    problem.w[:] = 127
    problem.encode()
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
    problem.encode()
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
    one.encode()
    np.testing.assert_array_equal(one.run(), many.run()[4:5])
