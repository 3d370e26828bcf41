"""The dialect's ops as TVMScript, their attributes, and their registration."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm import dialect

dialect.register()


@I.ir_module
class AllOps:
    """Every op, with one and two leading dimensions, one of them symbolic."""

    @R.function
    def integer(
        q: R.Tensor(("n", 33), "int8"),
        w: R.Tensor((5, 33), "int8"),
        bias: R.Tensor((5,), "int32"),
    ):
        with R.dataflow():
            enc = R.sparqle.encode(q, k=2, window="signed", label="up")
            y = R.sparqle.split_dense(
                enc, w, bias, k=2, window="signed", in_features=33, weight_bits=2, label="up"
            )
            R.output(y)
        return y

    @R.function
    def channel(
        x: R.Tensor((3, "n", 34), "float32"),
        w: R.Tensor((5, 34), "int8"),
        scale: R.Tensor((5,), "float32"),
        bias: R.Tensor((5,), "int32"),
    ):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, k=4, window="signed", qmax=119)
            order = R.sparqle.balance_rows(
                enc[1], in_features=34, block_rows=16, lanes=8, min_rows=32
            )
            y = R.sparqle.split_dense_scaled(
                enc, enc[4], w, scale, bias, row_order=order,
                k=4, window="signed", in_features=34, group_size=0, weight_bits=8,
            )  # fmt: skip
            R.output(y)
        return y

    @R.function
    def grouped(
        x: R.Tensor(("n", 64), "float32"),
        w: R.Tensor((5, 64), "int8"),
        scale: R.Tensor((5, 2), "float16"),
        minimum: R.Tensor((5, 2), "float16"),
        offset: R.Tensor((5,), "float64"),
    ):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, window="unsigned", qmax=127, group_size=32)
            y = R.sparqle.split_dense_scaled(
                enc, enc[4], w, scale, offset, minimum, enc[5],
                k=4, window="unsigned", in_features=64, group_size=32, weight_bits=4,
            )  # fmt: skip
            R.output(y)
        return y

    @R.function
    def chosen(
        x: R.Tensor(("n", 34), "float32"),
        factors: R.Tensor((34,), "float32"),
        bands: R.Tensor((2, 34), "int8"),
    ):
        enc = R.sparqle.quantize_encode(x, factors, window="signed")
        clipped = R.sparqle.quantize_encode(x, factors, bands, window="unsigned")
        return enc, clipped

    @R.function
    def encoded(
        x: R.Tensor(("n", 64), "float32"),
        w: R.Tensor((5, 64), "int8"),
        scale: R.Tensor((5, 2), "float16"),
        minimum: R.Tensor((5, 2), "float16"),
        offset: R.Tensor((5,), "float64"),
    ):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, window="unsigned", qmax=127, group_size=32)
            y = R.sparqle.split_dense_encoded(
                enc, enc[4], w, scale, offset, R.const(0.3, "float32"), minimum, enc[5],
                k=4, window="unsigned", in_features=64, group_size=32, weight_bits=4,
                out_window="signed", out_low=-100, out_high=119, out_zero=-3,
            )  # fmt: skip
            R.output(y)
        return y

    @R.function
    def wide(q: R.Tensor((2, 7), "int16")):
        enc = R.sparqle.encode(q, k=8, window="unsigned", group_size=7)
        return enc


def test_every_op_prints_and_parses() -> None:
    text = AllOps.script()
    for name in dialect.ops.CONSTRUCTORS:
        assert f"R.sparqle.{name}(" in text
    tvm.ir.assert_structural_equal(tvm.script.from_source(text), AllOps, map_free_vars=True)


def test_the_module_is_well_formed_and_survives_json() -> None:
    relax.analysis.well_formed(AllOps)
    loaded = tvm.ir.load_json(tvm.ir.save_json(AllOps))
    tvm.ir.assert_structural_equal(loaded, AllOps, map_free_vars=True)


def test_attributes_count_in_structural_equality() -> None:
    call = encode_call()
    tvm.ir.assert_structural_equal(call, dialect.with_attributes(call))
    with pytest.raises(ValueError, match="StructuralEqual"):
        tvm.ir.assert_structural_equal(call, dialect.with_attributes(call, window="unsigned"))


def test_ops_are_pure() -> None:
    for name in dialect.ops.CONSTRUCTORS:
        assert tvm.ir.Op.get(f"relax.sparqle.{name}").get_attr("FPurity")


def test_register_twice_changes_nothing() -> None:
    before = tvm.ir.Op.list_op_names()
    dialect.register()
    assert list(tvm.ir.Op.list_op_names()) == list(before)


def test_the_dialect_may_be_the_first_import() -> None:
    code = "import sparqle_tvm.dialect as d; d.register(); from tvm.script.relax import sparqle"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def encode_call() -> relax.Call:
    q = relax.Var("q", relax.TensorType((2, 16), "int8"))
    return dialect.encode(q, k=4, window="signed", group_size=8, label="up")


def test_attributes_come_back_as_python_values() -> None:
    wanted = {"k": 4, "window": "signed", "group_size": 8, "label": "up"}
    found = dialect.attributes(encode_call())
    assert found == wanted
    assert [type(value) for value in found.values()] == [type(wanted[name]) for name in found]


def test_is_op() -> None:
    call = encode_call()
    assert dialect.is_op(call)
    assert dialect.is_op(call, "split_dense", "encode")
    assert not dialect.is_op(call, "split_dense")
    assert not dialect.is_op(call.args[0])
    assert not dialect.is_op(relax.op.abs(call.args[0]), "encode")


def test_with_attributes_makes_a_new_call() -> None:
    call = encode_call()
    changed = dialect.with_attributes(call, window="unsigned")
    assert dialect.attributes(changed) == dialect.attributes(call) | {"window": "unsigned"}
    assert dialect.attributes(call)["window"] == "signed"
    assert changed.args[0].same_as(call.args[0])
    other = relax.Var("other", relax.TensorType((2, 16), "int8"))
    assert dialect.with_attributes(call, [other]).args[0].same_as(other)
