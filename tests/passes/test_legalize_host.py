"""Matmuls and the ops of the dialect become calls of host kernels, one kernel for equal ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_changed, assert_same, assert_unchanged
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import sparqle_tvm
from sparqle_tvm import dialect, numerics
from sparqle_tvm.host.encode import EncodeSpec, encode_kernel
from sparqle_tvm.host.legalize import HOST_LEGALIZE_MAP
from sparqle_tvm.host.matmul import matmul_kernel
from sparqle_tvm.host.matmul_tile import MatmulSpec
from sparqle_tvm.host.panels import panel_kernel
from sparqle_tvm.host.planes import SplitForm
from sparqle_tvm.host.register_tile import host_tile
from sparqle_tvm.host.split_dense import DenseKernel, split_dense_kernel
from sparqle_tvm.passes import LegalizeHost, PassReport
from sparqle_tvm.target.op import DenseOp

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
BIAS = np.array([5, -7, 0], np.int32)


@I.ir_module
class Before:
    """An encoding, a dense that reads it, and a matmul of floats; relu is for LegalizeOps."""

    @R.function
    def main(q: R.Tensor(("n", 8), "int8"), v: R.Tensor((3, 2), "float32")):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=4, window="unsigned", label="up")
            up = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="unsigned", in_features=8, weight_bits=8, label="up",
            )  # fmt: skip
            positive = R.nn.relu(R.astype(up, "float32"))
            y = R.matmul(positive, v)
            R.output(y)
        return y


def expected() -> tvm.IRModule:
    """`Before` with a call of a kernel for each of the three."""
    builder, tile, emit_tir = relax.BlockBuilder(), host_tile(), relax.call_tir
    rows = tvm.tirx.Var("n", "int64")
    q = relax.Var("q", relax.TensorType((rows, 8), "int8"))
    v = relax.Var("v", relax.TensorType((3, 2), "float32"))
    form = SplitForm("unsigned", 4)
    encode = encode_kernel(EncodeSpec(1, 8, form, group_size=0))
    dense = split_dense_kernel(
        DenseKernel(
            DenseOp(1, 3, 8, weight_bits=8, output="int32"), form, 1, scale_shape=None, tile=tile
        )
    )
    matmul = matmul_kernel(MatmulSpec((), (), 3, 2, "float32", "float32", "float32", tile))

    def call(kernel: Any, name: str, args: list[Any], *types: tuple[Any, str]) -> relax.Var:
        out = [relax.TensorType(shape, dtype) for shape, dtype in types]
        gv = builder.add_func(kernel, name)
        return builder.emit(emit_tir(gv, relax.Tuple(args), out if len(out) > 1 else out[0]))

    with builder.function("main", [q, v]):
        with builder.dataflow():
            planes = [((rows, 4), "uint8"), ((rows, 1), "uint8")]
            stream = [((rows * 4,), "uint8"), ((rows + 1,), "int32")]
            enc = call(encode, "encode", [q], *planes, *stream)
            fields = [builder.emit(relax.TupleGetItem(enc, i)) for i in range(4)]
            matrix = panel_kernel((3, 8), "int8", "int8", tile.cols)
            w = call(matrix, "panels", [relax.const(W)], ((1, 8, tile.cols), "int8"))
            vector = panel_kernel((3,), "int32", "int32", tile.cols)
            bias = call(vector, "panels", [relax.const(BIAS)], ((1, tile.cols), "int32"))
            up = call(dense, "split_dense", [*fields, w, bias], ((rows, 3), "int32"))
            positive = builder.emit(relax.op.nn.relu(relax.op.astype(up, "float32")))
            product = emit_tir(
                builder.add_func(matmul, "matmul"),
                relax.Tuple([positive, v]),
                relax.TensorType((rows, 2), "float32"),
            )
            y = builder.emit_output(product)
        builder.emit_func_output(y)
    return builder.finalize()


def test_expected_module() -> None:
    report = assert_changed(LegalizeHost, Before, expected())
    assert report.rewritten["LegalizeHost"] == 3
    assert report.skipped == []


def test_the_same_as_legalize_ops_would_make() -> None:
    lowered = LegalizeHost()(Before)
    theirs = relax.transform.LegalizeOps(HOST_LEGALIZE_MAP)(Before)
    ours = relax.transform.LegalizeOps()(lowered)
    assert_same(ours, theirs)


@I.ir_module
class NoKernel:
    """A vector, an unknown shape, and an int8 result: TVM's own legalization takes them."""

    @R.function
    def main(
        a: R.Tensor((4, 8), "float32"),
        b: R.Tensor((8,), "float32"),
        c: R.Tensor("float32", ndim=2),
        d: R.Tensor((4, 8), "int8"),
        e: R.Tensor((8, 2), "int8"),
    ):
        with R.dataflow():
            vector = R.matmul(a, b)
            unknown = R.matmul(a, c)
            narrow = R.matmul(d, e, out_dtype="int8")
            R.output(vector, unknown, narrow)
        return (vector, unknown, narrow)


