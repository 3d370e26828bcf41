"""The ground that the passes share: reading expressions, sweeping dead bindings, reports."""
# Dead bindings are what the modules here are about.
# ruff: noqa: F841, SIM108

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
import tvm
from pass_helpers import apply, assert_same, copy_of
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm.compiler import split_passes
from sparqle_tvm.passes import PassReport, ShareEncodings, Skipped, SplitGroupedDense
from sparqle_tvm.passes._encodings import Encodings, describe_encodings
from sparqle_tvm.passes._match import const_scalar, dims_of, dtype_of, same_dims, static_shape
from sparqle_tvm.passes._rewrite import count_uses, remove_unused


@I.ir_module
class Dead:
    """``a`` feeds only ``b``; ``f`` may do anything, the branch and the cast have to stay."""

    @R.function(pure=False)
    def main(x: R.Tensor(("n", 4), "float32"), flag: R.Tensor((), "bool")):
        with R.dataflow():
            a = R.abs(x)
            b = R.exp(a)
            c = R.negative(x)
            R.output(b, c)
        d = R.add(c, c)
        e = R.match_cast(x, R.Tensor((3, 4), "float32"))
        f = R.call_packed("effect", x, ty_args=R.Tensor((3, 4), "float32"))
        if flag:
            g = R.add(c, c)
        else:
            g = c
        return c


@I.ir_module
class Swept:
    @R.function(pure=False)
    def main(x: R.Tensor(("n", 4), "float32"), flag: R.Tensor((), "bool")):
        with R.dataflow():
            c = R.negative(x)
            R.output(c)
        e = R.match_cast(x, R.Tensor((3, 4), "float32"))
        f = R.call_packed("effect", x, ty_args=R.Tensor((3, 4), "float32"))
        if flag:
            g = R.add(c, c)
        else:
            g = c
        return c


def test_dead_bindings_are_swept() -> None:
    for mod in (Dead, Swept):
        swept = tvm.IRModule({"main": remove_unused(mod["main"])})
        assert_same(relax.transform.Normalize()(swept)["main"], Swept["main"])


def test_uses() -> None:
    func = Dead["main"]
    uses = {str(var.name): count for var, count in count_uses(func).items()}
    assert uses["c"] == 6
    assert uses["a"] == 1
    assert "d" not in uses


def test_readers_of_expressions() -> None:
    n = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, 4), "int8"))
    scalar = relax.const(2.5, "float32")
    assert (static_shape(x), dtype_of(x)) == (None, "int8")
    assert static_shape(scalar) == []
    unknown = relax.Var("u", relax.TensorType(dtype="int8", ndim=2))
    assert (dims_of(unknown), static_shape(unknown)) == ([], None)
    assert dtype_of(relax.Var("t", relax.TupleType([]))) == ""
    assert same_dims(dims_of(x), [n + 1 - 1, 4])
    assert not same_dims(dims_of(x), [n + 1, 4])
    assert not same_dims(dims_of(x), [4])
    assert const_scalar(scalar) == 2.5
    assert const_scalar(relax.const(np.array([[7]], np.int8))) == 7
    assert const_scalar(relax.const(np.zeros(2, np.int8))) is None
    assert const_scalar(x) is None


def test_a_report_keeps_a_note_once_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    report = PassReport()
    with caplog.at_level(logging.INFO, "sparqle_tvm.passes"):
        for function, label in (("prefill", "up"), ("prefill", "up"), ("decode", "up")):
            report.skip(Skipped("SplitPrecision", function, "matmul", label, "K = 0"))
    assert [entry.function for entry in report.skipped] == ["prefill", "decode"]
    assert caplog.messages[0] == "SplitPrecision left matmul up of prefill alone: K = 0"
    report.rewrite("FoldScales", 2)
    assert json.loads(json.dumps(report.to_dict())) == {
        "split": [],
        "rewritten": {"FoldScales": 2},
        "skipped": [
            {"pass_name": "SplitPrecision", "function": function, "op": "matmul", "label": "up"}
            | {"reason": "K = 0"}
            for function in ("prefill", "decode")
        ],
        "tuned": [],
    }


