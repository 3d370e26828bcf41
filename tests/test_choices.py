"""Choices from the front door: split form, plain int8, simulator and NumPy agree bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

import sparqle_tvm
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.models.quantized import QMAX, emit_channel_dense, emit_grouped_dense
from sparqle_tvm.numerics import (
    EncodingChoice,
    QuantizedWeights,
    dense_reference,
    encode,
    quantize_weights,
    quantize_with_choice,
    scale_weights,
)

K, GROUPS = 64, 2
WINDOWS = {"up": "signed", "down": "unsigned"}


def weights() -> dict[str, QuantizedWeights]:
    """A layer with group scales and minima, and one with scales per channel."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((2, 12, K)).astype(np.float32)
    return {
        "up": quantize_weights(w[0], group_size=K // GROUPS, symmetric=False),
        "down": quantize_weights(w[1]),
    }


@functools.cache
def model() -> Any:
    """Both layers on one input; the input of "down" is negated, so that they share nothing."""
    up, down = weights().values()
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 5, K), "float32"))
    assert up.minimum is not None
    with builder.function("main", [x]):
        with builder.dataflow():
            y = emit_grouped_dense(
                x,
                relax.const(up.values.reshape(12, GROUPS, -1).transpose(1, 2, 0).copy()),
                relax.const(up.scale.T.reshape(GROUPS, 1, 12).copy()),
                relax.const(up.minimum.T.copy()),
                "up",
            )
            negated = builder.emit(relax.op.negative(x))
            z = emit_channel_dense(
                negated, relax.const(down.values), relax.const(down.scale), "down"
            )
            outputs = [builder.emit_output(y), builder.emit_output(z)]
        builder.emit_func_output(relax.Tuple(outputs))
    return builder.finalize()


def random_choices(seed: int) -> dict[str, EncodingChoice]:
    """Factors for each group of "up", one for "down", bands for both."""
    rng = np.random.default_rng(seed)
    choices = {}
    for label, groups in (("up", GROUPS), ("down", 1)):
        factors = np.repeat(np.exp2(rng.uniform(-1, 3, groups)), K // groups).astype(np.float32)
        low, high = (-8, 7) if WINDOWS[label] == "signed" else (0, 15)
        lo, hi = low - rng.integers(0, 20, K), high + rng.integers(0, 20, K)
        choices[label] = EncodingChoice(factors, lo.astype(np.int8), hi.astype(np.int8))
    return choices


def expected(x: np.ndarray, choices: dict[str, EncodingChoice]) -> list[tuple[Any, ...]]:
    """Result, integers and number of clipped elements of both layers, from NumPy."""
    found = []
    for sign, (label, layer) in zip((1, -1), weights().items(), strict=True):
        choice = choices.get(label, EncodingChoice())
        source = np.float32(sign) * x[0]
        q, scale, clipped = quantize_with_choice(source, choice, window=WINDOWS[label], qmax=QMAX)
        scaled = scale_weights(layer, choice.factors_or_ones(K))
        found.append((dense_reference(q, scale, scaled), q, clipped))
    return found


def activation(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=(1, 5, K)).astype(np.float32)


def assert_bits(executable: Any, x: np.ndarray, choices: dict[str, EncodingChoice]) -> None:
    for found, (y, _, _) in zip(executable["main"](x), expected(x, choices), strict=True):
        assert found.numpy()[0].tobytes() == y.tobytes()


@pytest.mark.parametrize(
    "options", [{"split": False}, {"engine": "simulator"}, {"collect_encodings": True}]
)
def test_every_form_gives_the_numbers_of_the_definition(options: dict[str, Any]) -> None:
    choices = random_choices(0)
    executable = sparqle_tvm.compile(model(), windows=WINDOWS, choices=choices, **options)
    assert executable.report.rewritten["RaiseMsbSparsity"] == 2
    for seed in range(3):
        x = activation(seed)
        assert_bits(executable, x, choices)
        for record, (_, q, clipped) in zip(
            executable.encodings, expected(x, choices), strict=False
        ):
            planes = encode(q, window=WINDOWS[record.label])
            np.testing.assert_array_equal(record.pbm, planes.pbm)
            assert record.clipped == clipped
    assert len(executable.encodings) == (2 if "collect_encodings" in options else 0)


@functools.cache
def open_choices(split: bool) -> Any:
    return sparqle_tvm.compile(model(), windows=WINDOWS, split=split, lift_choices=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([("up",), ("down",), ("up", "down"), ()]))
def test_one_executable_takes_every_choice(seed: int, labels: tuple[str, ...]) -> None:
    choices = {k: v for k, v in random_choices(seed).items() if k in labels}
    for split in (True, False):
        executable = open_choices(split)
        executable.choose(choices)
        assert_bits(executable, activation(seed), choices)


def test_choose_says_what_is_wrong() -> None:
    executable = open_choices(True)
    assert set(executable.choosable) == {"up", "down"}
    with pytest.raises(InvalidArgumentError, match="upp: no encoding of this name takes a choice"):
        executable.choose({"upp": EncodingChoice()})
    with pytest.raises(InvalidArgumentError, match="down: the factors change within"):
        executable.choose({"down": EncodingChoice(random_choices(0)["up"].factors)})
