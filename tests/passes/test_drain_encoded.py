"""A static quantization behind a dense op becomes part of its drain."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
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
from sparqle_tvm.compiler import split_passes
from sparqle_tvm.numerics import Grid, encode, requantize
from sparqle_tvm.passes import DrainEncoded

UP = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
DOWN = np.arange(-3, 3, dtype=np.int8).reshape(2, 3)
UP_SCALE, DOWN_SCALE = np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 2], np.float32)
OFFSET, NONE = -8 * UP.sum(axis=1, dtype=np.int32), np.zeros(2, np.int32)


@I.ir_module
class Before:
    @R.function
    def main(a: R.Tensor(("n", 8), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(a, k=4, window="signed", label="up")
            y = R.sparqle.split_dense_scaled(
                enc, R.const(0.5, "float32"), R.const(UP), R.const(UP_SCALE), R.const(OFFSET),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="up",
            )  # fmt: skip
            q = R.quantize(R.nn.relu(y), R.const(0.25, "float32"), R.const(-5, "int8"))
            mid = R.sparqle.encode(q, k=4, window="unsigned", label="down")
            z = R.sparqle.split_dense_scaled(
                mid, R.const(0.25, "float32"), R.const(DOWN), R.const(DOWN_SCALE), R.const(NONE),
                k=4, window="unsigned", in_features=3, group_size=0, weight_bits=4, label="down",
            )  # fmt: skip
            R.output(z)
        return z

    @R.function
    def chained(a: R.Tensor((2, "n", 8), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(a, k=4, window="signed", label="up")
            y = R.sparqle.split_dense_scaled(
                enc, R.const(0.5, "float32"), R.const(UP), R.const(UP_SCALE), R.const(OFFSET),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="up",
            )  # fmt: skip
            scaled = R.divide(y, R.const(0.25, "float32"))
            shifted = R.add(R.round(scaled), R.const(3, "float32"))
            q = R.astype(R.clip(shifted, -127, 127), "int8")
            mid = R.sparqle.encode(q, k=4, window="signed", zero_point=3, label="down")
            R.output(mid)
        return mid


@I.ir_module
class Expected:
    @R.function
    def main(a: R.Tensor(("n", 8), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(a, k=4, window="signed", label="up")
            mid = R.sparqle.split_dense_encoded(
                enc, R.const(0.5, "float32"), R.const(UP), R.const(UP_SCALE), R.const(OFFSET),
                R.const(0.25, "float32"),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="up",
                out_window="unsigned", out_low=-5, out_high=127, out_zero=-5, out_label="down",
            )  # fmt: skip
            z = R.sparqle.split_dense_scaled(
                mid, R.const(0.25, "float32"), R.const(DOWN), R.const(DOWN_SCALE), R.const(NONE),
                k=4, window="unsigned", in_features=3, group_size=0, weight_bits=4, label="down",
            )  # fmt: skip
            R.output(z)
        return z

    @R.function
    def chained(a: R.Tensor((2, "n", 8), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(a, k=4, window="signed", label="up")
            mid = R.sparqle.split_dense_encoded(
                enc, R.const(0.5, "float32"), R.const(UP), R.const(UP_SCALE), R.const(OFFSET),
                R.const(0.25, "float32"),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="up",
                out_window="signed", out_low=-127, out_high=127, out_zero=3, out_label="down",
            )  # fmt: skip
            R.output(mid)
        return mid


def test_expected_module() -> None:
    report = assert_changed(DrainEncoded, Before, Expected)
    assert report.rewritten["DrainEncoded"] == 2
    assert report.skipped == []


def layer(**changes: Any) -> tvm.IRModule:
    """A dense op, quantized and encoded, with one part of the form changed."""
    form: dict[str, Any] = {
        "between": op.nn.relu,
        "quantize": lambda y: op.quantize(y, scalar(0.25), relax.const(0, "int8")),
        "encode": {},
        "result": lambda y, q, enc: enc,
        **changes,
    }
    builder = relax.BlockBuilder()
    a = relax.Var("a", relax.TensorType((5, 8), "int8"))
    with builder.function("main", [a]):
        with builder.dataflow():
            enc = builder.emit(dialect.encode(a, window="signed", label="up"))
            attrs = {"k": 4, "window": "signed", "in_features": 8, "weight_bits": 8}
            y = builder.emit(
                dialect.split_dense_scaled(
                    *(enc, scalar(0.5), *map(relax.const, (UP, UP_SCALE, OFFSET))),
                    group_size=0,
                    **attrs,
                )
            )
            q = builder.emit(form["quantize"](builder.emit(form["between"](y))))
            mid = builder.emit(dialect.encode(q, label="down", **form["encode"]))
            found = builder.emit_output(form["result"](y, q, mid))
        builder.emit_func_output(found)
    return builder.finalize()


def scalar(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def by_hand(
    y: Any, scale: Any = 0.25, low: float = -127, high: float = 127, dtype: str = "int8"
) -> relax.Expr:
    divided = op.divide(y, scalar(scale) if isinstance(scale, float) else scale)
    return op.astype(op.clip(op.round(divided), low, high), dtype)


ROWS = relax.const(np.ones((5, 1), np.float32))
BIAS = np.array([0.7, -30.1, 5.003], np.float32)


def on_grid(
    after: Any = op.add, again: float = 0.3, zero: int = 131, relu: bool = False
) -> Callable[[Any], relax.Expr]:
    """Quantized, floats again, and then a bias is added: as onnxruntime writes a MatMul."""

    def between(y: Any) -> relax.Expr:
        point = relax.const(zero, "uint8")
        q = op.quantize(op.nn.relu(y) if relu else y, scalar(0.3), point, out_dtype="uint8")
        return after(op.dequantize(q, scalar(again), point), relax.const(BIAS))

    return between


def per_token(y: Any) -> relax.Expr:
    return by_hand(y, op.divide(op.max(op.abs(y), axis=[-1], keepdims=True), scalar(127)))


def test_relu_has_two_names() -> None:
    for between in (op.nn.relu, lambda y: op.maximum(y, scalar(0))):
        after, _ = apply(DrainEncoded, layer(between=between))
        assert "out_low=0" in after.script()


@pytest.mark.parametrize("zero", [0, 3, 117, 250, 255])
@pytest.mark.parametrize("window", ["signed", "unsigned"])
def test_uint8_around_any_zero_point(zero: int, window: str) -> None:
    def quantize(y: Any) -> relax.Expr:
        return op.quantize(y, scalar(0.25), relax.const(zero, "uint8"), out_dtype="uint8")

    encode = {"zero_point": zero, "window": window}
    for between, low in ((op.nn.relu, zero), (op.abs, None)):
        before = layer(between=between, quantize=quantize, encode=encode)
        if low is None:
            assert_unchanged(DrainEncoded, before)
            continue
        after, _ = apply(DrainEncoded, before)
        text = after.script()
        assert f"out_low={low}" in text and "out_high=255" in text and "out_signed=0" in text
        a = np.random.default_rng(zero).integers(-128, 128, (5, 8)).astype(np.int8)
        found, expected = (Runnable(m)(a) for m in (after, before))
        used = int(expected[3][-1])
        found[2], expected[2] = found[2][:used], expected[2][:used]
        assert_equal_bits(found, expected)


def with_relu(between: Callable[[Any], relax.Expr]) -> Callable[[Any], relax.Expr]:
    return lambda y: op.nn.relu(between(y))


BIASES: dict[str, tuple[Callable[[Any], relax.Expr], dict[str, Any]]] = {
    "bias": (lambda y: op.add(y, relax.const(BIAS)), {}),
    "bias first": (lambda y: op.add(relax.const(BIAS), y), {}),
    "of a row": (lambda y: op.add(y, relax.const(BIAS[None])), {}),
    "one number": (lambda y: op.add(y, scalar(1.7)), {"bias": np.full(3, 1.7, np.float32)}),
    "quantized": (
        lambda y: op.add(
            y, op.dequantize(relax.const(np.int8([9, -3, 1])), scalar(0.7), relax.const(3, "int8"))
        ),
        {"bias": (np.float32([6, -6, -2]) * np.float32(0.7)).astype(np.float32)},
    ),
    "bias and ReLU": (with_relu(lambda y: op.add(y, relax.const(BIAS))), {"low": 0}),
    "grid and bias": (on_grid(), {"mid": Grid(0.3, 131, 0, 255)}),
    "grid, bias and ReLU": (with_relu(on_grid()), {"mid": Grid(0.3, 131, 0, 255), "low": 0}),
    "grid behind a ReLU": (on_grid(zero=7, relu=True), {"mid": Grid(0.3, 7, 7, 255)}),
    "grid alone": (on_grid(lambda y, b: y), {"mid": Grid(0.3, 131, 0, 255), "bias": None}),
}


@pytest.mark.parametrize("name", BIASES)
def test_float_biases_are_added_as_numerics_defines_it(name: str) -> None:
    between, form = BIASES[name]
    before = layer(between=between)
    after, report = apply(DrainEncoded, before)
    assert report.rewritten["DrainEncoded"] == 1 and report.skipped == []
    assert apply(DrainEncoded, after)[1].rewritten["DrainEncoded"] == 0
    bias, mid = form.get("bias", BIAS), form.get("mid")
    mid = mid and replace(mid, scale=float(np.float32(mid.scale)))
    drained, undrained = Runnable(after), Runnable(before)
    for seed in range(30):
        a = np.random.default_rng(seed).integers(-128, 128, (5, 8)).astype(np.int8)
        sums = (a.astype(np.int32) @ UP.T).astype(np.float32) * np.float32(0.5) * UP_SCALE
        q = requantize(sums, Grid(0.25, 0, form.get("low", -128), 127), bias=bias, mid=mid)
        sliced = encode(q.astype(np.int8), k=4, window="unsigned")
        for found in (drained(a), undrained(a)):
            lsb, pbm, msb, pointers = found
            np.testing.assert_array_equal(lsb, sliced.lsb)
            np.testing.assert_array_equal(pbm, sliced.pbm)
            np.testing.assert_array_equal(msb[: pointers[-1]], sliced.msb)


def test_uint8_by_hand_is_clipped_to_its_type() -> None:
    changes = {"quantize": lambda y: by_hand(y, low=0, high=255, dtype="uint8")}
    after, _ = apply(DrainEncoded, layer(between=op.nn.relu, **changes))
    assert "out_high=255" in after.script()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"quantize": lambda y: by_hand(y, relax.const(np.ones(3, np.float32)))},
            "the scale differs between columns",
        ),
        ({"quantize": lambda y: by_hand(y, -1.0)}, "a positive number is needed"),
        ({"quantize": lambda y: by_hand(y, low=-1.5)}, "are no integers"),
        ({"quantize": lambda y: by_hand(y, low=-300)}, "do not fit int8"),
        ({"quantize": lambda y: by_hand(y, low=-9, high=-3)}, "hold no values"),
        ({"quantize": lambda y: op.astype(y, "int8")}, "in one of the known forms"),
        ({"quantize": lambda y: op.astype(op.clip(y, 0, 9), "int8")}, "one of the known forms"),
        ({"between": lambda y: op.maximum(y, scalar(1))}, "not the scaled result"),
        ({"between": lambda y: op.add(y, ROWS)}, "is no bias, one constant per channel"),
        ({"between": lambda y: op.add(scalar(np.inf), y)}, "the bias is not finite"),
        ({"between": on_grid(op.add, 0.5)}, "made floats again by other numbers"),
        ({"encode": {"group_size": 3}}, "need group sums, which a drain does not make"),
        ({"encode": {"k": 2}}, "digits of 2 bits, the dense op has 4"),
        (
            {"encode": {"window": "signed", "zero_point": 5}},
            "its zero point is 0, its digits are centred on 5",
        ),
        ({"result": lambda y, q, enc: relax.Tuple([y, enc])}, "has another reader"),
        ({"result": lambda y, q, enc: relax.Tuple([q, enc])}, "has another reader"),
    ],
)
def test_what_is_left_alone_and_why(changes: dict[str, Any], reason: str) -> None:
    found = assert_unchanged(DrainEncoded, layer(**changes))
    assert reason in found[-1]


def test_what_is_no_result_of_a_dense_is_not_looked_at() -> None:
    assert assert_unchanged(DrainEncoded, layer(between=op.sigmoid)) == []
    # The scale of a token needs the whole row, which no tile has.
    assert assert_unchanged(DrainEncoded, layer(quantize=per_token)) == []


@functools.cache
def plain_and_drained() -> tuple[Runnable, Runnable]:
    return Runnable(Before), Runnable(Before, DrainEncoded())


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_same_numbers_as_before_the_pass(rows: int, seed: int) -> None:
    a = np.random.default_rng(seed).integers(-128, 128, (rows, 8)).astype(np.int8)
    plain, drained = plain_and_drained()
    assert_equal_bits(drained(a), plain(a))
    found, expected = (f(np.stack([a, a]), function="chained") for f in (drained, plain))
    used = int(expected[3][-1])
    found[2], expected[2] = found[2][:used], expected[2][:used]
    assert_equal_bits(found, expected)


@I.ir_module
class Mlp:
    """Two layers as frontends give them: quantize, dequantize, matmul."""

    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            s, z = R.const(0.5, "float32"), R.const(0, "int8")
            q = R.dequantize(R.quantize(x, s, z), s, z)
            y = R.matmul(q, R.dequantize(R.const(UP.T), R.const(UP_SCALE), R.const(np.zeros(3, np.int8)), axis=1))  # noqa: E501  # fmt: skip
            t, v = R.const(0.25, "float32"), R.const(-128, "int8")
            p = R.dequantize(R.quantize(R.nn.relu(y), t, v), t, v)
            w = R.matmul(p, R.dequantize(R.const(DOWN.T), R.const(0.25, "float32"), R.const(0, "int8")))  # noqa: E501  # fmt: skip
            R.output(w)
        return w


def with_bias(kind: str) -> tvm.IRModule:
    """Two quantized layers, with a bias as onnxruntime writes it, or as a float of that."""
    builder, step = relax.BlockBuilder(), np.float32(0.02)
    s, z, ws = scalar(0.02), relax.const(0, "int8"), scalar(0.02)
    bias = np.array([31, -700, 0], np.int32)
    q = relax.Var("q", relax.TensorType((5, 8), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():

            def dequantize(x: Any, scale: Any = s) -> Any:
                return builder.emit(op.dequantize(x, scale, z))

            h = builder.emit(op.matmul(dequantize(q), dequantize(relax.const(UP.T), ws)))
            if kind == "quantized":
                of_sum, none = relax.const(step * step), relax.const(0, "int32")
                h = builder.emit(op.add(h, op.dequantize(relax.const(bias), of_sum, none, axis=0)))
            elif kind == "float":
                h = builder.emit(op.add(relax.const(bias * (step * step)), h))
            elif kind == "any":
                h = builder.emit(op.add(h, relax.const(bias * step * step * np.float32(0.7))))
            p = builder.emit(op.quantize(builder.emit(op.nn.relu(h)), scalar(0.05), z))
            down = dequantize(relax.const(DOWN.T), ws)
            y = builder.emit_output(op.matmul(dequantize(p, scalar(0.05)), down))
        builder.emit_func_output(y)
    return builder.finalize()


@pytest.mark.parametrize("kind", ["quantized", "float", "any"])
def test_a_bias_does_not_block_the_drain(kind: str) -> None:
    split, mod = tvm.transform.Sequential(split_passes()), with_bias(kind)
    after, report = apply(DrainEncoded, split(mod))
    assert report.rewritten["DrainEncoded"] == 1
    assert report.skipped == []
    q = np.random.default_rng(0).integers(-128, 128, (5, 8)).astype(np.int8)
    bias, step = np.array([31, -700, 0]), np.float32(0.02)
    # In steps of the sum it is added to the integers.
    total = q.astype(np.int64) @ UP.T + bias * (kind != "any")
    hidden = total.astype(np.float32) * step * step
    if kind == "any":
        hidden += bias.astype(np.int32) * step * step * np.float32(0.7)
    p = np.clip(np.rint(np.maximum(hidden, 0) / np.float32(0.05)), -128, 127)
    expected = (p.astype(np.int64) @ DOWN.T).astype(np.float32)
    found = Runnable(after)(q)
    assert_equal_bits(found, expected * np.float32(0.05) * step)
    np.testing.assert_allclose(found, Runnable(mod)(q), atol=0.011)


def test_the_pipeline_drains_what_a_frontend_gives() -> None:
    before = tvm.transform.Sequential(split_passes())(Mlp)
    after, report = apply(DrainEncoded, before)
    assert report.rewritten["DrainEncoded"] == 1
    x = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32) * 20
    assert_equal_bits(Runnable(after)(x), Runnable(before)(x))
