"""Constant expressions, evaluated at compile time, against the same expressions when run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from pass_helpers import assert_equal_bits
from tvm import relax
from tvm.relax import op

from sparqle_tvm.passes._constants import ConstantEvaluator, make_const

BYTES = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
INTS = np.arange(-12, 12, dtype=np.int8).reshape(4, 6) * np.int8(10)


def i8(value: int) -> relax.Expr:
    return relax.const(value, "int8")


def u8(value: int) -> relax.Expr:
    return relax.const(value, "uint8")


def const(value: float) -> relax.Expr:
    return relax.const(value, "float32")


EXPRESSIONS: dict[str, Callable[[Any, Any], Any]] = {
    "transpose": lambda b, i: op.permute_dims(i),
    "permute": lambda b, i: op.permute_dims(op.reshape(i, (2, 3, 4)), [2, 0, 1]),
    "reshape": lambda b, i: op.reshape(i, (3, -1)),
    "expand": lambda b, i: op.expand_dims(i, [0, 2]),
    "squeeze": lambda b, i: op.squeeze(op.reshape(i, (1, 24, 1)), [0]),
    "flatten": lambda b, i: op.flatten(i),
    "cast that wraps": lambda b, i: op.astype(b, "int8"),
    "cast to wider": lambda b, i: op.astype(i, "float64"),
    "slice": lambda b, i: op.strided_slice(i, [1], [1], [5]),
    "slice with strides": lambda b, i: op.strided_slice(i, [0, 1], [0, 5], [4, 0], [2, -2]),
    "slice beyond the end": lambda b, i: op.strided_slice(i, [1], [-4], [100]),
    "concat": lambda b, i: op.concat([i, i], axis=-1),
    "stack": lambda b, i: op.stack([b, b], axis=2),
    "stack at the front": lambda b, i: op.stack([i, i]),
    "and": lambda b, i: op.bitwise_and(b, u8(15)),
    "or": lambda b, i: op.bitwise_or(b, u8(15)),
    "shift right": lambda b, i: op.right_shift(b, u8(4)),
    "shift right of negatives": lambda b, i: op.right_shift(i, i8(2)),
    "shift left": lambda b, i: op.left_shift(b, u8(3)),
    "add that wraps": lambda b, i: op.add(i, i8(100)),
    "subtract that wraps": lambda b, i: op.subtract(b, u8(200)),
    "multiply": lambda b, i: op.multiply(op.astype(i, "float16"), relax.const(0.1, "float16")),
    "dequantized": lambda b, i: op.dequantize(i, const(0.3), i8(-7)),
    "dequantized by column": lambda b, i: op.dequantize(
        b, relax.const(np.arange(1, 7, dtype=np.float32) / 7), relax.const(BYTES[0]), axis=-1
    ),
    "dequantized by row": lambda b, i: op.dequantize(
        i, relax.const(np.arange(1, 5, dtype=np.float32) / 3), i8(3), axis=0
    ),
    "broadcast": lambda b, i: op.add(i, relax.const(np.arange(6, dtype=np.int8))),
    "unpacked int4": lambda b, i: op.subtract(
        op.astype(op.stack([op.bitwise_and(b, u8(15)), op.right_shift(b, u8(4))], 2), "int8"), i8(8)
    ),
}


def test_values_equal_those_of_a_run() -> None:
    builder = relax.BlockBuilder()
    found = {}
    evaluator = ConstantEvaluator(lambda expr: resolve(builder, expr))
    with builder.function("main", []):
        with builder.dataflow():
            outputs = []
            for name, make in EXPRESSIONS.items():
                y = builder.emit_output(make(relax.const(BYTES), relax.const(INTS)))
                found[name] = evaluator.value(y)
                outputs.append(y)
        builder.emit_func_output(relax.Tuple(outputs))
    vm = relax.VirtualMachine(relax.build(builder.finalize(), "llvm"), tvm.cpu())
    for name, expected in zip(found, vm["main"](), strict=True):
        assert found[name] is not None, name
        assert found[name].shape == expected.shape, name
        assert_equal_bits(found[name], expected.numpy())


def resolve(builder: relax.BlockBuilder, expr: Any) -> Any:
    while isinstance(expr, relax.Var):
        bound = builder.lookup_binding(expr)
        if bound is None:
            return expr
        expr = bound
    return expr


def test_what_depends_on_a_parameter_has_no_value() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 6), "int8"))
    evaluator = ConstantEvaluator(lambda expr: resolve(builder, expr))
    with builder.function("main", [x]):
        made = [
            builder.emit(each)
            for each in (
                op.permute_dims(x),
                op.add(x, i8(1)),
                op.add(relax.const(INTS), x),
                op.concat([x, relax.const(INTS)]),
                op.strided_slice(x, [0], [0], [1]),
            )
        ]
        assert [evaluator.value(each) for each in made] == [None] * len(made)
        assert evaluator.value(x) is None
        # Known, but no move or bit operation: that is not for a pass to compute.
        assert evaluator.value(builder.emit(op.exp(relax.const(1.0, "float32")))) is None
        builder.emit_func_output(relax.Tuple(made))


def test_equal_keys_share_one_constant() -> None:
    evaluator = ConstantEvaluator(lambda expr: expr)
    source = relax.const(INTS)
    first = evaluator.once((source, "sum"), lambda: INTS.sum(axis=1))
    assert evaluator.once((source, "sum"), lambda: INTS.sum(axis=1)).same_as(first)
    assert not evaluator.once((relax.const(INTS), "sum"), lambda: INTS).same_as(first)


def test_constants_keep_dtype_and_shape() -> None:
    for value in (np.float64(0.1).reshape(()), np.ones((2, 3), np.float16), INTS.T):
        constant = make_const(np.asarray(value))
        assert_equal_bits(constant.value.numpy(), np.asarray(value))
        assert constant.value.shape == np.shape(value)