@I.ir_module
class Twice:
    I.module_attrs({"origin": "elsewhere"})

    @R.function
    def main(q: R.Tensor((4, 8), "int8")):
        R.func_attr({"kept": 1})
        a = R.sparqle.encode(q, label="a")
        b = R.sparqle.encode(q, label="b")
        y = (a[0], b[1])
        return y


def test_attributes_of_module_and_function_are_kept() -> None:
    after, report = apply(ShareEncodings, Twice)
    assert report.rewritten["ShareEncodings"] == 1
    assert after.attrs["origin"] == "elsewhere"
    assert after["main"].attrs["kept"] == 1


@I.ir_module
class Partly:
    """Only ``main`` encodes twice; dead code stands in both."""

    @R.function
    def main(q: R.Tensor((4, 8), "int8")):
        dead = R.abs(q)
        a = R.sparqle.encode(q, label="a")
        b = R.sparqle.encode(q, label="b")
        y = (a[0], b[1])
        return y

    @R.function
    def other(q: R.Tensor((4, 8), "int8")):
        dead = R.abs(q)
        return q


def test_a_function_without_rewrites_stays_as_it_is() -> None:
    after, _ = apply(ShareEncodings, Partly)
    assert_same(after["other"], Partly["other"])
    assert "R.abs" not in after["main"].script()


@I.ir_module
class Branches:
    @R.function
    def main(
        q: R.Tensor((4, 8), "int8"),
        w: R.Tensor((3, 8), "int8"),
        bias: R.Tensor((3,), "int32"),
        flag: R.Tensor((), "bool"),
    ):
        a = R.sparqle.encode(q, label="outer")
        alias = a
        up = R.sparqle.split_dense(
            alias, w, bias, k=4, window="unsigned", in_features=8, weight_bits=8, label="up"
        )
        if flag:
            b = R.sparqle.encode(q, label="inner")
            y = R.sparqle.split_dense(
                b, w, bias, k=4, window="unsigned", in_features=8, weight_bits=8, label="down"
            )
        else:
            y = up
        return y


def test_encodings_of_a_function_know_what_stands_in_branches() -> None:
    found = Encodings(Branches["main"])
    labels = {op.label: variable in found.inner for variable, op in found.encoders.items()}
    assert labels == {"outer": False, "inner": True}
    assert [op.label for op in found.dense.values()] == ["up", "down"]
    outer = next(iter(found.encoders))
    dense = next(iter(found.dense.values()))
    assert found.variable(dense.encoding).same_as(outer)
    assert found.resolve(dense.encoding).same_as(found.values[outer])
    infos, hidden = describe_encodings(Branches["main"])
    assert [[dense.label for dense in info.consumers] for info in infos] == [["up"]]
    assert hidden == ["inner"]


def grouped_outside_of_a_dataflow_block() -> tvm.IRModule:
    @I.ir_module
    class Grouped:
        @R.function
        def main(
            q: R.Tensor((5, 8), "int8"),
            w: R.Tensor((2, 4, 3), "int8"),
            d: R.Tensor((2, 1, 3), "float16"),
        ):
            qg = R.permute_dims(R.reshape(q, (5, 2, 4)), [1, 0, 2])
            up = R.matmul(qg, w, out_dtype="int32")
            part = R.multiply(R.astype(up, "float64"), R.astype(d, "float64"))
            y = R.astype(R.sum(part, axis=[0]), "float32")
            return y

    return Grouped


def test_no_pass_stumbles_over_what_another_left_behind() -> None:
    mod = grouped_outside_of_a_dataflow_block()
    original, report = copy_of(mod), PassReport()
    after: Any = tvm.transform.Sequential(split_passes(report=report))(mod)
    assert_same(mod, original)
    assert report.rewritten[SplitGroupedDense.__name__] == 1
    assert report.skipped == []
    assert "R.matmul" not in after.script()
