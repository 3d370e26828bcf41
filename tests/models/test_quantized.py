"""The dense layers in plain Relax ops, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from build_helper import build, tensor
from tvm import relax

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.models.quantized import (
    QMAX,
    ChannelWeight,
    Dense,
    FloatWeight,
    GroupedWeight,
    Weight,
    emit_quantize,
)
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX

IN_FEATURES, OUT_FEATURES = 96, 24


def dense_module(weight: Weight, label: str = "blk_3_ffn_down") -> tvm.IRModule:
    """Return a module with the functions ``main`` (the layer) and ``embed`` (its look-up)."""
    layer = Dense(weight, label)
    constants = {}
    for parameter in (layer.values, layer.scale, layer.minimum):
        if parameter is not None:
            constants[parameter] = relax.const(parameter.data)
            parameter._expr = constants[parameter]
    builder = relax.BlockBuilder()
    rows = tvm.tirx.Var("rows", "int64")
    x = relax.Var("x", relax.TensorType((1, rows, weight.in_features), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(layer(x))
        builder.emit_func_output(y)
    if not isinstance(weight, ChannelWeight):
        tokens = relax.Var("tokens", relax.TensorType((1, tvm.tirx.Var("n", "int64")), "int32"))
        with builder.function("embed", [tokens]):
            with builder.dataflow():
                y = builder.emit_output(layer.embed(tokens))
            builder.emit_func_output(y)
    return builder.finalize()


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    amax = np.abs(x).max(axis=-1, keepdims=True)
    scale = np.maximum(amax, np.float32(SMALLEST_AMAX)) / np.float32(QMAX)
    return np.clip(np.round(x / scale), -QMAX, QMAX).astype(np.int8), scale


def random_grouped(rng: np.random.Generator, minimum: bool) -> GroupedWeight:
    groups = IN_FEATURES // 32
    return GroupedWeight(
        rng.integers(-8, 16, (groups, 32, OUT_FEATURES)).astype(np.int8),
        rng.uniform(0.001, 0.1, (groups, 1, OUT_FEATURES)).astype(np.float16),
        rng.standard_normal((groups, OUT_FEATURES)).astype(np.float16) if minimum else None,
    )


def activations(rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((1, 7, IN_FEATURES), dtype=np.float32)
    x[0, 2] = 0  # a token that is all zero
    x[0, 3, 5] = 300  # an outlier
    x[0, 4] *= np.float32(1e-34)  # below the floor
    return x


def run(mod: tvm.IRModule, x: np.ndarray) -> np.ndarray:
    return build(mod, ["main"])["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize("minimum", [False, True])
def test_grouped_dense_is_exact(minimum: bool) -> None:
    rng = np.random.default_rng(0)
    weight, x = random_grouped(rng, minimum), activations(rng)
    q, act_scale = quantize(x)
    groups = q.reshape(7, -1, 32).astype(np.int64)
    acc = np.einsum("tgk,gkn->tgn", groups, weight.values.astype(np.int64))
    terms = acc.astype(np.float64) * weight.scale[:, 0].astype(np.float64)
    if weight.minimum is not None:
        terms = terms + groups.sum(axis=2)[..., None] * weight.minimum.astype(np.float64)
    expected = terms.sum(axis=1).astype(np.float32)[None] * act_scale
    np.testing.assert_array_equal(run(dense_module(weight), x), expected)


def test_channel_dense_is_exact() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(-8, 8, (OUT_FEATURES, IN_FEATURES)).astype(np.int8)
    weight = ChannelWeight(values, rng.uniform(0.001, 0.1, OUT_FEATURES).astype(np.float32))
    x = activations(rng)
    q, act_scale = quantize(x)
    acc = q.astype(np.int32) @ values.T.astype(np.int32)
    expected = acc.astype(np.float32) * act_scale * weight.scale
    np.testing.assert_array_equal(run(dense_module(weight), x), expected)


def test_float_dense_and_embedding() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((IN_FEATURES, OUT_FEATURES), dtype=np.float32)
    x = rng.standard_normal((1, 5, IN_FEATURES), dtype=np.float32)
    functions = build(dense_module(FloatWeight(values)))
    np.testing.assert_allclose(
        functions["main"](tvm.runtime.tensor(x)).numpy(), x @ values, rtol=1e-4, atol=1e-4
    )
    rows = functions["embed"](tensor([3, 0, 3])).numpy()
    np.testing.assert_array_equal(rows[0], values.T[[3, 0, 3]])


@pytest.mark.parametrize("minimum", [False, True])
def test_grouped_embedding_equals_the_float_weights(minimum: bool) -> None:
    weight = random_grouped(np.random.default_rng(3), minimum)
    ids = [OUT_FEATURES - 1, 0, 7]
    rows = build(dense_module(weight), ["embed"])["embed"](tensor(ids)).numpy()
    np.testing.assert_array_equal(rows[0], weight.to_float().values.T[ids])


def test_channel_weights_as_float() -> None:
    weight = ChannelWeight(np.array([[1, -2], [3, 4]], np.int8), np.array([0.5, 2], np.float32))
    np.testing.assert_array_equal(weight.to_float().values, [[0.5, 6], [-1, 8]])


def test_channel_weights_are_no_embedding() -> None:
    layer = Dense(ChannelWeight(np.ones((4, 8), np.int8), np.ones(4, np.float32)), "head")
    tokens = relax.Var("tokens", relax.TensorType((1, 2), "int32"))
    builder = relax.BlockBuilder()
    with builder.function("f", [tokens]):
        with pytest.raises(InvalidArgumentError, match="head"):
            layer.embed(tokens)
        builder.emit_func_output(tokens)


def test_the_integer_product_bears_the_label() -> None:
    mod = dense_module(random_grouped(np.random.default_rng(0), True))
    named = {
        binding.var.name: binding.value.op.name
        for binding in mod["main"].body.blocks[0].bindings
        if isinstance(binding.value, relax.Call)
    }
    assert named["blk_3_ffn_down"] == "relax.matmul"


def test_quantize_types_are_inferred() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, tvm.tirx.Var("n", "int64"), 64), "float32"))
    with builder.function("f", [x]):
        q, scale = emit_quantize(x)
        builder.emit_func_output(relax.Tuple([q, scale]))
    assert (q.ty.dtype, int(q.ty.shape[2])) == ("int8", 64)
    assert (scale.ty.dtype, int(scale.ty.shape[2])) == ("float32", 1)
