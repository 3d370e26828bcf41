"""Calls of PrimFuncs on constants are evaluated once for the whole module."""

from __future__ import annotations

import numpy as np
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_changed, assert_equal_bits, assert_unchanged
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from sparqle_tvm.passes import FoldConstants

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = A + 100


@I.ir_module
class Before:
    """``transpose`` of constants, of a result of that, and of a parameter; in two functions."""

    @T.prim_func(private=True, s_tir=True)
    def transpose(a: T.Buffer((3, 4), "float32"), b: T.Buffer((4, 3), "float32")):
        for i, j in T.grid(4, 3):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vj, vi]

    @T.prim_func(private=True, s_tir=True)
    def double(a: T.Buffer((4, 3), "float32"), b: T.Buffer((4, 3), "float32")):
        for i, j in T.grid(4, 3):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vi, vj] * T.float32(2)

    @R.function
    def decode(x: R.Tensor((3, 4), "float32")):
        cls = Before
        with R.dataflow():
            a = R.call_tir(cls.transpose, (R.const(A),), out_ty=R.Tensor((4, 3), "float32"))
            b = R.call_tir(cls.double, (a,), out_ty=R.Tensor((4, 3), "float32"))
            c = R.call_tir(cls.transpose, (x,), out_ty=R.Tensor((4, 3), "float32"))
            y = R.add(R.add(a, b), c)
            R.output(y)
        return y

    @R.function
    def prefill(x: R.Tensor((4, 3), "float32")):
        cls = Before
        with R.dataflow():
            a = R.call_tir(cls.transpose, (R.const(A),), out_ty=R.Tensor((4, 3), "float32"))
            b = R.call_tir(cls.transpose, (R.const(B),), out_ty=R.Tensor((4, 3), "float32"))
            y = R.add(R.add(a, b), x)
            R.output(y)
        return y


@I.ir_module
class Expected:
    @T.prim_func(private=True, s_tir=True)
    def transpose(a: T.Buffer((3, 4), "float32"), b: T.Buffer((4, 3), "float32")):
        for i, j in T.grid(4, 3):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vj, vi]

    @T.prim_func(private=True, s_tir=True)
    def double(a: T.Buffer((4, 3), "float32"), b: T.Buffer((4, 3), "float32")):
        for i, j in T.grid(4, 3):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vi, vj] * T.float32(2)

    @R.function
    def decode(x: R.Tensor((3, 4), "float32")):
        cls = Expected
        with R.dataflow():
            c = R.call_tir(cls.transpose, (x,), out_ty=R.Tensor((4, 3), "float32"))
            y = R.add(R.add(R.const(A.T), R.const(2 * A.T)), c)
            R.output(y)
        return y

    @R.function
    def prefill(x: R.Tensor((4, 3), "float32")):
        with R.dataflow():
            y = R.add(R.add(R.const(A.T), R.const(B.T)), x)
            R.output(y)
        return y


def test_expected_module() -> None:
    report = assert_changed(FoldConstants, Before, Expected)
    assert report.rewritten["FoldConstants"] == 4


def shared_module() -> tvm.IRModule:
    """Two functions that transpose the same constant object."""
    builder = relax.BlockBuilder()
    shared = relax.const(A)
    for name in ("decode", "prefill"):
        x = relax.Var("x", relax.TensorType((4, 3), "float32"))
        with builder.function(name, [x]):
            with builder.dataflow():
                moved = builder.emit(relax.op.permute_dims(shared))
                y = builder.emit_output(relax.op.add(x, moved))
            builder.emit_func_output(y)
    return relax.transform.LegalizeOps()(builder.finalize())


def test_functions_share_the_result() -> None:
    after, _ = apply(FoldConstants, shared_module())
    arguments = [
        binding.value.args[1].fields
        for name in ("decode", "prefill")
        for binding in after[name].body.blocks[0].bindings
    ]
    (_, first), (_, second) = arguments
    assert first.same_as(second)
    assert_equal_bits(first.value.numpy(), np.ascontiguousarray(A.T))


def test_nothing_to_fold() -> None:
    assert assert_unchanged(FoldConstants, Expected) == []


