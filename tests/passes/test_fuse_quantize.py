"""Dynamic quantization per row merges with the encoding."""

from __future__ import annotations

import functools
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
from sparqle_tvm.passes import FuseQuantize

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
BIAS = -8 * W.sum(axis=1, dtype=np.int32)
ONES = np.ones(3, np.float32)
D, M = np.full((3, 2), 0.25, np.float16), np.full((3, 2), -1, np.float16)
OFFSET = 0.25 * BIAS.astype(np.float64)


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, "n", 8), "float32")):
        with R.dataflow():
            amax = R.max(R.abs(x), axis=[-1], keepdims=True)
            scale = R.divide(R.maximum(amax, R.const(1e-30, "float32")), R.const(119, "float32"))
            q = R.astype(R.clip(R.round(R.divide(x, scale)), -119, 119), "int8")
            enc = R.sparqle.encode(q, k=4, window="signed", label="up")
            acc = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="up",
            )  # fmt: skip
            y = R.multiply(R.astype(acc, "float32"), scale)
            R.output(y)
        return y

    @R.function
    def grouped(x: R.Tensor(("n", 8), "float32")):
        # The group sums move to field 5; scale and q have other readers, too.
        with R.dataflow():
            amax = R.max(R.abs(x), axis=[1], keepdims=True)
            scale = R.divide(R.maximum(amax, R.const(1e-30, "float32")), R.const(127, "float32"))
            q = R.astype(R.clip(R.round(R.divide(x, scale)), -127, 127), "int8")
            enc = R.sparqle.encode(q, k=4, window="unsigned", group_size=4, label="up")
            sums = enc[4]
            y = R.sparqle.split_dense_scaled(
                enc, R.const(1, "float32"), R.const(W), R.const(D), R.const(OFFSET, "float64"),
                R.const(M), sums, k=4, window="unsigned", in_features=8, group_size=4,
                weight_bits=8, label="up",
            )  # fmt: skip
            z = R.multiply(y, scale)
            back = R.multiply(R.astype(q, "float32"), scale)
            R.output(z, back, scale)
        return (z, back, scale)


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, "n", 8), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, k=4, window="signed", qmax=119, label="up")
            scale = enc[4]
            acc = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="up",
            )  # fmt: skip
            y = R.multiply(R.astype(acc, "float32"), scale)
            R.output(y)
        return y

    @R.function
    def grouped(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            amax = R.max(R.abs(x), axis=[1], keepdims=True)
            scale = R.divide(R.maximum(amax, R.const(1e-30, "float32")), R.const(127, "float32"))
            q = R.astype(R.clip(R.round(R.divide(x, scale)), -127, 127), "int8")
            enc = R.sparqle.quantize_encode(
                x, k=4, window="unsigned", qmax=127, group_size=4, label="up"
            )
            fused = enc[4]
            sums = enc[5]
            y = R.sparqle.split_dense_scaled(
                enc, R.const(1, "float32"), R.const(W), R.const(D), R.const(OFFSET, "float64"),
                R.const(M), sums, k=4, window="unsigned", in_features=8, group_size=4,
                weight_bits=8, label="up",
            )  # fmt: skip
            z = R.multiply(y, fused)
            back = R.multiply(R.astype(q, "float32"), fused)
            R.output(z, back, scale)
        return (z, back, scale)


def test_expected_module() -> None:
    report = assert_changed(FuseQuantize, Before, Expected)
    assert report.rewritten["FuseQuantize"] == 2
    assert report.skipped == []


def quantizer(**changes: Any) -> tvm.IRModule:
    """x (5, 8) quantized and encoded, with one part of the form changed; returns the planes."""
    form: dict[str, Any] = {
        "x": "float32",
        "amax": lambda x: op.max(op.abs(x), axis=[-1], keepdims=True),
        "eps": 1e-30,
        "scale": lambda amax: op.divide(amax, relax.const(119.0, "float32")),
        "steps": op.divide,
        "clip": (-119, 119),
        "result": lambda enc: relax.TupleGetItem(enc, 0),
        **changes,
    }
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((5, 8), form["x"]))
    with builder.function("main", [x]):
        with builder.dataflow():
            amax = op.maximum(form["amax"](x), relax.const(form["eps"], form["x"]))
            scale = builder.emit(form["scale"](builder.emit(amax)))
            q = op.astype(op.clip(op.round(form["steps"](x, scale)), *form["clip"]), "int8")
            enc = builder.emit(dialect.encode(builder.emit(q), label="up"))
            y = builder.emit_output(form["result"](enc))
        builder.emit_func_output(y)
    return builder.finalize()


def reciprocal(x: Any, scale: Any) -> relax.Expr:
    return op.multiply(x, op.divide(relax.const(1.0, "float32"), scale))


