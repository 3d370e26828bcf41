"""The dialect's ops on a plain llvm target, through LegalizeOps, FoldConstant and relax.build."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from kernel_runner import kernels_of, legalize, one_function, run_main
from tvm import relax, tirx

from sparqle_tvm import dialect
from sparqle_tvm.numerics import slicing
from sparqle_tvm.numerics.dense import dense_reference, grouped_bias_term
from sparqle_tvm.numerics.quantization import (
    QuantizedWeights,
    quantize_per_token,
    quantize_weights,
)

COLUMNS, CHANNELS, GROUP = 64, 40, 32


def weights(seed: int = 0, **options: Any) -> QuantizedWeights:
    rng = np.random.default_rng(seed)
    return quantize_weights(rng.standard_normal((CHANNELS, COLUMNS)).astype(np.float32), **options)


def activations(*lead: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((*lead, COLUMNS)).astype(np.float32)


def expected(x: np.ndarray, w: QuantizedWeights) -> np.ndarray:
    q, scale = quantize_per_token(x.reshape(-1, COLUMNS))
    return dense_reference(q, scale, w).reshape(*x.shape[:-1], CHANNELS)


def encoded(x: relax.Expr, group: int, label: str = "x") -> relax.Expr:
    return dialect.quantize_encode(x, k=4, window="signed", qmax=127, group_size=group, label=label)


def dense(encoding: relax.Expr, w: QuantizedWeights, label: str = "y") -> relax.Expr:
    """The scaled dense of an encoding made by `encoded`, as the passes write it."""
    builder = relax.BlockBuilder.current()
    scale = builder.emit(relax.TupleGetItem(encoding, 4))
    attrs = {"k": 4, "window": "signed", "in_features": COLUMNS, "weight_bits": 4, "label": label}
    if not w.group_size:
        bias = slicing.bias_term(w.values, 4, "signed")
        constants = [relax.const(c) for c in (w.values, w.scale, bias)]
        return dialect.split_dense_scaled(encoding, scale, *constants, group_size=0, **attrs)
    offset = relax.const(grouped_bias_term(w, 4, "signed"), "float64")
    args = [encoding, scale, relax.const(w.values), relax.const(w.scale), offset]
    if w.minimum is not None:
        args += [relax.const(w.minimum), builder.emit(relax.TupleGetItem(encoding, 5))]
    return dialect.split_dense_scaled(*args, group_size=GROUP, **attrs)


def layer(*lead: Any, **options: Any) -> tuple[tvm.IRModule, QuantizedWeights]:
    w = weights(**options)

    def emit(x: relax.Expr) -> relax.Expr:
        encoding = relax.BlockBuilder.current().emit(encoded(x, w.group_size or 0))
        return dense(encoding, w)

    return one_function([("x", [*lead, COLUMNS], "float32")], emit), w


@pytest.mark.parametrize(
    "options",
    [{}, {"group_size": GROUP}, {"group_size": GROUP, "symmetric": False}],
    ids=["channel", "grouped", "minimum"],
)
def test_scaled_dense_equals_the_reference(options: dict[str, Any]) -> None:
    mod, w = layer(1, tirx.Var("t", "int64"), **options)
    lowered = legalize(mod)
    relax.analysis.well_formed(lowered)
    for rows in (1, 19):
        x = activations(1, rows)
        np.testing.assert_array_equal(run_main(lowered, x), expected(x, w))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_static_leading_dimensions(lead: tuple[int, ...]) -> None:
    mod, w = layer(*lead, group_size=GROUP, symmetric=False)
    x = activations(*lead)
    np.testing.assert_array_equal(run_main(legalize(mod), x), expected(x, w))


def test_int32_dense_and_encode() -> None:
    w = weights().values

    def emit(q: relax.Expr) -> relax.Expr:
        encoding = dialect.encode(q, k=4, window="unsigned", group_size=0, label="q")
        return dialect.split_dense(
            relax.BlockBuilder.current().emit(encoding),
            relax.const(w),
            relax.const(np.zeros(CHANNELS, np.int32)),
            k=4,
            window="unsigned",
            in_features=COLUMNS,
            weight_bits=4,
        )

    mod = one_function([("q", [tirx.Var("t", "int64"), COLUMNS], "int8")], emit)
    q = np.random.default_rng(2).integers(-128, 128, (9, COLUMNS)).astype(np.int8)
    found = run_main(legalize(mod), q)
    np.testing.assert_array_equal(found, q.astype(np.int32) @ w.T.astype(np.int32))


def test_arrangements_of_constants_are_folded() -> None:
    mod, _ = layer(3, group_size=GROUP, symmetric=False)
    assert {"panels", "panels1"} <= set(kernels_of(legalize(mod, fold=False)))
    assert set(kernels_of(legalize(mod))) == {"quantize_encode", "split_dense_scaled"}


def test_weights_that_are_no_constants_are_arranged_at_run_time() -> None:
    def emit(q: relax.Expr, w: relax.Expr, bias: relax.Expr) -> relax.Expr:
        encoding = dialect.encode(q, k=4, window="unsigned", group_size=0, label="q")
        return dialect.split_dense(
            relax.BlockBuilder.current().emit(encoding),
            w,
            bias,
            k=4,
            window="unsigned",
            in_features=COLUMNS,
            weight_bits=8,
        )

    args = [
        ("q", [4, COLUMNS], "int8"),
        ("w", [CHANNELS, COLUMNS], "int8"),
        ("bias", [CHANNELS], "int32"),
    ]
    rng = np.random.default_rng(3)
    q = rng.integers(-128, 128, (4, COLUMNS)).astype(np.int8)
    w = rng.integers(-128, 128, (CHANNELS, COLUMNS)).astype(np.int8)
    bias = rng.integers(-999, 999, CHANNELS).astype(np.int32)
    found = run_main(legalize(one_function(args, emit)), q, w, bias)
    np.testing.assert_array_equal(found, q.astype(np.int32) @ w.T.astype(np.int32) + bias)


def test_equal_layers_and_both_functions_share_their_kernels() -> None:
    dialect.register()
    builder = relax.BlockBuilder()
    tokens = tirx.Var("t", "int64")
    for name, length in (("prefill", tokens), ("decode", 1)):
        x = relax.Var("x", relax.TensorType([1, length, COLUMNS], "float32"))
        with builder.function(name, [x]):
            with builder.dataflow():
                outputs = []
                for index in range(3):
                    label = f"{name}_{index}"
                    encoding = builder.emit(encoded(x, GROUP, label))
                    w = weights(index, group_size=GROUP)
                    outputs.append(builder.emit(dense(encoding, w, label)))
                result = builder.emit_output(relax.Tuple(outputs))
            builder.emit_func_output(result)
    kernels = kernels_of(legalize(builder.get()))
    assert set(kernels) == {"quantize_encode", "split_dense_scaled"}
    assert not any("prefill" in kernel.script() for kernel in kernels.values())


def test_legalization_leaves_the_module_alone() -> None:
    mod, _ = layer(3, group_size=GROUP)
    before = mod.script(show_meta=True)
    legalize(mod)
    assert mod.script(show_meta=True) == before


def test_kernels_are_not_fused_with_their_neighbours() -> None:
    mod, w = layer(tirx.Var("t", "int64"), group_size=GROUP)
    fused = legalize(mod)
    for step in (
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ):
        fused = step(fused)
    x = activations(6)
    np.testing.assert_array_equal(run_main(fused, x), expected(x, w))


def test_a_row_with_nan_is_reported_by_its_scale_only() -> None:
    def emit(x: relax.Expr) -> relax.Expr:
        return relax.TupleGetItem(relax.BlockBuilder.current().emit(encoded(x, 0)), 4)

    mod = one_function([("x", [3, COLUMNS], "float32")], emit)
    x = activations(3)
    x[1, 5] = np.nan
    assert np.isnan(run_main(legalize(mod), x)).ravel().tolist() == [False, True, False]
