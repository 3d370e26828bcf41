"""Every quantized product that stays has an entry in the report, with function, name and reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from pass_helpers import assert_same, copy_of
from tvm import relax
from tvm.relax import op

from sparqle_tvm import compiler
from sparqle_tvm.passes import PassReport, ReportLeft

W = np.arange(-32, 32, dtype=np.int8).reshape(16, 4)
S, Z = relax.const(np.float32(0.1)), relax.const(np.int8(0))
Emit = Callable[[Any], Any]


def module(*bodies: Callable[[Emit, Any], Any], dtype: str = "int8") -> tvm.IRModule:
    """Functions f0, f1, .. of q (3, 16), each with a product named like the others'."""
    functions = {}
    for number, body in enumerate(bodies):
        # A builder makes names unique over all its functions.
        builder = relax.BlockBuilder()
        q = relax.Var("q", relax.TensorType((3, 16), dtype))
        with builder.function(f"f{number}", [q]):
            with builder.dataflow():
                y = builder.emit_output(body(builder.emit, q), "y")
            builder.emit_func_output(y)
        functions |= dict(builder.finalize().functions_items())
    return tvm.IRModule(functions)


def dequantized(x: Any, dtype: str = "float32") -> Any:
    scale = relax.const(np.float32(0.1).astype(dtype))
    return op.dequantize(x, scale, Z, axis=-1, out_dtype=dtype)


def entries(mod: tvm.IRModule) -> list[tuple[str, str, str, str]]:
    """What the phases import and split report of a module: function, op, name, reason."""
    report = PassReport()
    tvm.transform.Sequential(compiler.split_passes(report=report))(mod)
    return [(e.function, e.op, e.label, e.reason) for e in report.skipped]


def exotic(emit: Emit, q: Any) -> Any:
    """A product that no pass looks at: its activations are squared."""
    x = emit(dequantized(q))
    return op.matmul(emit(op.multiply(x, x)), emit(dequantized(relax.const(W))))


def integer(emit: Emit, q: Any) -> Any:
    return op.matmul(q, relax.const(W), out_dtype="int32")


def weights_only(emit: Emit, q: Any) -> Any:
    return op.matmul(emit(op.sigmoid(emit(dequantized(q)))), emit(dequantized(relax.const(W))))


def of_floats(emit: Emit, q: Any) -> Any:
    return op.matmul(op.sigmoid(emit(dequantized(q))), relax.const(W.astype(np.float32)))


def test_a_split_module_has_no_entry() -> None:
    assert entries(module(integer, integer)) == []


def test_a_product_that_no_pass_looks_at_is_named_once_per_function() -> None:
    found = entries(module(exotic, integer, exotic))
    assert [entry[:3] for entry in found] == [("f0", "matmul", "y"), ("f2", "matmul", "y")]
    assert all("int8 x int8" in entry[3] for entry in found)


def test_a_product_that_a_pass_has_named_is_not_named_again() -> None:
    narrow = module(lambda emit, q: op.matmul(q, relax.const(W), out_dtype="int16"), integer)
    (entry,) = entries(narrow)
    assert entry[3] == "accumulates in int16, int32 is needed"


def test_products_that_were_legalized_before() -> None:
    with tvm.target.Target("llvm"):
        mod = relax.transform.LegalizeOps()(module(integer, exotic))
    *found, last = entries(mod)
    assert [entry[:3] for entry in found] == [("f0", "call_tir", "y"), ("f1", "call_tir", "y")]
    assert all("legalized already" in entry[3] for entry in found)
    message = "0 of 2 matmuls rewritten: they were legalized to call_tir before SplitPrecision"
    assert last == ("", "module", "", message)


def test_weights_alone_are_not_enough() -> None:
    (entry,) = entries(module(weights_only, integer))
    assert "its activations are float32, only the weights are quantized" in entry[3]


def test_a_dense_layer_in_floats_is_named_beside_others() -> None:
    reason = "multiplies float32 values: not quantized"
    assert entries(module(of_floats, integer)) == [("f0", "matmul", "y", reason)]


def test_a_product_of_two_activations_in_floats_is_not_named() -> None:
    def scores(emit: Emit, q: Any) -> Any:
        x = emit(op.sigmoid(emit(dequantized(q))))
        return op.matmul(x, emit(op.permute_dims(x)))

    assert entries(module(scores, integer)) == []


@pytest.mark.parametrize("bodies", [(), (of_floats,)])
def test_a_module_without_such_products_says_so_in_the_last_entry(bodies: Any) -> None:
    *named, last = entries(module(*bodies))
    assert len(named) == len(bodies)
    assert last[:3] == ("", "module", "")
    assert "is the model quantized?" in last[3]


def test_the_module_stays_the_same_object() -> None:
    mod = module(integer, exotic)
    before = copy_of(mod)
    assert ReportLeft()(mod).same_as(mod)
    assert_same(mod, before)


def test_a_long_chain_of_sums_is_walked_once() -> None:
    def chain(emit: Emit, q: Any) -> Any:
        x = emit(dequantized(q))
        for _ in range(60):
            x = emit(op.add(x, x))
        return op.matmul(x, emit(dequantized(relax.const(W))))

    assert len(entries(module(chain, integer))) == 1


def test_nothing_split_is_a_warning_and_something_split_is_none(caplog: Any) -> None:
    entries(module(integer, exotic))
    assert not caplog.records
    entries(module(exotic))
    (record,) = caplog.records
    expected = "0 of 1 matmuls rewritten: none has a form that is split"
    assert record.levelname == "WARNING" and record.getMessage().startswith(expected)


def test_the_report_is_a_table_of_what_is_split_and_what_is_not() -> None:
    report = PassReport()
    steps = compiler.split_passes(report=report, windows={"y": "unsigned"})
    tvm.transform.Sequential(steps)(module(integer, exotic))
    head, split, left = str(report).splitlines()
    assert head.split() == ["function", "op", "form", "window", "why", "not"]
    assert split.split() == ["f0", "y", "int8", "x", "int8", "unsigned"]
    assert left.split()[:3] == ["f1", "y", "matmul"] and left.endswith("(int8 x int8)")
    assert repr(report) == "<PassReport: 1 dense ops split, 1 notes on ops left alone>"
    page = report._repr_html_()
    assert page.count("<tr>") == 3 and "why not" in page
    entry = {"function": "f0", "label": "y", "form": "int8 x int8", "window": "unsigned"}
    assert report.to_dict()["split"] == [entry]