def test_steps_by_the_inverse_of_a_scale_are_another_quantization() -> None:
    assert not assert_unchanged(FuseQuantize, quantizer(steps=reciprocal))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eps": 1e-12}, "not bounded below by 1e-30"),
        ({"amax": lambda x: op.max(op.abs(x), keepdims=True)}, "the scale is not per row"),
        ({"amax": lambda x: op.max(op.abs(x), axis=[0], keepdims=True)}, "not per row"),
        ({"amax": lambda x: op.max(op.abs(op.abs(x)), axis=[1], keepdims=True)}, "same tensor"),
        ({"amax": lambda x: op.max(x, axis=[-1], keepdims=True)}, "the scale is not max"),
        ({"scale": lambda amax: relax.const(np.ones((5, 1), np.float32))}, "the scale is not max"),
        ({"scale": lambda a: op.divide(a, relax.const(127.0, "float32"))}, "by the limit 119"),
        ({"clip": (-128, 127)}, "symmetric integer limits are needed"),
        ({"clip": (-118.5, 118.5)}, "symmetric integer limits are needed"),
        ({"clip": (-200, 200)}, "clips to 200, a limit from 1 to 127 is needed"),
        ({"clip": (0, 0)}, "clips to 0, a limit"),
        ({"result": lambda enc: enc}, "the encoding as a whole is returned or passed on"),
    ],
)
def test_what_is_left_alone_and_why(changes: dict[str, Any], reason: str) -> None:
    (found,) = assert_unchanged(FuseQuantize, quantizer(**changes))
    assert reason in found


def test_float16_is_left_alone() -> None:
    mod = quantizer(
        x="float16", eps=1e-6, scale=lambda a: op.divide(a, relax.const(119.0, "float16"))
    )
    assert assert_unchanged(FuseQuantize, mod) == ["quantizes float16, float32 is needed"]


def test_an_integer_tensor_is_left_alone() -> None:
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((5, 8), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            y = builder.emit_output(dialect.encode(q, group_size=4))
        builder.emit_func_output(y)
    assert assert_unchanged(FuseQuantize, builder.finalize()) == []


@I.ir_module
class Scopes:
    """The scale outlives the block that encodes; or the next block reads the encoding."""

    @R.function
    def branch(x: R.Tensor((5, 8), "float32"), flag: R.Tensor((), "bool")):
        amax = R.max(R.abs(x), axis=[1], keepdims=True)
        scale = R.divide(R.maximum(amax, R.const(1e-30, "float32")), R.const(119, "float32"))
        if flag:
            q = R.astype(R.clip(R.round(R.divide(x, scale)), -119, 119), "int8")
            enc = R.sparqle.encode(q, k=4, window="signed", label="up")
            acc = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="up",
            )  # fmt: skip
            y = R.multiply(R.astype(acc, "float32"), scale)
        else:
            y = R.multiply(R.zeros((5, 3), "float32"), scale)
        z = R.multiply(y, scale)
        return z

    @R.function
    def blocks(x: R.Tensor((5, 8), "float32")):
        with R.dataflow():
            amax = R.max(R.abs(x), axis=[1], keepdims=True)
            scale = R.divide(R.maximum(amax, R.const(1e-30, "float32")), R.const(119, "float32"))
            q = R.astype(R.clip(R.round(R.divide(x, scale)), -119, 119), "int8")
            enc = R.sparqle.encode(q, k=4, window="signed", group_size=4, label="up")
            R.output(enc, scale)
        between = R.abs(scale)
        with R.dataflow():
            sums = enc[4]
            acc = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="up",
            )  # fmt: skip
            y = R.multiply(R.astype(acc, "float32"), between)
            R.output(y, sums)
        return (y, sums)


def test_blocks_and_branches() -> None:
    after, report = apply(FuseQuantize, Scopes)
    assert report.rewritten["FuseQuantize"] == 2
    plain, fused = Runnable(Scopes), Runnable(after)
    x = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    assert_equal_bits(fused(x, function="blocks"), plain(x, function="blocks"))
    for flag in (True, False):
        args = [x, np.array(flag)]
        assert_equal_bits(fused(*args, function="branch"), plain(*args, function="branch"))


@functools.cache
def plain_and_fused() -> tuple[Runnable, Runnable]:
    return Runnable(Before), Runnable(Before, FuseQuantize())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1e-34, 1e-8, 1.0, 1e30]), st.integers(0, 2**32 - 1))
def test_same_numbers_as_before_the_pass(rows: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, 8)) * size).astype(np.float32)
    x[rng.integers(rows)] = rng.integers(-119, 120, 8) / 2  # many ties
    plain, fused = plain_and_fused()
    assert_equal_bits(fused(x[None]), plain(x[None]))
    assert_equal_bits(fused(x, function="grouped"), plain(x, function="grouped"))
