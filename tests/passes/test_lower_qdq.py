"""Quantized operands are multiplied as integers, and rescaled afterwards."""

from __future__ import annotations

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
from sparqle_tvm.passes import LowerQDQ

W = np.arange(-12, 12, dtype=np.int8).reshape(8, 3)
W_SCALE = np.array([0.1, 0.2, 0.3], np.float32)
W_ZERO = np.array([1, -2, 3], np.int8)
SHIFTED = W - W_ZERO


@I.ir_module
class Before:
    @R.function
    def channels(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            q = R.quantize(x, R.const(0.5, "float32"), R.const(5, "int8"), axis=-1)
            x8 = R.dequantize(q, R.const(0.5, "float32"), R.const(5, "int8"), axis=-1)
            w8 = R.dequantize(R.const(W), R.const(W_SCALE), R.const(W_ZERO), axis=1)
            y = R.matmul(x8, w8)
            R.output(y)
        return y

    @R.function
    def transposed(q: R.Tensor((2, "n", 8), "int8"), w: R.Tensor((3, 8), "int8")):
        with R.dataflow():
            x8 = R.dequantize(q, R.const(0.5, "float32"), R.const(0, "int8"))
            w8 = R.dequantize(w, R.const(0.25, "float32"), R.const(0, "int8"))
            y = R.matmul(x8, R.permute_dims(w8))
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def channels(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            q = R.quantize(x, R.const(0.5, "float32"), R.const(5, "int8"), axis=-1)
            wide = R.astype(q, "int32")
            weight = R.astype(R.const(SHIFTED), "int32")
            centred = R.subtract(wide, R.const(5, "int32"))
            acc = R.matmul(centred, weight, out_dtype="int32")
            scaled = R.multiply(R.astype(acc, "float32"), R.const(0.5, "float32"))
            y = R.multiply(scaled, R.const(W_SCALE))
            R.output(y)
        return y

    @R.function
    def transposed(q: R.Tensor((2, "n", 8), "int8"), w: R.Tensor((3, 8), "int8")):
        with R.dataflow():
            acc = R.matmul(q, R.permute_dims(w), out_dtype="int32")
            scaled = R.multiply(R.astype(acc, "float32"), R.const(0.5, "float32"))
            y = R.multiply(scaled, R.const(0.25, "float32"))
            R.output(y)
        return y


def test_expected_module() -> None:
    report = assert_changed(LowerQDQ, Before, Expected)
    assert report.rewritten["LowerQDQ"] == 2
    assert report.skipped == []


def product(**changes: Any) -> tvm.IRModule:
    """``matmul(dequantize(q), dequantize(w))`` with one of its parts changed."""
    form: dict[str, Any] = {
        "q": ((4, 8), "int8"),
        "q_scale": np.float32(0.5),
        "q_zero": np.int8(0),
        "w": W,
        "w_scale": W_SCALE,
        "w_zero": W_ZERO,
        "axis": 1,
        "wide": "float32",
        "zero": "int8",
        "moved": lambda x, w: (x, w),
        **changes,
    }
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType(*form["q"]))
    scale = relax.Var("scale", relax.TensorType((), "float32"))
    zero = relax.Var("zero", relax.TensorType((), form["zero"]))
    w = relax.Var("w", relax.TensorType(W.shape, "int8"))

    def value(name: str, otherwise: relax.Var) -> relax.Expr:
        return otherwise if form[name] is None else relax.const(form[name])

    with builder.function("main", [q, scale, zero, w]):
        with builder.dataflow():
            q_scale, q_zero = value("q_scale", scale), value("q_zero", zero)
            x = builder.emit(op.dequantize(q, q_scale, q_zero, -1, form["wide"]))
            w_scale, w_zero = value("w_scale", scale), value("w_zero", zero)
            weight = op.dequantize(value("w", w), w_scale, w_zero, form["axis"], form["wide"])
            x, weight = form["moved"](x, builder.emit(weight))
            y = builder.emit_output(op.matmul(x, weight, "float32"))
        builder.emit_func_output(y)
    return builder.finalize()


def test_the_form_by_hand_is_lowered() -> None:
    parameter = {"w": None, "w_zero": np.int8(0)}
    for mod in (
        product(),
        product(q_zero=np.int8(3)),
        product(q_zero=None),
        product(**parameter),
        product(**parameter, q_zero=np.int8(3)),
        product(q=((4, 8), "uint8"), q_zero=np.uint8(128)),
        product(q=((4, 8), "uint8"), q_zero=None, zero="uint8"),
        product(q=((4, 8), "int16"), q_zero=np.int16(0)),
        product(w=(W.view(np.uint8) ^ 128), w_zero=np.full(3, 128, np.uint8)),
        product(q_scale=None),
        product(w_scale=None, w_zero=np.int8(0)),
        product(w_scale=np.float32(1), w_zero=None),
        product(w=None),
    ):
        _, report = apply(LowerQDQ, mod)
        assert report.rewritten["LowerQDQ"] == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"w": W.astype(np.int16), "w_zero": W_ZERO.astype(np.int16)}, "as int8 x int16"),
        (
            {"q": ((4, 999), "int16"), "q_zero": np.int16(0), "w": np.full((999, 3), 99, "int8")},
            "sums over K = 999 can leave int32 with int16",
        ),
        ({"q_scale": np.ones(8, np.float32), "q_zero": np.zeros(8, np.int8)}, "per column of K"),
        (
            {"w_scale": np.ones(8, np.float32), "w_zero": np.zeros(8, np.int8), "axis": 0},
            "the weight has a scale per row of K",
        ),
        (
            {"w_scale": np.float32(1), "w_zero": np.int8(0), "w": W.reshape(24, 1)}
            | {"moved": lambda x, w: (x, op.reshape(w, (8, 3)))},
            "the weight is moved otherwise than transposed",
        ),
        ({"w": W.reshape(1, 8, 3), "axis": 2}, "the weight is not a matrix of known shape"),
    ],
)
def test_what_is_left_alone_and_why(changes: dict[str, Any], reason: str) -> None:
    (found,) = assert_unchanged(LowerQDQ, product(**changes))
    assert reason in found