def test_calls_that_are_no_constants() -> None:
    """No argument at all; a symbolic result; an op that is not legalized."""
    builder = relax.BlockBuilder()
    rows = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((rows,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            zeros = builder.emit(relax.op.zeros((4,), "float32"))
            wide = builder.emit(relax.op.broadcast_to(relax.const(np.ones(1, np.float32)), (rows,)))
            outputs = [builder.emit_output(each) for each in (zeros, relax.op.add(wide, x))]
        builder.emit_func_output(relax.Tuple(outputs))
    mod = builder.finalize()
    assert assert_unchanged(FoldConstants, mod) == []
    assert assert_unchanged(FoldConstants, relax.transform.LegalizeOps()(mod)) == []


def cast_weight() -> tvm.IRModule:
    """``x @ (int32(w) - int32(1))``: LegalizeOps leaves a constant behind a variable."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 3), "int32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            wide = builder.emit(relax.op.astype(relax.const(A.astype(np.int8)), "int32"))
            one = builder.emit(relax.op.astype(relax.const(np.int8(1)), "int32"))
            centred = builder.emit(relax.op.subtract(wide, one))
            y = builder.emit_output(relax.op.matmul(x, centred))
        builder.emit_func_output(y)
    return builder.finalize()


def test_constants_that_were_cast() -> None:
    mod = cast_weight()
    after, report = apply(FoldConstants, relax.transform.LegalizeOps()(mod))
    assert report.rewritten["FoldConstants"] == 2
    (product,) = after["main"].body.blocks[0].bindings
    assert_equal_bits(product.value.args[1].fields[1].value.numpy(), A.astype(np.int32) - 1)
    x = np.arange(12, dtype=np.int32).reshape(4, 3)
    assert_equal_bits(Runnable(mod)(x), x @ (A.astype(np.int32) - 1))


def test_constants_in_a_branch() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 3), "float32"))
    chosen = relax.Var("chosen", relax.TensorType((), "bool"))
    moved = relax.op.permute_dims(relax.const(A))
    with builder.function("main", [x, chosen]):
        found = builder.emit(relax.If(chosen, relax.op.add(x, moved), relax.op.multiply(x, moved)))
        builder.emit_func_output(found)
    mod = relax.transform.LegalizeOps()(builder.finalize())
    after, report = apply(FoldConstants, mod)
    assert report.rewritten["FoldConstants"] == 2
    ones = np.ones((4, 3), np.float32)
    for branch in (True, False):
        found = Runnable(after)(ones, np.array(branch))
        assert_equal_bits(found, ones + A.T if branch else A.T.copy())


@I.ir_module
class ForAnotherDevice:
    """``transpose`` as a kernel of a GPU has it, of a constant."""

    @T.prim_func(private=True, s_tir=True)
    def transpose(a: T.Buffer((3, 4), "float32"), b: T.Buffer((4, 3), "float32")):
        for i in T.thread_binding(4, thread="blockIdx.x"):
            for j in T.thread_binding(3, thread="threadIdx.x"):
                with T.sblock("b"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    b[vi, vj] = a[vj, vi]

    @T.prim_func(private=True, s_tir=True)
    def double(a: T.Buffer((4, 3), "float32"), b: T.Buffer((4, 3), "float32")):
        for i, j in T.grid(4, 3):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vi, vj] * T.float32(2)

    @R.function
    def main():
        cls = ForAnotherDevice
        with R.dataflow():
            a = R.call_tir(cls.transpose, (R.const(A),), out_ty=R.Tensor((4, 3), "float32"))
            b = R.call_tir(cls.double, (a,), out_ty=R.Tensor((4, 3), "float32"))
            c = R.call_tir(cls.double, (R.const(B.T),), out_ty=R.Tensor((4, 3), "float32"))
            y = R.add(b, c)
            R.output(y)
        return y


def test_what_cannot_be_evaluated_stays() -> None:
    after, report = apply(FoldConstants, ForAnotherDevice)
    assert report.rewritten["FoldConstants"] == 1
    first, second, total = after["main"].body.blocks[0].bindings
    assert [str(b.value.op.name) for b in (first, second)] == ["relax.call_tir"] * 2
    assert_equal_bits(total.value.args[1].value.numpy(), 2 * B.T)


@settings(max_examples=4, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["int8", "float16", "float64", "bool", "int32"]),
    st.integers(0, 2**32 - 1),
)
def test_same_numbers_as_numpy(m: int, n: int, dtype: str, seed: int) -> None:
    value = np.random.default_rng(seed).integers(-100, 100, (m, n)).astype(dtype)
    builder = relax.BlockBuilder()
    with builder.function("main", []):
        with builder.dataflow():
            y = builder.emit(relax.op.permute_dims(relax.const(value, dtype)))
            y = builder.emit_output(relax.op.reshape(y, (n * m,)))
        builder.emit_func_output(y)
    after, _ = apply(FoldConstants, relax.transform.LegalizeOps()(builder.finalize()))
    assert_equal_bits(after["main"].body.body.value.numpy(), value.T.reshape(-1))
