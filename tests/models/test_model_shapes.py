"""Published models: their sizes, held to the numbers of parameters that they are named after."""

from __future__ import annotations

import pytest

from sparqle_tvm.commands._shared import MODEL_NAMES
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.frontend.shape import model_shape
from sparqle_tvm.models.shapes import LAYER_TYPES, MODELS
from sparqle_tvm.target.cost.vector import KV_BITS, TransformerShape

# Dense weights and the embedding, in millions, as published; SmolLM2 and BitNet use the embedding
# as output layer.
PARAMETERS = {
    "smollm2-135m": (134.5, True),
    "bitnet-3b": (3320.0, True),
    "llama2-7b": (6738.0, False),
    "llama2-13b": (13016.0, False),
    "llama2-70b": (68977.0, False),
    "llama3-8b": (8030.0, False),
    "qwen2.5-7b": (7615.6, False),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_add_up(name):
    model = MODELS[name]
    published, tied = PARAMETERS[name]
    embedding = 0 if tied else model.vocab * model.embed
    dense = sum(
        model.times(kind) * layer.n * layer.k
        for kind in LAYER_TYPES
        for layer in model.readers(kind, 1)
    )
    assert (dense + embedding) / 1e6 == pytest.approx(published, rel=2e-3)
    assert model.source


@pytest.mark.parametrize("name", MODELS)
def test_layers_fit_together(name):
    model = MODELS[name]
    shapes = {kind: model.readers(kind, 7) for kind in LAYER_TYPES}
    assert all(shape.m == 7 for readers in shapes.values() for shape in readers)
    q, k, v = shapes["qkv"]
    assert q.k == k.k == v.k == shapes["gate_up"][0].k == shapes["output"][0].k == model.embed
    assert k.n == v.n == q.n * model.kv_heads // model.heads
    assert shapes["o"][0].k == q.n
    assert shapes["down"][0].k == shapes["gate_up"][0].n == shapes["gate_up"][1].n
    assert [model.times(kind) for kind in LAYER_TYPES] == [model.layers] * 4 + [1]
    assert shapes["output"][0].weight_bits == 8
    assert shapes["qkv"][0].weight_bits == (2 if name == "bitnet-3b" else 4)


def test_transformer_of_a_model():
    shape = MODELS["llama3-8b"].transformer(kv_bits=4)
    assert shape == TransformerShape(32, 4096, 14336, 32, 8, 128, 128256, 4)


def test_positions():
    found = {name: model.max_positions for name, model in MODELS.items()}
    # Powers of two as published; BitNet 3B was trained with the shortest texts.
    assert min(found, key=found.__getitem__) == "bitnet-3b"
    assert all(n and not n & (n - 1) for n in found.values())


@pytest.mark.parametrize("bits", [1, 2, 5, 32])
def test_widths_of_the_cache(bits):
    with pytest.raises(InvalidArgumentError, match=rf"kv_bits = {bits} must be .*4.*8.*16"):
        MODELS["llama2-7b"].transformer(kv_bits=bits)
    for known in KV_BITS:
        assert MODELS["llama2-7b"].transformer(kv_bits=known).kv_bits == known


def test_names():
    assert tuple(MODELS) == tuple(MODEL_NAMES.split(", "))
    assert model_shape("llama2-7b") is MODELS["llama2-7b"]
    assert model_shape(MODELS["llama2-7b"]) is MODELS["llama2-7b"]
    with pytest.raises(InvalidArgumentError, match=r"unknown model 'gpt-5'; known: smollm2-135m,"):
        model_shape("gpt-5")
