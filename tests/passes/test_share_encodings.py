"""One encoding of a tensor serves all that read it."""

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
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm import dialect
from sparqle_tvm.passes import ShareEncodings

W = np.arange(-12, 12, dtype=np.int8).reshape(3, 8)
BIAS = -8 * W.sum(axis=1, dtype=np.int32)
ZEROS = np.zeros(3, np.int32)
D, M = np.full((3, 2), 0.25, np.float16), np.full((3, 2), -1, np.float16)
OFFSET = 0.25 * BIAS


@I.ir_module
class Before:
    """q and k need no group sums, v does; gate reads another window; x is encoded for nobody."""

    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            enc_q = R.sparqle.quantize_encode(x, label="q")
            scale = enc_q[4]
            q = R.sparqle.split_dense(
                enc_q, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="q",
            )  # fmt: skip
            enc_k = R.sparqle.quantize_encode(x, label="k")
            k = R.sparqle.split_dense(
                enc_k, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="k",
            )  # fmt: skip
            enc_v = R.sparqle.quantize_encode(x, group_size=4, label="v")
            sums = enc_v[5]
            v = R.sparqle.split_dense_scaled(
                enc_v, scale, R.const(W), R.const(D), R.const(OFFSET, "float64"), R.const(M),
                sums, k=4, window="signed", in_features=8, group_size=4, weight_bits=8, label="v",
            )  # fmt: skip
            enc_gate = R.sparqle.quantize_encode(x, window="unsigned", label="gate")
            gate = R.sparqle.split_dense(
                enc_gate, R.const(W), R.const(ZEROS),
                k=4, window="unsigned", in_features=8, weight_bits=8, label="gate",
            )  # fmt: skip
            unread = R.sparqle.quantize_encode(x, qmax=100, label="nobody")  # noqa: F841
            R.output(q, k, v, gate)
        return (q, k, v, gate)


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, group_size=4, label="q")
            scale = enc[4]
            q = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="q",
            )  # fmt: skip
            k = R.sparqle.split_dense(
                enc, R.const(W), R.const(BIAS),
                k=4, window="signed", in_features=8, weight_bits=8, label="k",
            )  # fmt: skip
            sums = enc[5]
            v = R.sparqle.split_dense_scaled(
                enc, scale, R.const(W), R.const(D), R.const(OFFSET, "float64"), R.const(M),
                sums, k=4, window="signed", in_features=8, group_size=4, weight_bits=8, label="v",
            )  # fmt: skip
            enc_gate = R.sparqle.quantize_encode(x, window="unsigned", label="gate")
            gate = R.sparqle.split_dense(
                enc_gate, R.const(W), R.const(ZEROS),
                k=4, window="unsigned", in_features=8, weight_bits=8, label="gate",
            )  # fmt: skip
            R.output(q, k, v, gate)
        return (q, k, v, gate)


def test_expected_module() -> None:
    report = assert_changed(ShareEncodings, Before, Expected)
    assert report.rewritten["ShareEncodings"] == 2