def test_other_products_are_not_looked_at() -> None:
    """A float operand; integers that are wide already."""
    plain = product(moved=lambda x, w: (x, relax.const(np.ones((8, 3), np.float32))))
    assert assert_unchanged(LowerQDQ, plain) == []
    wide = product(q=((4, 8), "int32"), q_zero=np.int32(0))
    assert assert_unchanged(LowerQDQ, wide) == []


def const(value: Any, dtype: str = "float32") -> relax.Expr:
    return relax.const(np.asarray(value, dtype))


def spelled(q: Any, scale: Any, zero: Any = None, *, wide: bool = False) -> relax.Expr:
    """``(float(q) - zero) * scale``, the difference in floats or in int32."""
    first = op.astype(q, "int32" if wide else "float32")
    if zero is not None:
        first = op.subtract(first, op.astype(zero, "int32") if wide else zero)
    return op.multiply(op.astype(first, "float32") if wide else first, scale)


S, OF_W, Z = const(0.05), const(W_SCALE), const(0, "int8")
W8 = relax.const(W)
U8 = np.random.default_rng(5).integers(0, 256, W.shape).astype(np.uint8)
# Functions of q (2, 4, 8), a scale and a zero point of run time, one scale per row, weights: float
# operands of a product.
FORMS: dict[str, Any] = {
    "reshaped": lambda q, s, z, r, w: (
        op.reshape(op.dequantize(q, S, const(3, "int8")), (8, 8)),
        op.dequantize(W8, OF_W, const([1, -2, 3], "int8"), axis=1),
    ),
    "moved": lambda q, s, z, r, w: (
        op.permute_dims(op.dequantize(q, S, Z), [1, 0, 2]),
        op.permute_dims(op.dequantize(relax.const(W.T.copy()), OF_W, const([0, 1, 2], "int8"), 0)),
    ),
    "times numbers": lambda q, s, z, r, w: (
        op.divide(op.multiply(const(0.5), op.dequantize(q, S, Z)), const(0.3)),
        op.multiply(op.dequantize(W8, OF_W, const([0, 0, 0], "int8"), 1), const(3)),
    ),
    "spelled out": lambda q, s, z, r, w: (spelled(q, S), spelled(W8, OF_W)),
    "less zero points": lambda q, s, z, r, w: (
        spelled(q, S, const(3)),
        spelled(W8, const([W_SCALE]), const([[1, -2, 3]])),
    ),
    "integer differences": lambda q, s, z, r, w: (
        spelled(q, s, z, wide=True),
        spelled(W8, OF_W, const([1, -2, 3], "int32"), wide=True),
    ),
    "of run time": lambda q, s, z, r, w: (op.dequantize(q, s, z), op.dequantize(w, s, Z)),
    "scales of rows": lambda q, s, z, r, w: (spelled(q, r), spelled(w, OF_W)),
    "weights of 9 bits": lambda q, s, z, r, w: (
        op.dequantize(q, s, z),
        op.dequantize(relax.const(U8), OF_W, const([131, 0, 255], "uint8"), axis=1),
    ),
    "rows of weights that are outputs": lambda q, s, z, r, w: (
        spelled(q, op.multiply(r, const(1))),
        op.permute_dims(spelled(relax.const(W.T.copy()), const(W_SCALE[:, None]))),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_others_write(name: str) -> None:
    builder = relax.BlockBuilder()
    types = [
        ((2, 4, 8), "int8"),
        ((), "float32"),
        ((), "int8"),
        ((2, 4, 1), "float32"),
        (W.shape, "int8"),
    ]
    given = [relax.Var(f"p{i}", relax.TensorType(*ty)) for i, ty in enumerate(types)]
    with builder.function("main", given):
        with builder.dataflow():
            x, w = (builder.emit(each) for each in FORMS[name](*given))
            y = builder.emit_output(op.matmul(x, w))
        builder.emit_func_output(y)
    mod = builder.finalize()
    after, report = apply(LowerQDQ, mod)
    assert report.rewritten["LowerQDQ"] == 1
    split = tvm.transform.Sequential(split_passes())(after)
    assert "R.matmul" not in split.script()
    rng = np.random.default_rng(0)
    values = [
        rng.integers(-128, 128, (2, 4, 8)).astype(np.int8),
        np.float32(0.07),
        np.int8(-9),
        rng.uniform(0.01, 0.1, (2, 4, 1)).astype(np.float32),
        W,
    ]
    arrays = [np.asarray(value) for value in values]
    expected, found = Runnable(mod)(*arrays), Runnable(split)(*arrays)
    assert_equal_bits(found, Runnable(after)(*arrays))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_products_of_float16() -> None:
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((5, 8), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            x = op.dequantize(q, const(0.05, "float16"), Z, out_dtype="float16")
            w = op.dequantize(W8, const(0.1, "float16"), Z, out_dtype="float16")
            y = builder.emit_output(op.matmul(builder.emit(x), builder.emit(w)))
        builder.emit_func_output(y)
    after, report = apply(LowerQDQ, builder.finalize())
    assert report.rewritten["LowerQDQ"] == 1
    integers = np.random.default_rng(0).integers(-128, 128, (5, 8)).astype(np.int8)
    wide = np.float32(np.float16(0.05)), np.float32(np.float16(0.1))
    exact = (integers.astype(np.int64) @ W).astype(np.float32) * wide[0] * wide[1]
    assert_equal_bits(Runnable(after)(integers), exact.astype(np.float16))


@settings(max_examples=2, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_numbers_of_the_whole_pipeline(
    dtype: str, k: int, n: int, transposed: bool, seed: int
) -> None:
    """Bit by bit the documented formula; close to the float product it stands for."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-64, 64, (n, k)).astype(np.int8)
    w_zero = rng.integers(-64, 64, n).astype(np.int8)
    w_scale = rng.uniform(0.01, 1, n).astype(np.float32)
    info = np.iinfo(dtype)
    zero = np.array(rng.integers(info.min, info.max + 1), dtype)[()]
    scale = np.float32(rng.uniform(0.01, 1))
    arranged = w if transposed else np.ascontiguousarray(w.T)
    mod = product(
        q=((tvm.tirx.Var("rows", "int64"), k), dtype),
        q_scale=scale,
        q_zero=zero,
        w=arranged,
        w_scale=w_scale,
        w_zero=w_zero,
        axis=0 if transposed else 1,
        moved=lambda x, w: (x, op.permute_dims(w) if transposed else w),
    )
    steps = tvm.transform.Sequential(split_passes())
    func = steps(mod)["main"]
    calls = [b.value for b in func.body.blocks[0].bindings if dialect.op_name(b.value)]
    assert [dialect.op_name(call) for call in calls] == ["encode", "split_dense_scaled"]
    assert "multiply" not in func.script()
    plain, split = Runnable(mod), Runnable(mod, steps)
    unused = [np.float32(0), np.int8(0), W]
    for rows in (1, 4, 17):
        q = rng.integers(info.min, info.max + 1, (rows, k)).astype(dtype)
        found = split(q, *map(np.asarray, unused))
        exact = (q.astype(np.int64) - int(zero)) @ (w.astype(np.int64) - w_zero[:, None]).T
        assert_equal_bits(found, exact.astype(np.float32) * scale * w_scale)
        expected = plain(q, *map(np.asarray, unused))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())
