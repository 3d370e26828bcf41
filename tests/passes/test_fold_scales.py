"""Bias and scales behind an integer dense move into it, where no bit changes."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_changed, assert_equal_bits, assert_unchanged
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm import dialect
from sparqle_tvm.passes import FoldScales

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
BIAS = -8 * W.sum(axis=1, dtype=np.int32)
MORE = np.array([[1, -70, 900]], np.int32)
SCALE = np.array([0.1, 0.2, 0.3], np.float32)
ONES = np.ones(3, np.float32)
D, OFFSET = np.full((3, 2), 0.25, np.float16), 0.25 * BIAS


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, "n", 8), "float32"), more: R.Tensor((1, 1, 3), "int32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, label="up")
            scale = enc[4]
            acc = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="up",
            )  # fmt: skip
            with_const = R.add(acc, R.const(MORE))
            with_param = R.add(more, with_const)
            by_row = R.multiply(scale, R.astype(with_param, "float32"))
            y = R.multiply(by_row, R.const(SCALE))
            R.output(y)
        return y

    @R.function
    def grouped(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, label="up")
            scale = enc[4]
            dense = R.sparqle.split_dense_scaled(
                enc, R.const(1, "float32"), R.const(W), R.const(D), R.const(OFFSET, "float64"),
                k=4, window="signed", in_features=8, group_size=4, weight_bits=8, label="up",
            )  # fmt: skip
            y = R.multiply(dense, scale)
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, "n", 8), "float32"), more: R.Tensor((1, 1, 3), "int32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, label="up")
            scale = enc[4]
            flat = R.reshape(more, (3,))
            bias = R.add(R.const(BIAS + MORE[0]), flat)
            y = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(SCALE), bias,
                k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="up",
            )  # fmt: skip
            R.output(y)
        return y

    @R.function
    def grouped(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, label="up")
            scale = enc[4]
            y = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D), R.const(OFFSET, "float64"),
                k=4, window="signed", in_features=8, group_size=4, weight_bits=8, label="up",
            )  # fmt: skip
            R.output(y)
        return y


def test_expected_module() -> None:
    report = assert_changed(FoldScales, Before, Expected)
    assert report.rewritten["FoldScales"] == 5
    assert report.skipped == []


def after_dense(*steps: Any, outputs: int = 3, read_twice: int | None = None) -> tvm.IRModule:
    """A dense of x (5, 8) in float32 and ``steps`` behind it; one result may be read twice.

    A step is a factor, or a function of the value so far. ``"row"`` is the activation scale.
    """
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((5, 8), "float32"))
    weight, bias = relax.const(W[:outputs]), relax.const(BIAS[:outputs])
    attrs = {"k": 4, "window": "signed", "in_features": 8, "weight_bits": 8, "label": "up"}
    with builder.function("main", [x]):
        with builder.dataflow():
            enc = builder.emit(dialect.quantize_encode(x, label="up"))
            row = builder.emit(relax.TupleGetItem(enc, 4))
            values = [builder.emit(dialect.split_dense(enc, weight, bias, **attrs))]
            values.append(builder.emit(op.astype(values[0], "float32")))
            for step in steps:
                factor = row if isinstance(step, str) else step
                made = (
                    step(values[-1])
                    if isinstance(step, FunctionType)
                    else op.multiply(values[-1], factor)
                )
                values.append(builder.emit(made))
            returned = [builder.emit_output(values[-1])]
            if read_twice is not None:
                returned.append(builder.emit_output(op.abs(values[read_twice])))
        builder.emit_func_output(relax.Tuple(returned))
    return builder.finalize()


def const(*values: float) -> relax.Expr:
    return relax.const(np.array(values, np.float32))


def folded_scales(mod: tvm.IRModule) -> tuple[Any, Any] | None:
    """Activation and weight scale of the one dense, if they were folded."""
    after, _ = apply(FoldScales, mod)
    (dense,) = (b.value for b in after["main"].body.blocks[0].bindings if dialect.Dense.of(b.value))
    if dialect.op_name(dense) == "split_dense":
        return None
    act, w_scale = dense.args[1], dense.args[3]
    return (
        act.value.numpy().tolist() if isinstance(act, tvm.ir.GenericConst) else "row",
        w_scale.value.numpy().tolist(),
    )


HALF = relax.const(0.5, "float32")


@pytest.mark.parametrize(
    ("steps", "scales"),
    [
        (("row",), ("row", [1, 1, 1])),
        (("row", const(2, 3, 4)), ("row", [2, 3, 4])),
        (("row", HALF), ("row", [0.5, 0.5, 0.5])),
        (("row", const(0.5)), ("row", [0.5, 0.5, 0.5])),
        ((HALF,), (0.5, [1, 1, 1])),
        ((HALF, const(2, 3, 4)), (0.5, [2, 3, 4])),
        ((HALF, HALF), (0.5, [0.5, 0.5, 0.5])),
        ((const(2, 3, 4),), (1, [2, 3, 4])),
        ((lambda y: op.reshape(y, (1, 15)), lambda y: op.reshape(y, (5, 3)), "row"), None),
    ],
)
def test_scales_that_fold(steps: Any, scales: Any) -> None:
    assert folded_scales(after_dense(*steps)) == (scales or ("row", [1, 1, 1]))


def test_one_output_channel() -> None:
    assert folded_scales(after_dense("row", const(2), outputs=1)) == ("row", [2])


@pytest.mark.parametrize(
    ("steps", "left", "scales"),
    [
        ((const(2, 3, 4), "row"), 1, (1, [2, 3, 4])),
        ((HALF, "row"), 1, (0.5, [1, 1, 1])),
        (("row", const(2, 3, 4), HALF), 1, ("row", [2, 3, 4])),
    ],
)
def test_an_order_that_rounds_differently_is_kept(steps: Any, left: int, scales: Any) -> None:
    mod = after_dense(*steps)
    assert folded_scales(mod) == scales
    after, report = apply(FoldScales, mod)
    assert after.script().count("R.multiply(") == left
    assert [s.reason for s in report.skipped] == [
        "the scales come in an order that rounds differently"
    ]


@pytest.mark.parametrize(("twice", "scales"), [(0, None), (1, None), (2, ("row", [1, 1, 1]))])
def test_a_second_reader_keeps_the_intermediate_result(twice: int, scales: Any) -> None:
    mod = after_dense("row", const(2, 3, 4), read_twice=twice)
    assert folded_scales(mod) == scales
    _, report = apply(FoldScales, mod)
    assert report.skipped[0].reason == "the result before the scale has another reader"


@pytest.mark.parametrize(
    "step",
    [
        relax.const(np.ones((5, 3), np.float32)),  # one factor per element
        relax.const(np.ones((2, 1, 1), np.float32)),  # a batch is added
        lambda y: op.multiply(op.abs(y), const(2, 3, 4)),
        lambda y: op.add(y, const(2, 3, 4)),  # a float bias
        lambda y: op.multiply(op.astype(y, "float16"), relax.const(2.0, "float16")),
    ],
)
def test_what_is_no_scale(step: Any) -> None:
    assert assert_unchanged(FoldScales, after_dense(step)) == []


@pytest.mark.parametrize(
    ("bias", "steps"),
    [
        (np.float32(0.1) * np.float32([0.1, -70, 900]) * 3.3, None),  # no whole number
        (np.float32(0.1) * SCALE * np.float32([12345, -70, 0]), [12345, -70, 0]),
        (np.float32([[0.03]]), [3, 1.5, 1]),  # for all columns, whole in some
        (np.float32([[0.06]]), [6, 3, 2]),
        (np.float32([1e9, 0, 0]), None),  # leaves int32
        (np.float32([np.inf, 0, 0]), None),
    ],
)
def test_a_float_bias_folds_where_it_is_a_whole_number_of_steps(bias: Any, steps: Any) -> None:
    mod = after_dense(const(0.1), relax.const(SCALE), lambda y: op.add(relax.const(bias), y))
    after, report = apply(FoldScales, mod)
    whole = steps is not None and all(float(n).is_integer() for n in steps)
    assert report.rewritten["FoldScales"] == (3 if whole else 2)
    (dense,) = (b.value for b in after["main"].body.blocks[0].bindings if dialect.Dense.of(b.value))
    offset = dialect.Dense.of(dense).offset.value.numpy()
    assert_equal_bits(offset, BIAS + np.int32(steps) if whole else BIAS)
    x = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(Runnable(after)(x)[0], Runnable(mod)(x)[0], rtol=1e-5)


def test_a_gate_of_one_token_is_no_weight_scale() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 8), "float32"))
    gate = relax.Var("gate", relax.TensorType((1, 3), "float32"))
    attrs = {"k": 4, "window": "signed", "in_features": 8, "weight_bits": 8, "group_size": 0}
    with builder.function("main", [x, gate]):
        with builder.dataflow():
            enc = builder.emit(dialect.quantize_encode(x))
            weight, ones, bias = relax.const(W), relax.const(ONES), relax.const(BIAS)
            one = relax.const(1.0, "float32")
            dense = dialect.split_dense_scaled(enc, one, weight, ones, bias, **attrs)
            sigmoid = builder.emit(op.sigmoid(gate))
            y = builder.emit_output(op.multiply(builder.emit(dense), sigmoid))
        builder.emit_func_output(y)
    assert assert_unchanged(FoldScales, builder.finalize()) == []


@functools.cache
def runnable(order: str) -> tuple[Runnable, Runnable]:
    if order == "before":
        return Runnable(Before), Runnable(Before, FoldScales())
    mod = after_dense("row", const(0.1, 0.7, 1e-5), HALF)
    return Runnable(mod), Runnable(mod, FoldScales())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_same_numbers_as_before_the_pass(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plain, folded = runnable("before")
    x = rng.standard_normal((rows, 8), dtype=np.float32)
    args = [x[None], rng.integers(-(2**20), 2**20, (1, 1, 3)).astype(np.int32)]
    assert_equal_bits(folded(*args), plain(*args))
    assert_equal_bits(folded(x, function="grouped"), plain(x, function="grouped"))


def test_same_numbers_with_a_scale_that_stays() -> None:
    plain, folded = runnable("left")
    x = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    assert_equal_bits(folded(x), plain(x))
