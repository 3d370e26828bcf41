"""Dense ops that read one encoding become one, and give what they gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_changed, assert_equal_bits, assert_unchanged
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm import dialect, numerics
from sparqle_tvm.passes import JoinDense

WQ = np.arange(-8, 8, dtype=np.int8).repeat(3).reshape(3, 16)
WK = np.arange(-8, 8, dtype=np.int8).reshape(1, 16)
WQK = np.concatenate([WQ, WK])
BQ, BK = (numerics.bias_term(w, 4, "signed") for w in (WQ, WK))
BQK = np.concatenate([BQ, BK])
DQ, DK = np.array([1, 2, 3], np.float32), np.array([4], np.float32)
DQK = np.array([1, 2, 3, 4], np.float32)


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((2, 16), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, k=4, window="signed", label="x")
            scale = enc[4]
            q = R.sparqle.split_dense_scaled(
                enc, scale, R.const(WQ), R.const(DQ), R.const(BQ), k=4, window="signed",
                in_features=16, group_size=0, weight_bits=4, label="q",
            )  # fmt: skip
            # Bound behind the first op, and the same.
            again = enc[4]
            k = R.sparqle.split_dense_scaled(
                enc, again, R.const(WK), R.const(DK), R.const(BK), k=4, window="signed",
                in_features=16, group_size=0, weight_bits=4, label="k",
            )  # fmt: skip
            both = (q, k)
            R.output(both)
        return both


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((2, 16), "float32")):
        with R.dataflow():
            enc = R.sparqle.quantize_encode(x, k=4, window="signed", label="x")
            scale = enc[4]
            joint = R.sparqle.split_dense_scaled(
                enc, scale, R.const(WQK), R.const(DQK), R.const(BQK), k=4, window="signed",
                in_features=16, group_size=0, weight_bits=4, label="q+k",
            )  # fmt: skip
            parts = R.split(joint, [3], axis=-1)
            q = parts[0]
            k = parts[1]
            both = (q, k)
            R.output(both)
        return both


def test_expected_module() -> None:
    assert_changed(JoinDense, Before, Expected)


def module(weights: list[np.ndarray], *, bits: list[int], constant: bool = True) -> tvm.IRModule:
    """int32 ops that read one encoding of int8 (M, K)."""
    builder, columns = relax.BlockBuilder(), weights[0].shape[1]
    rows = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((rows, columns), "int8"))
    given_weights: list[Any] = [relax.const(w) for w in weights]
    if not constant:
        given_weights = [
            relax.Var(f"w{i}", relax.TensorType(w.shape, "int8")) for i, w in enumerate(weights)
        ]
    parameters = [x, *(w for w in given_weights if isinstance(w, relax.Var))]
    attrs: dict[str, Any] = {"k": 4, "window": "signed"}
    with builder.function("main", parameters):
        with builder.dataflow():
            enc = builder.emit(dialect.encode(x, label="x", **attrs))
            found = [
                builder.emit_output(
                    dialect.split_dense(
                        enc,
                        w,
                        relax.const(numerics.bias_term(values, 4, "signed")),
                        in_features=columns,
                        weight_bits=b,
                        label=f"op{i}",
                        **attrs,
                    )
                )
                for i, (w, values, b) in enumerate(zip(given_weights, weights, bits, strict=True))
            ]
        builder.emit_func_output(relax.Tuple(found))
    return builder.finalize()


def test_what_differs_stays_alone() -> None:
    signed, unsigned = WQ, WQ + np.int8(8)
    assert assert_unchanged(JoinDense, module([WQ], bits=[4])) == []
    assert assert_unchanged(JoinDense, module([WQ, WK], bits=[4, 8])) == []
    # Stored with other signs: side by side they would need more bits.
    assert assert_unchanged(JoinDense, module([signed, unsigned], bits=[4, 4])) == []
    reasons = assert_unchanged(JoinDense, module([WQ, WK], bits=[4, 4], constant=False))
    assert all("no constants" in reason for reason in reasons)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_results_are_those_of_the_ops(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    columns = data.draw(st.integers(1, 40))
    outputs = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    weights = [rng.integers(-8, 8, (n, columns), dtype=np.int8) for n in outputs]
    for w in weights:
        w.flat[0] = -8  # so that all of them are signed
    mod = module(weights, bits=[4] * len(weights))
    joined, report = apply(JoinDense, mod)
    assert report.rewritten["JoinDense"] == len(weights)
    x = rng.integers(-128, 128, (data.draw(st.integers(1, 5)), columns), dtype=np.int8)
    found = Runnable(joined)(x)
    assert_equal_bits(found, [x.astype(np.int32) @ w.T.astype(np.int32) for w in weights])


def test_scales_of_several_types_stay_apart() -> None:
    """Side by side, the narrow ones would become wide."""

    def grouped(*dtypes: str) -> tvm.IRModule:
        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType((2, 16), "float32"))
        attrs: dict[str, Any] = {"k": 4, "window": "unsigned", "group_size": 8}
        with builder.function("main", [x]):
            with builder.dataflow():
                enc = builder.emit(dialect.quantize_encode(x, label="x", **attrs))
                scale = builder.emit(relax.TupleGetItem(enc, 4))
                found = [
                    builder.emit_output(
                        dialect.split_dense_scaled(
                            enc,
                            scale,
                            relax.const(WQ),
                            relax.const(np.ones((3, 2), dtype)),
                            relax.const(np.zeros(3, np.float64), "float64"),
                            in_features=16,
                            weight_bits=4,
                            label=f"op{i}",
                            **attrs,
                        )
                    )
                    for i, dtype in enumerate(dtypes)
                ]
            builder.emit_func_output(relax.Tuple(found))
        return builder.finalize()

    assert assert_unchanged(JoinDense, grouped("float16", "float32")) == []
    _, report = apply(JoinDense, grouped("float32", "float32"))
    assert report.rewritten["JoinDense"] == 2