def encodings(*attrs: dict[str, Any], whole: bool = False) -> tvm.IRModule:
    """Encodings of one int8 tensor (n, 8) with these attributes; their planes are returned."""
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((tvm.tirx.Var("n", "int64"), 8), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            found = [builder.emit(dialect.encode(q, **each)) for each in attrs]
            wanted = found if whole else [relax.TupleGetItem(enc, 0) for enc in found]
            outputs = [builder.emit_output(each) for each in wanted]
        builder.emit_func_output(relax.Tuple(outputs))
    return builder.finalize()


def remaining(mod: tvm.IRModule) -> list[int]:
    """Group sizes of the encodings left after the pass, in program order."""
    after, _ = apply(ShareEncodings, mod)
    found = [b.value for block in after["main"].body.blocks for b in block.bindings]
    return [dialect.Op.of(c).group_size for c in found if dialect.op_name(c) == "encode"]


@pytest.mark.parametrize(
    ("attrs", "group_sizes"),
    [
        ([{}, {}, {}], [0]),
        ([{"label": "a"}, {"label": "b"}], [0]),
        ([{"group_size": 4}, {}], [4]),
        ([{}, {"group_size": 4}], [4]),
        ([{}, {"group_size": 8}, {"group_size": 4}, {}], [4, 8]),
    ],
)
def test_what_is_shared(attrs: list[dict[str, Any]], group_sizes: list[int]) -> None:
    assert remaining(encodings(*attrs)) == group_sizes


@pytest.mark.parametrize(
    "attrs",
    [
        [{}],
        [{"window": "signed"}, {"window": "unsigned"}],
        [{"k": 2}, {"k": 4}],
        [{"group_size": 8}, {"group_size": 4}],
    ],
)
def test_what_is_not_shared(attrs: list[dict[str, Any]]) -> None:
    assert assert_unchanged(ShareEncodings, encodings(*attrs)) == []


def test_an_encoding_that_is_returned_keeps_its_fields() -> None:
    assert_unchanged(ShareEncodings, encodings({}, {"group_size": 4}, whole=True))
    assert remaining(encodings({}, {}, whole=True)) == [0]


def test_different_factors_are_not_shared() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    one, two = (relax.const(np.full(8, f, np.float32)) for f in (1, 2))
    with builder.function("main", [x]):
        with builder.dataflow():
            calls = [dialect.quantize_encode(x, *args) for args in ((), (one,), (two,), (two,))]
            encodings = [builder.emit(call) for call in calls]
            outputs = [builder.emit_output(relax.TupleGetItem(enc, 0)) for enc in encodings]
        builder.emit_func_output(relax.Tuple(outputs))
    after, report = apply(ShareEncodings, builder.finalize())
    assert report.rewritten["ShareEncodings"] == 1
    bindings = [b.value for block in after["main"].body.blocks for b in block.bindings]
    assert sum(dialect.op_name(value) == "quantize_encode" for value in bindings) == 3


def test_different_tensors_are_not_shared() -> None:
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((4, 8), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            other = builder.emit(relax.op.abs(q))
            found = [builder.emit_output(dialect.encode(each)) for each in (q, other)]
        builder.emit_func_output(relax.Tuple(found))
    assert assert_unchanged(ShareEncodings, builder.finalize()) == []


@I.ir_module
class Branches:
    """What a branch makes is not there for the other one, nor afterwards."""

    @R.function
    def main(q: R.Tensor((4, 8), "int8"), flag: R.Tensor((), "bool")):
        if flag:
            enc = R.sparqle.encode(q, k=4, window="signed")
            y = enc[1]
        else:
            enc = R.sparqle.encode(q, k=4, window="signed")
            y = enc[1]
        after = R.sparqle.encode(q, k=4, window="signed")
        z = after[0]
        return (y, z)


@I.ir_module
class Outside:
    """What stands before the branches serves both."""

    @R.function
    def main(q: R.Tensor((4, 8), "int8"), flag: R.Tensor((), "bool")):
        before = R.sparqle.encode(q, k=4, window="signed", group_size=4)
        z = before[0]
        if flag:
            enc = R.sparqle.encode(q, k=4, window="signed")
            y = enc[1]
        else:
            enc = R.sparqle.encode(q, k=4, window="signed")
            y = enc[1]
        return (y, z)


@I.ir_module
class OutsideExpected:
    @R.function
    def main(q: R.Tensor((4, 8), "int8"), flag: R.Tensor((), "bool")):
        before = R.sparqle.encode(q, k=4, window="signed", group_size=4)
        z = before[0]
        if flag:  # noqa: SIM108
            y = before[1]
        else:
            y = before[1]
        return (y, z)


@I.ir_module
class Blocks:
    """A dataflow variable cannot be read in the next dataflow block (TVM merges adjacent ones)."""

    @R.function
    def main(q: R.Tensor((4, 8), "int8")):
        with R.dataflow():
            first = R.sparqle.encode(q, k=4, window="signed")
            y = first[0]
            R.output(y)
        between = R.abs(y)
        with R.dataflow():
            second = R.sparqle.encode(q, k=4, window="signed")
            z = second[1]
            R.output(z)
        return (between, z)


def test_branches_and_blocks_keep_their_own() -> None:
    assert assert_unchanged(ShareEncodings, Branches) == []
    assert assert_unchanged(ShareEncodings, Blocks) == []


def test_branches_read_what_is_outside() -> None:
    assert_changed(ShareEncodings, Outside, OutsideExpected)


@functools.cache
def plain_and_shared() -> tuple[Runnable, Runnable]:
    return Runnable(Before), Runnable(Before, ShareEncodings())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_same_numbers_as_before_the_pass(rows: int, seed: int) -> None:
    plain, shared = plain_and_shared()
    x = np.random.default_rng(seed).standard_normal((rows, 8), dtype=np.float32)
    assert_equal_bits(shared(x), plain(x))
