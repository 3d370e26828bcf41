"""The driver behind `sparqle run`, on a tiny model; the real one is marked slow."""

import dataclasses

import numpy as np
import pytest
import tvm
from gguf import GGMLQuantizationType as Kind
from tiny_files import write_prose, write_tiny_model

import sparqle_tvm
from sparqle_tvm.compiler import EncodingRecord
from sparqle_tvm.errors import (
    InvalidArgumentError,
    ModelFileError,
    TargetError,
    TextError,
    UnsupportedModelError,
)
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.models.logits import all_logits
from sparqle_tvm.numerics import encode
from sparqle_tvm.passes import DenseInfo, EncodingInfo
from sparqle_tvm.run import (
    count_phases,
    encoded_activations,
    evaluate,
    layer_sparsities,
    run_model,
)
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.vector import TransformerShape

EDGE = PRESETS["sparqle/edge"]
SHAPE = TransformerShape(layers=1, embed=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=257)


def record(label: str, consumers: dict[str, int], tokens: int, seed: int) -> EncodingRecord:
    q = np.random.default_rng(seed).integers(-30, 30, (tokens, 64)).astype(np.int8)
    dense = [DenseInfo(name, n, 64, 4, 32, True) for name, n in consumers.items()]
    info = EncodingInfo(label, 4, "signed", 64, True, False, dense)
    return EncodingRecord(info, encode(q).pbm, None, 0)


def test_counting_takes_all_tokens_but_one_for_the_output():
    records = [
        record("a", {"blk_0_attn_q": 64, "blk_0_attn_k": 32}, 40, seed=0),
        record("b", {"blk_0_ffn_down": 64}, 40, seed=1),
        record("c", {"output": 257}, 8, seed=2),
    ]
    encodings = encoded_activations(records)
    prefill, decode = count_phases(encodings, SHAPE, EDGE)
    assert (prefill.tokens, prefill.past, decode.tokens, decode.past) == (40, 0, 1, 39)
    macs = [op.macs for op in prefill.sparqle.ops]
    assert macs == [40 * 64 * 64, 40 * 32 * 64, 40 * 64 * 64, 257 * 64]
    assert sum(op.macs for op in decode.sparqle.ops) == (64 + 32 + 64 + 257) * 64
    sparsities = [e.nnz.msb_sparsity for e in encodings[:2]]
    last = encodings[2].nnz.last_row().msb_sparsity
    expected = np.average([*sparsities, last], weights=[macs[0] + macs[1], *macs[2:]])
    assert prefill.msb_sparsity == pytest.approx(expected)
    layers = layer_sparsities(records, encodings)
    assert [layer.kind for layer in layers] == ["attn_q attn_k", "ffn_down", "output"]
    assert layers[0].consumers == ("blk_0_attn_q", "blk_0_attn_k")


@pytest.mark.parametrize("rows", [1, 5])
def test_the_output_layer_counts_once_even_if_all_its_rows_are_known(rows):
    records = [
        record("a", {"blk_0_attn_q": 64}, 5, seed=0),
        record("c", {"output": 257}, rows, seed=2),
    ]
    prefill, _ = count_phases(encoded_activations(records), SHAPE, EDGE)
    assert prefill.dense.ops[-1].macs == 257 * 64


def test_nothing_encoded():
    with pytest.raises(UnsupportedModelError, match="nothing to split"):
        encoded_activations([])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    write_tiny_model(path)
    write_prose(path)
    return path


@pytest.fixture(scope="module")
def result(folder):
    return run_model(folder / "tiny.gguf", folder / "prose.txt", 96, "sparqle/edge", progress=False)


def test_a_run_is_exact_and_complete(result):
    assert result.exact
    assert result.perplexity["sparqle"] == result.perplexity["int8"]
    assert result.perplexity["int8"] == pytest.approx(result.perplexity["float"], rel=0.05)
    assert result.uncounted == ()
    kinds = [kind.kind for kind in result.kinds]
    assert kinds == ["attn_q attn_k attn_v", "attn_output", "ffn_gate ffn_up", "ffn_down", "output"]
    assert [kind.layers for kind in result.kinds] == [2, 2, 2, 2, 1]
    assert all(0 <= layer.msb_sparsity <= 1 for layer in result.layers)
    assert result.prefill.sparqle.mma_cycles < result.prefill.dense.mma_cycles
    assert (result.prefill.tokens, result.decode.past) == (96, 95)


def test_perplexity_is_that_of_the_logits(folder, result):
    imported = from_gguf(folder / "tiny.gguf", activations="int8", progress=False)
    executable = sparqle_tvm.compile(imported.mod, split=False)
    tokens = imported.tokenizer.encode((folder / "prose.txt").read_text())[:96]
    logits = all_logits(executable, tokens).astype(np.float64)
    log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    chosen = log_probabilities[np.arange(95), tokens[1:]]
    assert result.perplexity["int8"] == pytest.approx(np.exp(-chosen.mean()), rel=1e-9)
    assert evaluate(executable, tokens).perplexity == result.perplexity["int8"]


def test_float_layers_are_named_not_counted(tmp_path, folder):
    write_tiny_model(tmp_path, kinds={"blk.1.ffn_down.weight": Kind.F16})
    result = run_model(tmp_path / "tiny.gguf", folder / "prose.txt", 16, progress=False)
    assert result.exact
    assert result.uncounted == ("blk_1_ffn_down",)


def test_a_model_without_integers_is_refused(tmp_path, folder):
    write_tiny_model(tmp_path, dense_kind=Kind.F16, embed_kind=Kind.F16)
    with pytest.raises(UnsupportedModelError, match="nothing to split"):
        run_model(tmp_path / "tiny.gguf", folder / "prose.txt", 16, progress=False)


def test_another_accelerator_changes_only_the_count(folder, result):
    small = dataclasses.replace(EDGE, name="small", rows=4)
    target = tvm.target.Target(small.to_target_config())
    other = run_model(folder / "tiny.gguf", folder / "prose.txt", 96, target, progress=False)
    assert other.perplexity == result.perplexity
    assert other.layers == result.layers
    assert other.accelerator == small
    assert other.prefill.dense.mma_cycles > result.prefill.dense.mma_cycles


def test_bad_input(folder, tmp_path):
    model, text = folder / "tiny.gguf", folder / "prose.txt"
    with pytest.raises(InvalidArgumentError, match="at least 2 tokens"):
        run_model(model, text, 1)
    with pytest.raises(TargetError, match="unknown target 'nope'"):
        run_model(model, text, 16, "nope")
    with pytest.raises(TargetError, match="digits of 2 bits"):
        run_model(model, text, 16, dataclasses.replace(EDGE, digit_bits=2))
    with pytest.raises(TextError, match="10000 were asked for"):
        run_model(model, text, 10000, progress=False)
    with pytest.raises(TextError, match="cannot be read"):
        run_model(model, tmp_path / "none.txt", 16, progress=False)
    with pytest.raises(ModelFileError):
        run_model(tmp_path / "none.gguf", text, 16, progress=False)


@pytest.mark.slow
def test_the_builtin_model():
    result = run_model(tokens=512, progress=False)
    assert result.exact
    assert result.perplexity["int8"] == pytest.approx(result.perplexity["float"], rel=0.05)
    assert 0.65 <= result.prefill.msb_sparsity <= 0.75
    assert result.uncounted == ()
    assert result.prefill.mma_reduction > 0.2
