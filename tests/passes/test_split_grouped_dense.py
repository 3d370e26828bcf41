"""Dense ops with float16 scales per group of K become split-precision dense ops."""

from __future__ import annotations

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
from tvm.script import tirx as T

from sparqle_tvm import dialect
from sparqle_tvm.models.quantized import GroupedWeight, emit_grouped_dense
from sparqle_tvm.passes import SplitGroupedDense

# G = 2 groups of g = 4 columns, N = 3 outputs.
W = np.arange(-8, 16, dtype=np.int8).reshape(2, 4, 3)
D = (np.arange(1, 7).reshape(2, 1, 3) / 8).astype(np.float16)
M = (np.arange(6).reshape(2, 3) / 16 - 0.25).astype(np.float16)
W_ROWS, D_ROWS, M_ROWS = W.transpose(2, 0, 1).reshape(3, 8), D[:, 0].T, M.T
OFFSET = -8.0 * (W.sum(axis=1) * D[:, 0].astype(np.float64)).sum(axis=0)


@I.ir_module
class WithMinimum:
    @R.function
    def main(x: R.Tensor((1, "n", 8), "float32")):
        n = T.int64()
        with R.dataflow():
            q = R.astype(R.clip(R.round(x), -119, 119), "int8")
            qg = R.permute_dims(R.reshape(q, (n, 2, 4)), [1, 0, 2])
            up = R.matmul(qg, R.const(W), out_dtype="int32")
            part = R.multiply(R.astype(up, "float64"), R.astype(R.const(D), "float64"))
            y64 = R.sum(part, axis=[0])
            sums = R.astype(R.sum(R.astype(qg, "int32"), axis=[2]), "float64")
            low = R.matmul(R.permute_dims(sums), R.astype(R.const(M), "float64"))
            y = R.astype(R.add(y64, low), "float32")
            R.output(y)
        return y


@I.ir_module
class WithMinimumExpected:
    @R.function
    def main(x: R.Tensor((1, "n", 8), "float32")):
        n = T.int64()
        with R.dataflow():
            q = R.astype(R.clip(R.round(x), -119, 119), "int8")
            enc = R.sparqle.encode(q, k=4, window="signed", group_size=4, label="up")
            sums = enc[4]
            up = R.sparqle.split_dense_scaled(
                enc, R.const(1, "float32"), R.const(W_ROWS), R.const(D_ROWS),
                R.const(OFFSET, "float64"), R.const(M_ROWS), sums, k=4, window="signed",
                in_features=8, group_size=4, weight_bits=8, label="up",
            )  # fmt: skip
            y = R.reshape(up, (n, 3))
            R.output(y)
        return y


@I.ir_module
class Parameters:
    """No minimum, nothing known of q, operands as parameters, the scale on the left."""

    @R.function
    def main(
        q: R.Tensor((5, 8), "int8"),
        w: R.Tensor((2, 4, 3), "int8"),
        d: R.Tensor((2, 1, 3), "float16"),
    ):
        with R.dataflow():
            qg = R.permute_dims(R.reshape(q, (5, 2, 4)), [1, 0, 2])
            up = R.matmul(qg, w, out_dtype="int32")
            part = R.multiply(R.astype(d, "float64"), R.astype(up, "float64"))
            y = R.astype(R.sum(part, axis=[0]), "float32")
            R.output(y)
        return y


@I.ir_module
class ParametersExpected:
    @R.function
    def main(
        q: R.Tensor((5, 8), "int8"),
        w: R.Tensor((2, 4, 3), "int8"),
        d: R.Tensor((2, 1, 3), "float16"),
    ):
        with R.dataflow():
            w_rows = R.reshape(R.permute_dims(w, [2, 0, 1]), (3, 8))
            d_rows = R.reshape(R.permute_dims(d, [2, 0, 1]), (3, 2))
            enc = R.sparqle.encode(q, k=4, window="signed", label="up")
            by_group = R.astype(R.reshape(w_rows, (3, 2, 4)), "int32")
            sums = R.astype(R.sum(by_group, axis=[2]), "float64")
            total = R.sum(R.multiply(sums, R.astype(d_rows, "float64")), axis=[1])
            offset = R.multiply(total, R.const(-8.0, "float64"))
            up = R.sparqle.split_dense_scaled(
                enc, R.const(1, "float32"), w_rows, d_rows, offset, k=4,
                window="signed", in_features=8, group_size=4, weight_bits=8, label="up",
            )  # fmt: skip
            y = R.reshape(up, (5, 3))
            R.output(y)
        return y