@I.ir_module
class Elementwise:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            y = R.add(R.exp(x), x)
            R.output(y)
        return y


@pytest.mark.parametrize("mod", [NoKernel, Elementwise], ids=["matmul", "elementwise"])
def test_unchanged_when_there_is_no_kernel(mod: tvm.IRModule) -> None:
    assert assert_unchanged(LegalizeHost, mod) == []


def encodings(*attrs: dict[str, Any], functions: tuple[str, ...] = ("main",)) -> tvm.IRModule:
    """Functions that return the bitmaps of encodings with these attributes, rows symbolic."""
    builder = relax.BlockBuilder()
    for name in functions:
        rows = tvm.tirx.Var("n", "int64")
        q = relax.Var("q", relax.TensorType((rows, 8), "int8"))
        with builder.function(name, [q]):
            with builder.dataflow():
                found = [builder.emit(dialect.encode(q, **each)) for each in attrs]
                planes = [builder.emit_output(relax.TupleGetItem(enc, 1)) for enc in found]
            builder.emit_func_output(relax.Tuple(planes))
    return builder.finalize()


def kernel_names(mod: tvm.IRModule) -> list[str]:
    """Names of the PrimFuncs of a module."""
    return sorted(
        str(gv.name_hint)
        for gv, function in mod.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc)
    )


def test_equal_ops_of_all_functions_share_a_kernel() -> None:
    attrs: list[dict[str, Any]] = [{"label": "a"}, {"label": "b"}, {"window": "signed"}]
    mod = encodings(*attrs, functions=("decode", "prefill"))
    after, report = apply(LegalizeHost, mod)
    assert report.rewritten["LegalizeHost"] == 6
    assert kernel_names(after) == ["encode", "encode1"]


@I.ir_module
class Taken:
    """A kernel of the user that is called as our second encoding would be."""

    @T.prim_func(private=True, s_tir=True)
    def encode1(x: T.Buffer((T.int64(2),), "float32"), y: T.Buffer((T.int64(2),), "float32")):
        for i in range(T.int64(2)):
            with T.sblock("scaled"):
                vi = T.axis.spatial(T.int64(2), i)
                y[vi] = x[vi] * T.float32(3)

    @R.function
    def main(q: R.Tensor((2, 8), "int8"), x: R.Tensor((2,), "float32")):
        cls = Taken
        with R.dataflow():
            first = R.sparqle.encode(q, k=4, window="unsigned")
            second = R.sparqle.encode(q, k=4, window="signed")
            unsigned = first[1]
            signed = second[1]
            y = R.call_tir(cls.encode1, (x,), out_ty=R.Tensor((2,), "float32"))
            R.output(unsigned, signed, y)
        return (unsigned, signed, y)


def test_a_name_that_is_taken_stays_with_its_function() -> None:
    after, _ = apply(LegalizeHost, Taken)
    assert kernel_names(after) == ["encode", "encode1", "encode2"]
    assert_same(after["encode1"], Taken["encode1"])
    q = np.random.default_rng(0).integers(-128, 120, (2, 8)).astype(np.int8)
    unsigned, signed, y = Runnable(Taken)(q, np.array([1, 2], np.float32))
    np.testing.assert_array_equal(unsigned, numerics.encode(q, window="unsigned").pbm)
    np.testing.assert_array_equal(signed, numerics.encode(q, window="signed").pbm)
    np.testing.assert_array_equal(y, np.array([3, 6], np.float32))


