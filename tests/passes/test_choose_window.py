"""Windows of encodings are changed, and the bias of the dense ops with them."""

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
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.passes import ChooseWindow

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
CHANNEL = np.array([5, -6, 7], np.int32)
BIAS = -8 * W.sum(axis=1, dtype=np.int32)
SCALE = np.array([0.1, 0.2, 0.3], np.float32)
D, M = np.full((3, 2), 0.25, np.float16), np.full((3, 2), -1, np.float16)
OFFSET = np.array([1.5, -2.25, 0])


@I.ir_module
class Unsigned:
    """Two readers of one encoding; a grouped dense; a weight that is a parameter."""

    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), w: R.Tensor((3, 8), "int8")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, window="unsigned", group_size=4, label="up")
            scale = enc[4]
            sums = enc[5]
            a = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(SCALE), R.const(CHANNEL),
                k=4, window="unsigned", in_features=8, group_size=0, weight_bits=8, label="up",
            )  # fmt: skip
            b = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D), R.const(OFFSET, "float64"), R.const(M), sums,
                k=4, window="unsigned", in_features=8, group_size=4, weight_bits=8, label="gate",
            )  # fmt: skip
            c = R.sparqle.split_dense(
                enc, w, R.const(CHANNEL),
                k=4, window="unsigned", in_features=8, weight_bits=8, label="parameter",
            )  # fmt: skip
            R.output(a, b, c)
        return (a, b, c)


@I.ir_module
class Signed:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), w: R.Tensor((3, 8), "int8")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, window="signed", group_size=4, label="up")
            scale = enc[4]
            sums = enc[5]
            a = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(SCALE), R.const(CHANNEL + BIAS),
                k=4, window="signed", in_features=8, group_size=0, weight_bits=8, label="up",
            )  # fmt: skip
            b = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D), R.const(OFFSET + 0.25 * BIAS, "float64"),
                R.const(M), sums,
                k=4, window="signed", in_features=8, group_size=4, weight_bits=8, label="gate",
            )  # fmt: skip
            added = R.multiply(R.sum(R.astype(w, "int32"), axis=[1]), R.const(-8, "int32"))
            bias = R.add(R.const(CHANNEL), added)
            c = R.sparqle.split_dense(
                enc, w, bias,
                k=4, window="signed", in_features=8, weight_bits=8, label="parameter",
            )  # fmt: skip
            R.output(a, b, c)
        return (a, b, c)


@pytest.mark.parametrize("options", [{"windows": {"up": "signed"}}, {"default": "signed"}])
def test_expected_module(options: dict[str, Any]) -> None:
    report = assert_changed(ChooseWindow, Unsigned, Signed, **options)
    assert report.rewritten["ChooseWindow"] == 1
    assert report.skipped == []


def without_parameter(mod: tvm.IRModule) -> tvm.IRModule:
    """The outputs a and b alone: their biases are constants."""
    func = mod["main"]
    body = relax.SeqExpr(func.body.blocks, relax.Tuple(list(func.body.body.fields)[:2]))
    body = relax.BlockBuilder().normalize(body)
    kept = tvm.IRModule({"main": relax.Function(func.params, body, None, True, func.attrs)})
    return relax.transform.DeadCodeElimination()(kept)


def test_there_and_back() -> None:
    mod = without_parameter(Unsigned)
    there, _ = apply(ChooseWindow, mod, default="signed")
    assert_changed(ChooseWindow, there, mod, windows={"up": "unsigned"}, default="signed")


@pytest.mark.parametrize(
    "options", [{}, {"default": "unsigned"}, {"windows": {"up": "unsigned"}, "default": "signed"}]
)
def test_nothing_to_change(options: dict[str, Any]) -> None:
    assert assert_unchanged(ChooseWindow, Unsigned, **options) == []


def test_labels_that_nothing_bears_are_reported() -> None:
    reasons = assert_unchanged(ChooseWindow, Unsigned, windows={"upp": "signed"})
    assert reasons == ["no encoding has this label"]


@pytest.mark.parametrize("options", [{"windows": {"up": "odd"}}, {"default": "odd"}])
def test_unknown_windows_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r'window "odd" of .* is neither'):
        ChooseWindow(**options)


