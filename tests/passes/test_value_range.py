"""Bounds on integer tensors: what single ops give, and that they always hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax
from tvm.relax import op

from sparqle_tvm.passes._value_range import dtype_range, value_range, weight_bits

INF = float("inf")


def range_of(make: Callable[[Any], Any], dtype: str = "int8") -> tuple[float, float]:
    """Range of what ``make`` builds from a parameter (4, 6) of this dtype."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 6), dtype))

    def resolve(expr: Any) -> Any:
        while isinstance(expr, relax.Var):
            bound = builder.lookup_binding(expr)
            if bound is None:
                return expr
            expr = bound
        return expr

    with builder.function("f", [x]):
        y = builder.emit(make(x))
        found = value_range(y, resolve)
        builder.emit_func_output(y)
    return found


def i8(value: int) -> relax.Expr:
    return relax.const(value, "int8")


SINGLE_OPS: dict[str, tuple[Callable[[Any], Any], tuple[float, float]]] = {
    "parameter": (lambda x: x, (-128, 127)),
    "constant": (lambda x: relax.const(np.array([-3, 9], np.int8)), (-3, 9)),
    "empty constant": (lambda x: relax.const(np.zeros((0,), np.int8)), (-128, 127)),
    "and": (lambda x: op.bitwise_and(x, i8(15)), (0, 15)),
    "and with a negative mask": (lambda x: op.bitwise_and(x, i8(-2)), (-128, 127)),
    "shift": (lambda x: op.right_shift(x, i8(4)), (-8, 7)),
    "subtract": (lambda x: op.subtract(op.bitwise_and(x, i8(15)), i8(8)), (-8, 7)),
    "add that wraps": (lambda x: op.add(x, i8(1)), (-128, 127)),
    "add of two tensors": (lambda x: op.add(x, x), (-128, 127)),
    "clip": (lambda x: op.clip(x, -7, 100), (-7, 100)),
    "clip of a narrow tensor": (lambda x: op.clip(op.right_shift(x, i8(4)), -128, 3), (-8, 3)),
    "clip above everything": (lambda x: op.clip(op.right_shift(x, i8(4)), 20, 30), (20, 30)),
    "maximum": (lambda x: op.maximum(x, i8(-5)), (-5, 127)),
    "minimum": (lambda x: op.minimum(x, i8(5)), (-128, 5)),
    "abs that wraps": (lambda x: op.abs(x), (-128, 127)),
    "abs": (lambda x: op.abs(op.clip(x, -9, 3)), (0, 9)),
    "cast": (lambda x: op.astype(x, "int16"), (-128, 127)),
    "cast that wraps": (lambda x: op.astype(x, "uint8"), (0, 255)),
    "cast to float": (lambda x: op.astype(x, "float32"), (-128, 127)),
    "reshape": (lambda x: op.reshape(op.clip(x, 0, 3), (24,)), (0, 3)),
    "slice": (lambda x: op.strided_slice(op.clip(x, 0, 3), [1], [0], [5]), (0, 3)),
    "concat": (lambda x: op.concat([op.clip(x, 0, 3), i8_row(-2)], axis=0), (-2, 3)),
    "stack": (lambda x: op.stack([op.clip(x, 0, 3), op.clip(x, -1, 0)]), (-1, 3)),
    "max over an axis": (lambda x: op.max(op.clip(x, 0, 3), axis=[1]), (0, 3)),
    "unknown op": (lambda x: op.multiply(x, i8(0)), (-128, 127)),
}


def i8_row(value: int) -> relax.Expr:
    return relax.const(np.full((1, 6), value, np.int8))


@pytest.mark.parametrize("name", SINGLE_OPS)
def test_single_ops(name: str) -> None:
    make, expected = SINGLE_OPS[name]
    assert range_of(make) == expected


def test_a_float_quantizer_is_bounded_by_its_clip() -> None:
    def quantize(x: Any) -> Any:
        return op.astype(op.clip(op.round(op.divide(x, x)), -119, 119), "int8")

    assert range_of(quantize, "float32") == (-119, 119)
    assert range_of(lambda x: op.round(op.clip(x, -7.6, 7.6)), "float32") == (-8, 8)
    assert range_of(lambda x: x, "float32") == (-INF, INF)


def test_dtype_ranges() -> None:
    assert dtype_range("uint8") == (0, 255)
    assert dtype_range("int16") == (-32768, 32767)
    assert dtype_range("float16") == (-INF, INF)
    assert dtype_range("") == (-INF, INF)


@pytest.mark.parametrize(
    ("bounds", "bits"),
    [
        ((-2, 1), 2),
        ((0, 3), 2),
        ((-1, 1), 2),
        ((-3, 0), 4),
        ((0, 15), 4),
        ((-8, 7), 4),
        ((-1, 15), 8),
        ((-9, 0), 8),
        ((0, 16), 8),
        ((-128, 127), 8),
    ],
)
def test_weight_bits(bounds: tuple[float, float], bits: int) -> None:
    assert weight_bits(bounds) == bits


STEPS: dict[str, tuple[Callable[[Any, int], Any], Callable[[np.ndarray, int], np.ndarray]]] = {
    "and": (lambda x, c: op.bitwise_and(x, like(x, c)), lambda v, c: v & v.dtype.type(c)),
    "shift": (
        lambda x, c: op.right_shift(x, like(x, c % 7)),
        lambda v, c: v >> v.dtype.type(c % 7),
    ),
    "add": (lambda x, c: op.add(x, like(x, c)), lambda v, c: v + v.dtype.type(c)),
    "subtract": (lambda x, c: op.subtract(x, like(x, c)), lambda v, c: v - v.dtype.type(c)),
    "maximum": (
        lambda x, c: op.maximum(x, like(x, c)),
        lambda v, c: np.maximum(v, v.dtype.type(c)),
    ),
    "minimum": (
        lambda x, c: op.minimum(x, like(x, c)),
        lambda v, c: np.minimum(v, v.dtype.type(c)),
    ),
    "clip": (lambda x, c: op.clip(x, c - 40, c), lambda v, c: np.clip(v.astype(int), c - 40, c)),
    "abs": (lambda x, c: op.abs(x), lambda v, c: np.abs(v)),
    "wider": (lambda x, c: op.astype(x, "int16"), lambda v, c: v.astype(np.int16)),
    "narrower": (lambda x, c: op.astype(x, "int8"), lambda v, c: v.astype(np.int8)),
}


def like(x: Any, value: int) -> relax.Expr:
    return relax.const(value, str(x.ty.dtype))


@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 127)), max_size=6))
def test_the_bounds_always_hold(steps: list[tuple[str, int]]) -> None:
    values = np.arange(-128, 128).astype(np.int8)

    def make(x: Any) -> Any:
        nonlocal values
        for name, constant in steps:
            build, run = STEPS[name]
            x = relax.BlockBuilder.current().emit(build(x, constant))
            values = run(values, constant).astype(str(x.ty.dtype))
        return x

    low, high = range_of(make)
    assert low <= values.min()
    assert values.max() <= high
