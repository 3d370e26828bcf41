"""Integer matmuls with weights become split-precision dense ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_changed, assert_equal_bits, assert_unchanged
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm import dialect
from sparqle_tvm.api import compile, pipeline
from sparqle_tvm.numerics.quantization import pack_int4
from sparqle_tvm.passes import SplitPrecision

WEIGHT = np.arange(-12, 3, dtype=np.int8).reshape(3, 5)
SUMS = WEIGHT.sum(axis=1, dtype=np.int32)


@I.ir_module
class Constants:
    """A transposed constant, and one as ``matmul`` takes it behind a quantizer that clips."""

    @R.function
    def transposed(q: R.Tensor(("n", 5), "int8")):
        with R.dataflow():
            acc = R.matmul(q, R.permute_dims(R.const(WEIGHT)), out_dtype="int32")
            R.output(acc)
        return acc

    @R.function
    def clipped(x: R.Tensor((2, "n", 5), "float32")):
        with R.dataflow():
            q = R.astype(R.clip(R.round(x), -119, 119), "int8")
            acc = R.matmul(q, R.const(np.ascontiguousarray(WEIGHT.T)), out_dtype="int32")
            R.output(acc)
        return acc


@I.ir_module
class ConstantsExpected:
    @R.function
    def transposed(q: R.Tensor(("n", 5), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=4, window="signed", label="acc")
            acc = R.sparqle.split_dense(
                enc, R.const(WEIGHT), R.const(-8 * SUMS),
                k=4, window="signed", in_features=5, weight_bits=8, label="acc",
            )  # fmt: skip
            R.output(acc)
        return acc

    @R.function
    def clipped(x: R.Tensor((2, "n", 5), "float32")):
        with R.dataflow():
            q = R.astype(R.clip(R.round(x), -119, 119), "int8")
            enc = R.sparqle.encode(q, k=4, window="signed", label="acc")
            acc = R.sparqle.split_dense(
                enc, R.const(WEIGHT), R.const(-8 * SUMS),
                k=4, window="signed", in_features=5, weight_bits=8, label="acc",
            )  # fmt: skip
            R.output(acc)
        return acc


@I.ir_module
class Parameters:
    @R.function
    def transposed(q: R.Tensor((5,), "int8"), w: R.Tensor((3, 5), "int8")):
        with R.dataflow():
            acc = R.matmul(q, R.permute_dims(w), out_dtype="int32")
            R.output(acc)
        return acc

    @R.function
    def plain(q: R.Tensor(("n", 5), "int16"), w: R.Tensor((5, 3), "int8")):
        with R.dataflow():
            small = R.minimum(q, R.const(1000, "int16"))
            acc = R.matmul(small, w, out_dtype="int32")
            R.output(acc)
        return acc


@I.ir_module
class ParametersExpected:
    @R.function
    def transposed(q: R.Tensor((5,), "int8"), w: R.Tensor((3, 5), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=4, window="signed", label="acc")
            sums = R.sum(R.astype(w, "int32"), axis=[1])
            bias = R.multiply(sums, R.const(-8, "int32"))
            acc = R.sparqle.split_dense(
                enc, w, bias,
                k=4, window="signed", in_features=5, weight_bits=8, label="acc",
            )  # fmt: skip
            R.output(acc)
        return acc

    @R.function
    def plain(q: R.Tensor(("n", 5), "int16"), w: R.Tensor((5, 3), "int8")):
        with R.dataflow():
            small = R.minimum(q, R.const(1000, "int16"))
            rows = R.permute_dims(w)
            enc = R.sparqle.encode(small, k=8, window="signed", label="acc")
            sums = R.sum(R.astype(rows, "int32"), axis=[1])
            bias = R.multiply(sums, R.const(-128, "int32"))
            acc = R.sparqle.split_dense(
                enc, rows, bias,
                k=8, window="signed", in_features=5, weight_bits=8, label="acc",
            )  # fmt: skip
            R.output(acc)
        return acc


@I.ir_module
class ZeroPoints:
    """Constant, known at run time, and one for each row."""

    @R.function
    def constant(q: R.Tensor(("n", 5), "uint8")):
        with R.dataflow():
            a = R.subtract(R.astype(q, "int32"), R.const(128, "int32"))
            b = R.astype(R.const(np.ascontiguousarray(WEIGHT.T)), "int32")
            acc = R.matmul(a, b, out_dtype="int32")
            R.output(acc)
        return acc

    @R.function
    def one(q: R.Tensor(("n", 5), "uint8"), zero: R.Tensor((), "uint8")):
        with R.dataflow():
            a = R.subtract(R.astype(q, "int32"), R.astype(zero, "int32"))
            b = R.astype(R.const(np.ascontiguousarray(WEIGHT.T)), "int32")
            acc = R.matmul(a, b, out_dtype="int32")
            R.output(acc)
        return acc

    @R.function
    def row(q: R.Tensor((2, "n", 5), "int8"), zero: R.Tensor((2, "n", 1), "int8")):
        with R.dataflow():
            a = R.subtract(R.astype(q, "int16"), R.astype(zero, "int16"))
            b = R.astype(R.const(np.ascontiguousarray(WEIGHT.T)), "int16")
            acc = R.matmul(a, b, out_dtype="int32")
            R.output(acc)
        return acc


@I.ir_module
class ZeroPointsExpected:
    @R.function
    def constant(q: R.Tensor(("n", 5), "uint8")):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=4, window="signed", zero_point=128, label="acc")
            acc = R.sparqle.split_dense(
                enc, R.const(WEIGHT), R.const(-8 * SUMS), k=4, window="signed", act_signed=0,
                zero_point=128, in_features=5, weight_bits=8, label="acc",
            )  # fmt: skip
            R.output(acc)
        return acc

    @R.function
    def one(q: R.Tensor(("n", 5), "uint8"), zero: R.Tensor((), "uint8")):
        with R.dataflow():
            enc = R.sparqle.encode(q, zero, k=4, window="signed", label="acc")
            wide = R.astype(zero, "int32")
            least = R.maximum(wide, R.const(8, "int32"))
            centre = R.minimum(least, R.const(248, "int32"))
            shift = R.subtract(centre, wide)
            flat = R.reshape(shift, (1,))
            same = R.astype(flat, "int32")
            term = R.multiply(same, R.const(SUMS))
            offset = R.add(R.const(-8 * SUMS), term)
            acc = R.sparqle.split_dense(
                enc, R.const(WEIGHT), offset, k=4, window="signed", act_signed=0,
                in_features=5, weight_bits=8, label="acc",
            )  # fmt: skip
            R.output(acc)
        return acc

    @R.function
    def row(q: R.Tensor((2, "n", 5), "int8"), zero: R.Tensor((2, "n", 1), "int8")):
        with R.dataflow():
            enc = R.sparqle.encode(q, zero, k=4, window="signed", label="acc")
            wide = R.astype(zero, "int32")
            least = R.maximum(wide, R.const(-120, "int32"))
            centre = R.minimum(least, R.const(120, "int32"))
            shift = R.subtract(centre, wide)
            acc = R.sparqle.split_dense(
                enc, R.const(WEIGHT), R.const(-8 * SUMS),
                k=4, window="signed", in_features=5, weight_bits=8, label="acc",
            )  # fmt: skip
            correction = R.multiply(shift, R.const(SUMS))
            total = R.add(acc, correction)
            R.output(total)
        return total


def test_zero_points_become_part_of_the_encoding() -> None:
    report = assert_changed(SplitPrecision, ZeroPoints, ZeroPointsExpected)
    assert report.rewritten["SplitPrecision"] == 3
    assert report.skipped == []


ZERO_FORMS = ("none", "constant", "one", "row")


def zero_point_module(
    q_dtype: str, form: str, w: np.ndarray, zero: int, wide: str = "int32"
) -> tvm.IRModule:
    """(cast(q) - zero point) @ w with int32 results, as other frameworks write it."""
    builder, op = relax.BlockBuilder(), relax.op
    rows = tvm.tirx.Var("rows", "int64")
    q = relax.Var("q", relax.TensorType((rows, w.shape[1]), q_dtype))
    shape = (rows, 1) if form == "row" else ()
    zeros = relax.Var("zero", relax.TensorType(shape, q_dtype))
    run_time = form in ("one", "row")
    with builder.function("main", [q, zeros] if run_time else [q]):
        with builder.dataflow():
            a = builder.emit(op.astype(q, wide))
            if run_time:
                a = builder.emit(op.subtract(a, builder.emit(op.astype(zeros, wide))))
            elif form == "constant":
                a = builder.emit(op.subtract(a, relax.const(zero, wide)))
            b = builder.emit(op.permute_dims(builder.emit(op.astype(relax.const(w), wide))))
            acc = builder.emit_output(op.matmul(a, b, "int32"))
        builder.emit_func_output(acc)
    return builder.finalize()


@pytest.mark.parametrize("form", ZERO_FORMS)
@pytest.mark.parametrize("q_dtype", ["int8", "uint8", "int16", "uint16"])
@settings(max_examples=3, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_zero_points_are_exact(
    q_dtype: str, form: str, k: int, n: int, bits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    half = 2 ** (bits - 1)
    w = rng.integers(-half, half, (n, k)).astype(np.int8)
    info = np.iinfo(q_dtype)
    # The ends of the type are as likely as all the rest.
    ends = [info.min, info.min + 1, info.max - 1, info.max]
    zero = int(rng.choice([*ends, *rng.integers(info.min, info.max + 1, 4)]))
    mod = zero_point_module(q_dtype, form, w, zero)
    _, report = apply(SplitPrecision, mod)
    assert report.rewritten["SplitPrecision"] == 1
    run = Runnable(mod, SplitPrecision())
    for rows in (1, 5):
        q = rng.integers(info.min, info.max + 1, (rows, k)).astype(q_dtype)
        q.flat[: len(ends)] = np.array(ends, q_dtype)[: q.size]
        zeros: Any = {"none": 0, "constant": zero, "one": zero}.get(form)
        if form == "row":
            zeros = rng.choice([*ends, zero], (rows, 1))
        args = [q] if form in ("none", "constant") else [q, np.array(zeros, q_dtype)]
        exact = (q.astype(np.int64) - zeros) @ w.T.astype(np.int64)
        assert_equal_bits(run(*args), exact.astype(np.int32))


def test_plain_int8_stores_the_digits_of_the_signed_window_alone() -> None:
    w = np.eye(256, dtype=np.int8)[:3]
    q = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)
    executable = compile(zero_point_module("int8", "none", w, 0), collect_encodings=True)
    np.testing.assert_array_equal(executable["main"](q).numpy(), q[:, :3].astype(np.int32))
    (record,) = executable.encodings
    stored = np.unpackbits(record.pbm, axis=1, bitorder="little")[0]
    np.testing.assert_array_equal(stored, (q[0] < -8) | (q[0] > 7))
    assert record.window == "signed"


@pytest.mark.parametrize(
    ("zero", "reason"),
    [
        (relax.const(np.arange(8), "int32"), "several constant zero points"),
        (relax.const(256, "int32"), "the zero point 256 is no uint8"),
        (relax.const(-1, "int32"), "the zero point -1 is no uint8"),
        (relax.Var("z", relax.TensorType((), "int32")), "comes at run time and is no uint8"),
        (relax.Var("z", relax.TensorType((), "int8")), "comes at run time and is no uint8"),
        (relax.Var("z", relax.TensorType((8,), "uint8")), "neither one number nor one for each"),
    ],
)
def test_zero_points_that_are_none(zero: Any, reason: str) -> None:
    builder, op = relax.BlockBuilder(), relax.op
    q = relax.Var("q", relax.TensorType((4, 8), "uint8"))
    with builder.function("main", [q, zero] if isinstance(zero, relax.Var) else [q]):
        with builder.dataflow():
            wide = builder.emit(op.astype(q, "int32"))
            if str(zero.ty.dtype) != "int32":
                zero = builder.emit(op.astype(zero, "int32"))
            a = builder.emit(op.subtract(wide, zero))
            weight = relax.const(np.ones((8, 3), np.int32))
            found = builder.emit_output(op.matmul(a, weight, "int32"))
        builder.emit_func_output(found)
    (found,) = assert_unchanged(SplitPrecision, builder.finalize())
    assert reason in found


@pytest.mark.parametrize(
    ("before", "expected"),
    [(Constants, ConstantsExpected), (Parameters, ParametersExpected)],
    ids=["constants", "parameters"],
)
def test_expected_module(before: tvm.IRModule, expected: tvm.IRModule) -> None:
    report = assert_changed(SplitPrecision, before, expected)
    assert report.rewritten["SplitPrecision"] == 2
    assert report.skipped == []


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", (3, 1)), ("int8", ()), ("uint8", None)])
def test_weights_less_what_is_known_at_run_time(dtype: str, zero: tuple[int, ...] | None) -> None:
    """Channels along the first axis of parameters (3, 8), transposed behind the subtraction."""
    rng, emit = np.random.default_rng(0), (builder := relax.BlockBuilder()).emit
    q, w = (rng.integers(0, 128, s).astype(t) for s, t in (((5, 8), "int8"), ((3, 8), dtype)))
    values = [q - np.int8(64), w + (np.uint8(100) if dtype == "uint8" else np.int8(-50))]
    if zero is not None:
        values.append(rng.integers(0, 120, zero).astype("int32") if zero else np.array(9, "int32"))
    params = [
        relax.Var(n, relax.TensorType(v.shape, str(v.dtype)))
        for n, v in zip("qwz", values, strict=False)
    ]
    with builder.function("main", params):
        with builder.dataflow():
            real = emit(relax.op.astype(params[1], "int32"))
            real = real if zero is None else emit(relax.op.subtract(real, params[2]))
            wide = emit(relax.op.astype(params[0], "int32"))
            y = emit(relax.op.matmul(wide, emit(relax.op.permute_dims(real)), out_dtype="int32"))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    after, report = apply(SplitPrecision, builder.finalize())
    assert report.rewritten["SplitPrecision"] == 1 and report.skipped == []
    less = values[2] if zero is not None else 0
    expected = values[0].astype(np.int32) @ (values[1].astype(np.int32) - less).T
    assert_equal_bits(Runnable(after)(*values), expected)


def matmul(q: Any, w: Any, out_dtype: str | None = "int32", moved: bool = False) -> tvm.IRModule:
    """``matmul`` of two parameters of these (shape, dtype), the second maybe computed."""
    builder = relax.BlockBuilder()
    params = [relax.Var(n, relax.TensorType(*t)) for n, t in (("q", q), ("w", w))]
    with builder.function("main", params):
        with builder.dataflow():
            second = builder.emit(relax.op.abs(params[1])) if moved else params[1]
            acc = builder.emit(relax.op.matmul(params[0], second, out_dtype), "acc")
            acc = builder.emit_output(acc)
        builder.emit_func_output(acc)
    return builder.finalize()


K = tvm.tirx.Var("k", "int64")
Q, W = ((4, 8), "int8"), ((8, 3), "int8")


@pytest.mark.parametrize(
    ("mod", "reason"),
    [
        (matmul(((4, 8), "int32"), ((8, 3), "int32")), "activations are int32"),
        (matmul(Q, ((8, 3), "int16")), "weights are int16"),
        (matmul(Q, W, None), "accumulates in int8, int32 is needed"),
        (matmul(Q, W, "int8"), "accumulates in int8, int32 is needed"),
        (matmul(Q, W, moved=True), "computed at run time"),
        (matmul(Q, ((2, 8, 3), "int8")), "weights have 3 dimensions"),
        (matmul(Q, ((8,), "int8")), "weights have 1 dimensions"),
        (matmul(((4, K), "int8"), ((K, 3), "int8")), "the shape of the weights is symbolic"),
        (matmul(((4, K), "int8"), W), "K = k of the activations is symbolic"),
        (matmul(((4, 0), "int8"), ((0, 3), "int8")), "K = 0"),
    ],
)
def test_what_is_left_alone_and_why(mod: tvm.IRModule, reason: str) -> None:
    (found,) = assert_unchanged(SplitPrecision, mod)
    assert reason in found


def test_float_matmuls_are_nobodys_business() -> None:
    mod = matmul(((4, 8), "float32"), ((8, 3), "float32"), None)
    assert assert_unchanged(SplitPrecision, mod) == []


@I.ir_module
class Cast:
    """A second operand that ``match_cast`` hides, and that is computed."""

    @R.function
    def main(q: R.Tensor((4, 8), "int8"), k: R.Tensor("int8", ndim=2)):
        with R.dataflow():
            w = R.match_cast(R.abs(k), R.Tensor((8, 3), "int8"))
            acc = R.matmul(q, w, out_dtype="int32")
            R.output(acc)
        return acc


def test_a_cast_hides_no_computed_operand() -> None:
    (found,) = assert_unchanged(SplitPrecision, Cast)
    assert "computed at run time" in found


def unpacked(form: str, columns: int, packed: Any) -> relax.Expr:
    """int4 weights (N, columns), two per byte of ``packed`` (N, ceil(columns / 2)), minus 8."""
    emit, op = relax.BlockBuilder.current().emit, relax.op
    rows, row_bytes = (int(d) for d in packed.ty.shape.values)
    low = emit(op.bitwise_and(packed, relax.const(15, "uint8")))
    high = emit(op.right_shift(packed, relax.const(4, "uint8")))
    if form == "stack":
        both = emit(op.reshape(op.stack([low, high], axis=2), (rows, 2 * row_bytes)))
    else:
        both = emit(op.concat([low, high], axis=1))
    w = emit(op.subtract(op.astype(both, "int8"), relax.const(8, "int8")))
    if columns < 2 * row_bytes:
        w = emit(op.strided_slice(w, [1], [0], [columns]))
    return emit(op.permute_dims(w))


def packed_module(form: str, columns: int, packed: np.ndarray, constant: bool) -> tvm.IRModule:
    """A dense with packed weights, its activations (2, n, columns)."""
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((2, tvm.tirx.Var("n", "int64"), columns), "int8"))
    param = relax.Var("packed", relax.TensorType(packed.shape, "uint8"))
    with builder.function("main", [q] if constant else [q, param]):
        with builder.dataflow():
            w = unpacked(form, columns, relax.const(packed) if constant else param)
            acc = builder.emit_output(relax.op.matmul(q, w, "int32"))
        builder.emit_func_output(acc)
    return builder.finalize()


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "parameter"])
@pytest.mark.parametrize(("form", "columns"), [("stack", 8), ("stack", 7), ("concat", 8)])
def test_packed_int4_weights(form: str, columns: int, constant: bool) -> None:
    rng = np.random.default_rng(columns)
    values = rng.integers(-8, 8, (3, columns)).astype(np.int8)
    stored = np.pad(values + 8, ((0, 0), (0, columns % 2)))
    if form == "concat":
        stored = stored.reshape(3, 2, -1).transpose(0, 2, 1).reshape(3, -1)
    packed = pack_int4(np.ascontiguousarray(stored))
    mod = packed_module(form, columns, packed, constant)
    after, _ = apply(SplitPrecision, mod)
    dense = [b.value for b in after["main"].body.blocks[0].bindings if dialect.op_name(b.value)][1]
    assert dialect.Op.of(dense).weight_bits == 4
    assert isinstance(dense.args[1], tvm.ir.GenericConst) == constant
    q = rng.integers(-128, 128, (2, 3, columns)).astype(np.int8)
    found = Runnable(mod, SplitPrecision())(*([q] if constant else [q, packed]))
    assert_equal_bits(found, q.astype(np.int32) @ values.T.astype(np.int32))


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.booleans(), st.integers(0, 2**32 - 1))
def test_same_numbers_as_the_plain_build(k: int, n: int, batched: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (n, k)).astype(np.int8)
    rows = tvm.tirx.Var("rows", "int64")
    q = relax.Var("q", relax.TensorType((2, rows, k) if batched else (rows, k), "int8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [q]):
        with builder.dataflow():
            w = builder.emit(relax.op.permute_dims(relax.const(weight)))
            acc = builder.emit_output(relax.op.matmul(q, w, "int32"))
        builder.emit_func_output(acc)
    mod = builder.finalize()
    plain = relax.VirtualMachine(relax.build(mod, "llvm"), tvm.cpu())
    built = relax.build(mod, "llvm", relax_pipeline=pipeline("sparqle/edge"))
    split = relax.VirtualMachine(built, tvm.cpu())
    for m in (1, 2, 5, 17):
        shape = (2, m, k) if batched else (m, k)
        values = rng.integers(-128, 128, shape) // rng.choice([1, 16, 128], (m, 1))
        arg = tvm.runtime.tensor(values.astype(np.int8))
        assert_equal_bits(split["main"](arg).numpy(), plain["main"](arg).numpy())