def integer_dense(
    quantizer: Any, encoder: Any, whole: bool = False, dtype: str = "int8"
) -> tvm.IRModule:
    """Encode what ``quantizer`` makes of a parameter, and multiply it; unsigned."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), dtype))
    attrs = {"k": 4, "window": "unsigned", "in_features": 8, "weight_bits": 8}
    with builder.function("main", [x]):
        with builder.dataflow():
            q = builder.emit(quantizer(x))
            enc = builder.emit(encoder(q, window="unsigned", label="up"))
            dense = dialect.split_dense(enc, relax.const(W), relax.const(CHANNEL), **attrs)
            outputs = [builder.emit_output(dense)]
            if whole:
                outputs.append(builder.emit_output(relax.TupleGetItem(enc, 1)))
        builder.emit_func_output(relax.Tuple(outputs))
    return builder.finalize()


def test_every_value_fits_both_windows() -> None:
    for encoder, dtype in ((dialect.encode, "int8"), (dialect.quantize_encode, "float32")):
        mod = integer_dense(lambda x: x, encoder, dtype=dtype)
        _, report = apply(ChooseWindow, mod, default="signed")
        assert (report.rewritten["ChooseWindow"], report.skipped) == (1, [])


def zero_point_dense(window: str, zero_point: int, offset: np.ndarray) -> tvm.IRModule:
    """Multiply a uint8 parameter, less a constant zero point."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "uint8"))
    split = {"k": 4, "window": window, "zero_point": zero_point}
    with builder.function("main", [x]):
        with builder.dataflow():
            enc = builder.emit(dialect.encode(x, label="up", **split))
            attrs = {"act_signed": 0, "in_features": 8, "weight_bits": 8, **split}
            dense = dialect.split_dense(enc, relax.const(W), relax.const(offset), **attrs)
            found = builder.emit_output(dense)
        builder.emit_func_output(found)
    return builder.finalize()


# Of the signed window 248 is the largest centre, so 255 lacks 7 times the weights' sums.
@pytest.mark.parametrize(("zero_point", "signed"), [(100, -8), (0, 0), (255, -15)])
def test_the_correction_of_the_zero_point_follows(zero_point: int, signed: int) -> None:
    sums = W.sum(axis=1, dtype=np.int32)
    unsigned = zero_point_dense("unsigned", zero_point, CHANNEL - zero_point * sums)
    centred = zero_point_dense("signed", zero_point, CHANNEL + signed * sums)
    assert_changed(ChooseWindow, unsigned, centred, default="signed")
    assert_changed(ChooseWindow, centred, unsigned, windows={"up": "unsigned"}, default="signed")
    q = np.random.default_rng(zero_point).integers(0, 256, (4, 8)).astype(np.uint8)
    exact = (q.astype(np.int64) - zero_point) @ W.T.astype(np.int64) + CHANNEL
    for mod in (unsigned, centred):
        assert_equal_bits(Runnable(mod)(q), exact.astype(np.int32))


def test_zero_points_of_run_time_keep_their_window() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "uint8"))
    zero = relax.Var("zero", relax.TensorType((), "uint8"))
    with builder.function("main", [x, zero]):
        enc = builder.emit(dialect.encode(x, zero, window="signed", label="up"))
        builder.emit_func_output(relax.TupleGetItem(enc, 1))
    reasons = assert_unchanged(ChooseWindow, builder.finalize(), default="unsigned")
    assert reasons == ["its zero point comes at run time, and the window is part of its correction"]


def test_planes_that_are_returned_keep_their_window() -> None:
    mod = integer_dense(lambda x: op.abs(op.clip(x, -9, 9)), dialect.encode, whole=True)
    reasons = assert_unchanged(ChooseWindow, mod, default="signed")
    assert reasons == ["its planes are returned or passed on"]


def test_bands_belong_to_their_window() -> None:
    bands = np.array([[0] * 8, [20] * 8], np.int8)
    encoder = functools.partial(
        dialect.quantize_encode,
        factors=relax.const(np.ones(8, np.float32)),
        bands=relax.const(bands),
    )
    mod = integer_dense(lambda x: x, encoder, dtype="float32")
    reasons = assert_unchanged(ChooseWindow, mod, default="signed")
    assert reasons == ["its bands are made for the window it has"]


@functools.cache
def unsigned_and_signed() -> tuple[Runnable, Runnable]:
    return Runnable(Unsigned), Runnable(Unsigned, ChooseWindow(default="signed"))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_same_numbers_in_both_windows(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 8), dtype=np.float32) ** 3
    args = [x, rng.integers(-128, 128, (3, 8)).astype(np.int8)]
    unsigned, signed = unsigned_and_signed()
    assert_equal_bits(signed(*args), unsigned(*args))