@pytest.mark.parametrize(
    ("before", "expected"),
    [(WithMinimum, WithMinimumExpected), (Parameters, ParametersExpected)],
    ids=["minimum", "parameters"],
)
def test_expected_module(before: tvm.IRModule, expected: tvm.IRModule) -> None:
    report = assert_changed(SplitGroupedDense, before, expected)
    assert report.rewritten["SplitGroupedDense"] == 1
    assert report.skipped == []


def by_hand(**changes: Any) -> tvm.IRModule:
    """The form above, with one of its parts changed."""
    form: dict[str, Any] = {
        "q": ((5, 8), "int8"),
        "cut": (5, 2, 4),
        "axes": [1, 0, 2],
        "w": W,
        "d": D,
        "sum_axis": [0],
        "m": M,
        "low": lambda sums, m: op.matmul(op.permute_dims(sums), op.astype(m, "float64")),
        "out": "float32",
        "acc": "int32",
        **changes,
    }
    builder = relax.BlockBuilder()
    emit = builder.emit
    params = [relax.Var("q", relax.TensorType(*form["q"]))]
    w = relax.Var("w", relax.TensorType(W.shape, "int8"))
    if form["w"] is None:
        params.append(w)
    with builder.function("main", params):
        with builder.dataflow():
            weight = emit(op.abs(w)) if form["w"] is None else relax.const(form["w"])
            qg = emit(op.permute_dims(op.reshape(params[0], form["cut"]), form["axes"]))
            up = emit(op.matmul(qg, weight, form["acc"]), "up")
            d = op.astype(relax.const(form["d"]), "float64")
            y = emit(op.sum(op.multiply(op.astype(up, "float64"), d), axis=form["sum_axis"]))
            if form["m"] is not None:
                sums = emit(op.astype(op.sum(op.astype(qg, "int32"), axis=[2]), "float64"))
                y = emit(op.add(y, form["low"](sums, relax.const(form["m"]))))
            y = builder.emit_output(op.astype(y, form["out"]))
        builder.emit_func_output(y)
    return builder.finalize()


def test_the_form_by_hand_is_rewritten() -> None:
    for mod in (by_hand(), by_hand(m=None), by_hand(low=lambda sums, m: swapped(sums, m))):
        _, report = apply(SplitGroupedDense, mod)
        assert report.rewritten["SplitGroupedDense"] == 1


def swapped(sums: Any, m: Any) -> relax.Expr:
    """The minimum's share with the axes of the permutation spelled out."""
    return op.matmul(op.permute_dims(sums, [1, 0]), op.astype(m, "float64"))


def integers(dtype: str) -> np.ndarray:
    """Activations (5, 8): random ones, and rows of the smallest and of the largest integer."""
    info = np.iinfo(dtype)
    q = np.random.default_rng(0).integers(info.min, info.max, (5, 8), dtype, endpoint=True)
    q[0], q[1] = info.min, info.max
    return q


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("minimum", [M, None], ids=["minimum", "none"])
def test_all_integers_give_the_same_numbers(dtype: str, minimum: np.ndarray | None) -> None:
    mod = by_hand(q=((5, 8), dtype), m=minimum)
    _, report = apply(SplitGroupedDense, mod)
    assert report.rewritten["SplitGroupedDense"] == 1
    q = integers(dtype)
    assert_equal_bits(Runnable(mod, SplitGroupedDense())(q), Runnable(mod)(q))


@pytest.mark.parametrize("minimum", [M, M.astype(np.float32) * 41, None], ids=str)
def test_float32_scales_that_are_products_with_integers(minimum: np.ndarray | None) -> None:
    """As those of GGUF's K-quants; minima become float32 with them."""
    mod = by_hand(d=D.astype(np.float32) * np.float32(-59), m=minimum)
    split, report = apply(SplitGroupedDense, mod)
    assert report.rewritten["SplitGroupedDense"] == 1
    assert "float32" in split.script()
    q = integers("int8")
    assert_equal_bits(Runnable(mod, SplitGroupedDense())(q), Runnable(mod)(q))


