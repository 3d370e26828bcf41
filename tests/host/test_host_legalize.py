"""The dialect's ops on a plain llvm target, through LegalizeOps, FoldConstant and relax.build."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import NATIVE, kernels_of, legalize, one_function, run_main
from tvm import relax, tirx

from sparqle_tvm import dialect
from sparqle_tvm.numerics import slicing
from sparqle_tvm.numerics.dense import dense_reference, grouped_bias_term
from sparqle_tvm.numerics.quantization import (
    QuantizedWeights,
    quantize_per_token,
    quantize_weights,
)
from sparqle_tvm.numerics.window import WINDOWS

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


def split_of_zero_points(
    dtype: str, k: int, window: str, form: str, zero: int, w: QuantizedWeights
) -> tvm.IRModule:
    """``(q - zero point) @ w`` in the dialect, int32 per channel or float32 of groups."""
    grouped, columns = w.group_size > 0, w.shape[1]
    signed, constant = dtype.startswith("i"), zero if form == "constant" else 0
    digits = WINDOWS[window].digits(
        k, signed=signed, zero_point=constant if form != "one" else zero
    )
    sums = w.values.sum(axis=1, dtype=np.int64)
    if grouped:
        parts = w.values.reshape(*w.scale.shape, -1).sum(axis=2, dtype=np.int64)
        sums = (parts * w.scale.astype(np.float64)).sum(axis=1)
    offset = (-digits.bias if form == "row" else digits.offset) * sums
    kind = "float64" if grouped else "int32"
    offset = relax.const(offset.astype(kind), kind)
    split = {"k": k, "window": window, "zero_point": constant}
    attrs = {"act_signed": int(signed), "in_features": columns, "weight_bits": w.bits, **split}

    def emit(q: relax.Expr, zeros: relax.Expr | None = None) -> relax.Expr:
        builder = relax.BlockBuilder.current()
        encode = dialect.Encode(q, zeros, group_size=w.group_size if grouped else 0, **split)
        encoding = builder.emit(encode.call())
        if not grouped:
            return dialect.split_dense(encoding, relax.const(w.values), offset, **attrs)
        group_sums = builder.emit(encode.field(encoding, "group_sums"))
        scales = [relax.const(w.values), relax.const(w.scale), offset, relax.const(w.minimum)]
        one = relax.const(1.0, "float32")
        operands = [encoding, one, *scales, group_sums]
        return dialect.split_dense_scaled(*operands, group_size=w.group_size, **attrs)

    rows = tirx.Var("t", "int64")
    params: list[tuple[str, list[Any], str]] = [("q", [rows, columns], dtype)]
    if form in ("one", "row"):
        params.append(("zero", [rows, 1] if form == "row" else [], dtype))
    return one_function(params, emit)


@pytest.mark.parametrize("window", ["signed", "unsigned"])
@pytest.mark.parametrize(
    ("k", "dtype"),
    [(2, "int8"), (2, "uint8"), (4, "int8"), (4, "uint8"), (8, "int16"), (8, "uint16")],
)
@settings(max_examples=4, deadline=None)
@given(
    form=st.sampled_from(["none", "constant", "one", "row"]),
    bits=st.sampled_from([2, 4, 8]),
    grouped=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_pairing_equals_int64(
    k: int, dtype: str, window: str, form: str, bits: int, grouped: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    columns, channels = 48, int(rng.integers(1, 40))
    low = -(2 ** (2 * k - 1)) if dtype.startswith("i") else 0
    ends = [low, low + 1, low + 4**k - 2, low + 4**k - 1]
    half = 2 ** (bits - 1)
    w = QuantizedWeights(
        rng.integers(-half, half, (channels, columns)).astype(np.int8),
        rng.normal(size=(channels, 3)).astype(np.float16)
        if grouped
        else np.ones(channels, np.float32),
        rng.normal(size=(channels, 3)).astype(np.float16) if grouped else None,
        bits,
    )
    zero = int(rng.choice([*ends, *rng.integers(low, low + 4**k, 4)]))
    built = legalize(split_of_zero_points(dtype, k, window, form, zero, w))
    machine = relax.VirtualMachine(relax.build(built, NATIVE), tvm.cpu())
    for rows in (1, 6):
        q = rng.integers(low, low + 4**k, (rows, columns)).astype(dtype)
        q[:, : len(ends)] = ends
        zeros = np.full((rows, 1), 0 if form == "none" else zero)
        if form == "row":
            zeros = rng.choice([*ends, zero], (rows, 1))
        zero_points = {"one": np.array(zero, dtype), "row": zeros.astype(dtype)}.get(form)
        arguments = [tvm.runtime.tensor(x) for x in (q, zero_points) if x is not None]
        found = machine["main"](*arguments).numpy()
        split = WINDOWS[window].digits(k, signed=dtype.startswith("i"), zero_point=zeros)
        real = q.astype(np.int64) - zeros
        # Rows with zero points of their own lack the shift, which is added behind the op.
        product = real - split.shift if form == "row" else real
        if not grouped:
            expected = (product @ w.values.T.astype(np.int64)).astype(np.int32)
        else:
            total = np.zeros((rows, channels))
            for g in range(3):
                of = slice(16 * g, 16 * g + 16)
                total += (product[:, of] @ w.values[:, of].T) * w.scale[:, g].astype(np.float64)
                total += real[:, of].sum(1, keepdims=True) * w.minimum[:, g].astype(np.float64)
            expected = total.astype(np.float32)
        np.testing.assert_array_equal(found, expected)