def dense_module(columns: int, channels: int, k: int, window: str) -> tvm.IRModule:
    """An int32 dense with everything as parameters: q (n, K), w (N, K), bias (N,)."""
    builder = relax.BlockBuilder()
    rows = tvm.tirx.Var("n", "int64")
    q = relax.Var("q", relax.TensorType((rows, columns), "int16" if k == 8 else "int8"))
    w = relax.Var("w", relax.TensorType((channels, columns), "int8"))
    bias = relax.Var("bias", relax.TensorType((channels,), "int32"))
    attrs: dict[str, Any] = {"k": k, "window": window}
    with builder.function("main", [q, w, bias]):
        with builder.dataflow():
            enc = builder.emit(dialect.encode(q, **attrs))
            dense = dialect.split_dense(enc, w, bias, in_features=columns, weight_bits=8, **attrs)
            y = builder.emit_output(dense)
        builder.emit_func_output(y)
    return builder.finalize()


@settings(max_examples=2, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["signed", "unsigned"]),
    st.integers(0, 2**32 - 1),
)
def test_exact_numbers(columns: int, channels: int, k: int, window: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    run = Runnable(dense_module(columns, channels, k, window))
    w = rng.integers(-128, 128, (channels, columns)).astype(np.int8)
    constant = rng.integers(-99, 99, channels).astype(np.int32)
    bias = numerics.bias_term(w, k, window) + constant
    low, high = -(2 ** (2 * k - 1)), 2 ** (2 * k - 1) - 1
    for rows in (0, 1, 7):
        q = rng.integers(low, high + 1, (rows, columns)).astype(np.int16 if k == 8 else np.int8)
        exact = q.astype(np.int64) @ w.astype(np.int64).T + constant
        found = run(q, w, bias)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, exact)


def test_report_counts_what_was_lowered() -> None:
    report = PassReport()
    LegalizeHost(report=report)(dense_module(8, 3, 4, "signed"))
    expected = {"split": [], "rewritten": {"LegalizeHost": 2}, "skipped": [], "tuned": []}
    assert report.to_dict() == expected


@pytest.mark.parametrize("split", [False, True])
def test_a_scale_is_rounded_before_a_residual_is_added(split: bool) -> None:
    """In one loop with the addition LLVM would round once, and the forms would differ."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (64, 64)).astype(np.int8)
    step, q = np.float32(0.0123), rng.integers(-127, 128, (1, 64)).astype(np.int8)
    residual = rng.standard_normal((1, 64), dtype=np.float32)
    given, emit = [relax.Var("q", relax.TensorType((1, 64), "int8"))], relax.op
    given.append(relax.Var("r", relax.TensorType((1, 64), "float32")))
    builder = relax.BlockBuilder()
    with builder.function("main", given):
        with builder.dataflow():
            acc = builder.emit(emit.matmul(given[0], relax.const(weight), out_dtype="int32"))
            wide = builder.emit(emit.astype(acc, "float32"))
            scaled = builder.emit(emit.multiply(wide, relax.const(step)))
            y = builder.emit_output(emit.add(scaled, given[1]))
        builder.emit_func_output(y)
    found = sparqle_tvm.compile(builder.get(), split=split)["main"](q, residual).numpy()
    expected = (q.astype(np.int32) @ weight).astype(np.float32) * step + residual
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_what_integers_stand_for_is_rounded_before_something_is_added(turned: bool) -> None:
    rng, emit = np.random.default_rng(1), relax.op
    q = rng.integers(0, 256, (3, 64)).astype(np.uint8)
    residual = rng.standard_normal((3, 64), dtype=np.float32)
    given = [relax.Var("q", relax.TensorType((3, 64), "uint8"))]
    given.append(relax.Var("r", relax.TensorType((3, 64), "float32")))
    step, builder = np.float32(0.0123), relax.BlockBuilder()
    with builder.function("main", given):
        with builder.dataflow():
            form = relax.const(step), relax.const(131, "uint8")
            pair = [builder.emit(emit.dequantize(given[0], *form)), given[1]]
            y = builder.emit_output(emit.add(*(pair[::-1] if turned else pair)))
        builder.emit_func_output(y)
    found = sparqle_tvm.compile(builder.get())["main"](q, residual).numpy()
    expected = (q.astype(np.int32) - 131).astype(np.float32) * step + residual
    np.testing.assert_array_equal(found, expected)
