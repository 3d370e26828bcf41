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
from sparqle_tvm.errors import InvalidArgumentError

dialect.register()

SCALED = {"k": 4, "window": "signed", "in_features": 16, "group_size": 8, "weight_bits": 4}


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
    def biased(
        x: R.Tensor(("n", 64), "int8"),
        w: R.Tensor((5, 64), "int8"),
        scale: R.Tensor((5,), "float32"),
        offset: R.Tensor((5,), "int32"),
        bias: R.Tensor((5,), "float32"),
    ):
        with R.dataflow():
            enc = R.sparqle.encode(x, window="unsigned")
            y = R.sparqle.split_dense_encoded(
                enc, R.const(0.3, "float32"), w, scale, offset, R.const(0.3, "float32"), bias,
                k=4, window="unsigned", in_features=64, group_size=0, weight_bits=4,
                out_low=0, out_high=255, out_signed=0,
                mid_scale=0.027904016897082329, mid_low=-128, mid_high=127, mid_zero=7,
            )  # fmt: skip
            R.output(y)
        return y

    @R.function
    def attention(
        q: R.Tensor(("t", 6, 32), "float32"),
        k: R.Tensor(("n", 2, 32), "float32"),
        v: R.Tensor(("n", 2, 32), "float32"),
        mask: R.Tensor(("t", "n"), "bool"),
    ):
        stored = R.sparqle.quantize_heads(k, levels=31)
        causal = R.sparqle.attention(q, k, v, causal=1, scale=0.10206207261596577)
        masked = R.sparqle.attention(q, stored, v, mask, causal=0, scale=0.25, value_levels=15)
        return causal, masked

    @R.function
    def zero_points(
        q: R.Tensor(("n", 34), "uint8"),
        one: R.Tensor((), "uint8"),
        w: R.Tensor((5, 34), "int8"),
        bias: R.Tensor((5,), "int32"),
    ):
        with R.dataflow():
            enc = R.sparqle.encode(q, one, k=4, window="signed")
            y = R.sparqle.split_dense(
                enc, w, bias,
                k=4, window="signed", act_signed=0, in_features=34, weight_bits=4,
            )  # fmt: skip
            fixed = R.sparqle.encode(q, k=4, window="signed", zero_point=128)
            z = R.sparqle.split_dense(
                fixed, w, bias, k=4, window="signed", act_signed=0, zero_point=128,
                in_features=34, weight_bits=4,
            )  # fmt: skip
            R.output(y, z)
        return y, z

    @R.function
    def wide(q: R.Tensor((2, 7), "int16")):
        enc = R.sparqle.encode(q, k=8, window="unsigned", group_size=7)
        return enc


def test_every_op_prints_and_parses() -> None:
    text = AllOps.script()
    for name in dialect.OPS:
        assert f"R.sparqle.{name}(" in text
    tvm.ir.assert_structural_equal(tvm.script.from_source(text), AllOps, map_free_vars=True)


def test_the_module_is_well_formed_and_survives_json() -> None:
    relax.analysis.well_formed(AllOps)
    loaded = tvm.ir.load_json(tvm.ir.save_json(AllOps))
    tvm.ir.assert_structural_equal(loaded, AllOps, map_free_vars=True)


def test_attributes_count_in_structural_equality() -> None:
    call = encode_call()
    view = dialect.Encode.of(call)
    tvm.ir.assert_structural_equal(call, view.call())
    with pytest.raises(ValueError, match="StructuralEqual"):
        tvm.ir.assert_structural_equal(call, view.changed(window="unsigned"))


def test_ops_are_pure() -> None:
    for name in dialect.OPS:
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
    wanted = {"k": 4, "window": "signed", "zero_point": 0, "group_size": 8, "label": "up"}
    found = dialect.Op.of(encode_call()).attributes
    assert found == wanted
    assert [type(value) for value in found.values()] == [type(wanted[name]) for name in found]


def test_a_view_is_of_its_op_and_of_its_kind() -> None:
    call = encode_call()
    for kind in (dialect.Op, dialect.Encoder, dialect.Encode):
        assert isinstance(kind.of(call), dialect.Encode)
    for kind in (dialect.QuantizeEncode, dialect.Dense, dialect.BalanceRows):
        assert kind.of(call) is None
    for other in (call.args[0], relax.op.abs(call.args[0]), None):
        assert dialect.Op.of(other) is None
        assert dialect.op_name(other) == ""
    assert dialect.op_name(call) == "encode"


def test_changed_makes_a_new_call() -> None:
    call = encode_call()
    view = dialect.Encode.of(call)
    changed = view.changed(window="unsigned")
    assert dialect.Op.of(changed).attributes == view.attributes | {"window": "unsigned"}
    assert dialect.Op.of(call).window == "signed"
    assert changed.args[0].same_as(call.args[0])
    other = relax.Var("other", relax.TensorType((2, 16), "int8"))
    assert view.changed(x=other).args[0].same_as(other)


def views(mod: tvm.IRModule) -> list[dialect.Op]:
    """The views of all calls of the dialect in a module."""
    found = []
    for _, func in mod.functions_items():
        relax.analysis.post_order_visit(func, lambda e: found.append(dialect.Op.of(e)))
    return [view for view in found if view is not None]


def test_every_view_gives_its_operands_by_name_and_its_call_back() -> None:
    found = views(AllOps)
    assert {view.NAME for view in found} == set(dialect.OPS)
    for view in found:
        assert dialect.Op.of(view.call()).attributes == view.attributes
    forms = [(d.w_min, d.group_sums, d.row_order) for d in found if isinstance(d, dialect.Dense)]
    dense = {tuple(operand is not None for operand in form) for form in forms}
    assert dense == {(False, False, False), (False, False, True), (True, True, False)}


def test_fields_of_an_encoding() -> None:
    q = relax.Var("q", relax.TensorType((2, 16), "int8"))
    assert dialect.Encode(q).fields == ("lsb", "pbm", "msb", "row_ptr")
    assert dialect.Encode(q, group_size=8).fields[4:] == ("group_sums",)
    assert dialect.QuantizeEncode(q, group_size=8).fields[4:] == ("scale", "group_sums")
    encoding = relax.Var("encoding", relax.TupleType([q.ty] * 6))
    assert dialect.QuantizeEncode(q, group_size=8).field(encoding, "group_sums").index == 5
    assert dialect.plane(encoding, "msb").index == 2


@pytest.mark.parametrize(
    ("missing", "given"), [("group_sums", "w_min"), ("w_min", "group_sums"), ("factors", "bands")]
)
def test_operands_that_go_together(missing: str, given: str) -> None:
    x = relax.Var("x", relax.TensorType((2, 16), "float32"))
    make = dialect.quantize_encode
    named = {"x": x, given: x, "label": "up"}
    if given != "bands":
        make = dialect.split_dense_scaled
        names = ("encoding", "act_scale", "weight", "w_scale", "offset")
        named = dict.fromkeys((*names, given), x) | {"label": "up", **SCALED}
    with pytest.raises(InvalidArgumentError, match=rf"\(up\): {given} need {missing}$"):
        make(**named)


def test_a_number_of_operands_that_no_form_has() -> None:
    x = relax.Var("x", relax.TensorType((2, 16), "float32"))
    for operands in ([x] * 4, [x, None, None, x]):
        with pytest.raises(
            InvalidArgumentError, match=r"\(up\): 4 operands; x, factors, bands are"
        ):
            dialect.quantize_encode(*operands, label="up")