def test_weights_that_are_parameters_give_the_same_numbers() -> None:
    arguments = (integers("int8"), W, D)
    split, plain = Runnable(Parameters, SplitGroupedDense()), Runnable(Parameters)
    assert_equal_bits(split(*arguments), plain(*arguments))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"q": ((5, 8), "int32")}, "activations are int32"),
        ({"w": W.astype(np.uint8)}, "weights are uint8"),
        ({"w": None}, "computed at run time"),
        ({"acc": None}, "accumulates in int8, int32 is needed"),
        ({"d": D.astype(np.float32) / np.float32(3)}, "known to be multiples of 2^-24"),
        ({"d": D.astype(np.int32)}, "group scales are no float16 or float32"),
        ({"d": D[:1]}, "no float16 or float32 of shape (G, 1, N)"),
        ({"q": ((8, 5), "int8"), "cut": (5, 2, 4)}, "K of the activations is not G * group"),
        ({"q": ((10, 8), "int8"), "cut": (20, 1, 4), "m": None}, "not cut into groups along K"),
        ({"cut": (2, 5, 4), "axes": [0, 1, 2]}, "not cut into groups along K"),
        ({"low": lambda sums, m: relax.const(np.ones((5, 3)), "float64")}, "no minimum per group"),
        ({"m": M.astype(np.int32)}, "no minimum per group"),
        ({"d": D * np.float16(60000)}, "allow sums of 5.36871e+08"),
        ({"m": np.full_like(M, np.inf)}, "float64 would round"),
    ],
)
def test_what_is_left_alone_and_why(changes: dict[str, Any], reason: str) -> None:
    (found,) = assert_unchanged(SplitGroupedDense, by_hand(**changes))
    assert reason in found


@pytest.mark.parametrize(
    "changes", [{"sum_axis": [1], "m": None}, {"out": "float16"}, {"out": "int32"}]
)
def test_other_forms_are_not_looked_at(changes: dict[str, Any]) -> None:
    assert assert_unchanged(SplitGroupedDense, by_hand(**changes)) == []


def model_form(weight: GroupedWeight, functions: tuple[str, ...]) -> tvm.IRModule:
    """The dense of our frontend, x (1, n, K), in functions that hold the same constants."""
    values, scale = relax.const(weight.values), relax.const(weight.scale)
    minimum = None if weight.minimum is None else relax.const(weight.minimum)
    columns = weight.in_features
    builder = relax.BlockBuilder()
    for name in functions:
        rows = tvm.tirx.Var("n", "int64")
        x = relax.Var("x", relax.TensorType((1, rows, columns), "float32"))
        with builder.function(name, [x]):
            with builder.dataflow():
                y = builder.emit_output(emit_grouped_dense(x, values, scale, minimum, "up"))
            builder.emit_func_output(y)
    return builder.finalize()


def random_weight(rng: np.random.Generator, groups: int, n: int, minimum: bool) -> GroupedWeight:
    return GroupedWeight(
        rng.integers(0 if minimum else -8, 16 if minimum else 8, (groups, 32, n)).astype(np.int8),
        rng.uniform(1e-6, 1, (groups, 1, n)).astype(np.float16),
        rng.normal(size=(groups, n)).astype(np.float16) if minimum else None,
    )


@pytest.mark.parametrize("minimum", [True, False])
def test_functions_share_their_constants(minimum: bool) -> None:
    mod = model_form(random_weight(np.random.default_rng(0), 2, 5, minimum), ("decode", "prefill"))
    after, _ = apply(SplitGroupedDense, mod)
    dense = [
        binding.value
        for name in ("decode", "prefill")
        for binding in after[name].body.blocks[0].bindings
        if dialect.op_name(binding.value) == "split_dense_scaled"
    ]
    assert len(dense) == 2
    for place in (2, 3, 4, 5)[: 4 if minimum else 3]:
        assert isinstance(dense[0].args[place], tvm.ir.GenericConst)
        assert dense[0].args[place].same_as(dense[1].args[place])
    assert dialect.Op.of(dense[0]).weight_bits == 4


@settings(max_examples=2, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.booleans(), st.integers(0, 2**32 - 1))
def test_same_numbers_as_the_plain_build(groups: int, n: int, minimum: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mod = model_form(random_weight(rng, groups, n, minimum), ("main",))
    plain, split = Runnable(mod), Runnable(mod, SplitGroupedDense())
    for rows in (1, 2, 5, 17):
        x = rng.standard_normal((1, rows, groups * 32), dtype=np.float32)
        x[0, 0] *= rng.choice([0, 1, 1e-34], groups * 32)
        assert_equal_bits(split(x), plain(x))
