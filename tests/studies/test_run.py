"""The driver behind `sparqle run`, on a tiny model; the real one is marked slow."""

import dataclasses
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from gguf import GGMLQuantizationType as Kind
from tie import draw_digits
from tiny_files import write_prose, write_tiny_model

from sparqle_tvm.cli import main
from sparqle_tvm.errors import (
    InvalidArgumentError,
    ModelFileError,
    TargetError,
    TextError,
    UnsupportedModelError,
)
from sparqle_tvm.models.attention_sparsity import measured_attention
from sparqle_tvm.numerics import encode
from sparqle_tvm.numerics.kv_cache import parse_kv
from sparqle_tvm.passes import DenseInfo, EncodingInfo
from sparqle_tvm.results.run import mean_sparsity
from sparqle_tvm.runtime.executable import EncodingRecord
from sparqle_tvm.studies.count import count_phases, count_sorting, prefill_encodings
from sparqle_tvm.studies.evaluation import encoded_activations, evaluate, layer_sparsities
from sparqle_tvm.studies.inputs import kv_options
from sparqle_tvm.studies.run import run_model
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.model import EncodedActivation
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
SHAPE = TransformerShape(layers=1, embed=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=257)


def record(label: str, consumers: dict[str, int], tokens: int, seed: int) -> EncodingRecord:
    q = np.random.default_rng(seed).integers(-30, 30, (tokens, 64)).astype(np.int8)
    dense = [DenseInfo(name, n, 64, 4, 32, True, 2) for name, n in consumers.items()]
    info = EncodingInfo(label, 4, "signed", "by rule", 64, True, dense)
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
    macs = [layer.macs for layer in prefill.layers]
    assert macs == [40 * 64 * 64, 40 * 32 * 64, 40 * 64 * 64, 257 * 64]
    assert sum(layer.macs for layer in decode.layers) == (64 + 32 + 64 + 257) * 64
    sparsities = [e.nnz.msb_sparsity for e in encodings[:2]]
    last = encodings[2].nnz.last_row().msb_sparsity
    expected = np.average([*sparsities, last], weights=[macs[0] + macs[1], *macs[2:]])
    assert prefill.msb_sparsity == pytest.approx(expected)
    layers = layer_sparsities(records, prefill_encodings(encodings))
    assert mean_sparsity(layers) == pytest.approx(prefill.msb_sparsity)
    assert [layer.kind for layer in layers] == ["attn_q attn_k", "ffn_down", "output"]
    assert layers[0].consumers == ("blk_0_attn_q", "blk_0_attn_k")


@pytest.mark.parametrize("rows", [1, 5])
def test_the_output_layer_counts_once_even_if_all_its_rows_are_known(rows):
    records = [
        record("a", {"blk_0_attn_q": 64}, 5, seed=0),
        record("c", {"output": 257}, rows, seed=2),
    ]
    prefill, _ = count_phases(encoded_activations(records), SHAPE, EDGE)
    assert prefill.layers[-1].macs == 257 * 64


def test_nothing_encoded():
    with pytest.raises(UnsupportedModelError, match="nothing to split"):
        encoded_activations([])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with one layer of float weights, and a text."""
    path = tmp_path_factory.mktemp("run")
    write_tiny_model(path, kinds={"blk.1.attn_output.weight": Kind.F16})
    write_prose(path)
    return path


@pytest.fixture(scope="module")
def result(folder):
    files = (folder / "tiny.gguf", folder / "prose.txt")
    return run_model(*files, 96, "sparqle/edge", dump=folder / "dump", progress=False)


def test_a_run_is_exact_and_complete(result):
    assert result.exact
    assert result.perplexity["sparqle"] == result.perplexity["int8"]
    assert result.perplexity["int8"] == pytest.approx(result.perplexity["float"], rel=0.05)
    alone = result.perplexity["int8_attention"]
    assert alone == pytest.approx(result.perplexity["float"], rel=0.02)
    assert alone not in (result.perplexity["float"], result.perplexity["int8"])
    sparsity = result.msb_sparsity
    kinds = [kind.kind for kind in sparsity.kinds]
    assert kinds == ["attn_q attn_k attn_v", "attn_output", "ffn_gate ffn_up", "ffn_down", "output"]
    assert [kind.layers for kind in sparsity.kinds] == [2, 1, 2, 2, 1]
    assert all(0 <= layer.msb_sparsity <= 1 for layer in sparsity.layers)
    schemes = result.prefill.schemes
    assert schemes["sparqle"].mma_cycles < schemes["dense"].mma_cycles
    assert (result.prefill.tokens, result.decode.past) == (96, 95)
    assert len(result.seconds) == 9


def test_attention_in_float_and_keys_and_values_in_four_bits(folder):
    files = (folder / "tiny.gguf", folder / "prose.txt")
    options = {"engine": "analytical", "balance": "none", "progress": False}
    floating = run_model(*files, 24, attention="float", **options)
    assert floating.exact and set(floating.perplexity) == {"float", "int8", "sparqle"}
    coarse = run_model(*files, 24, kv="int4", **options)
    assert coarse.exact and coarse.kv == "int4"
    assert coarse.perplexity["float"] == floating.perplexity["float"]
    assert coarse.perplexity["int8"] != floating.perplexity["int8"]
    assert (floating.not_on_array, coarse.not_on_array) == ("", "")


def test_what_is_written_into_the_cache_is_what_it_stores(folder, result):
    """Of plain 4 bits half the bytes, of planes those that lie in memory; scales stay."""
    files = (folder / "tiny.gguf", folder / "prose.txt")
    coarse = run_model(*files, 96, kv="int4", balance="none", progress=False)
    assert coarse.exact

    def written(run, scheme="sparqle"):
        (found,) = (o for o in run.prefill.others if o.label == "rope and cache")
        return found.costs[scheme].cache_bytes

    shape = result.transformer
    elements = 96 * 2 * shape.kv_heads * shape.head_dim
    scales = 96 * 2 * shape.kv_heads * 4
    assert written(result) == written(result, "dense") == shape.layers * (elements + scales)
    # The baseline has the same integers.
    assert written(coarse) == written(coarse, "dense")
    assert written(result) - written(coarse) == shape.layers * elements // 2
    caches = [other.cache for other in coarse.decode.others if other.cache is not None]
    assert [cache.key_bytes for cache in caches] == [elements / 2 / 96 / 2] * shape.layers


def test_planes_hold_each_head_of_the_builtin_model_as_is_smaller():
    known = SimpleNamespace(
        sha256=measured_attention().model_sha256,
        config=SimpleNamespace(layers=30, kv_heads=3, head_dim=64),
    )
    options = kv_options("planes", known)
    assert options["default_kv"] == parse_kv("planes")
    assert list(options["kv"]) == [f"blk_{i}_attn" for i in range(30)]
    for number, storage in enumerate(options["kv"].values()):
        layer = measured_attention().layers[number]
        # Of 64 bytes 40 are always there, half a byte for a digit, a quarter of padding, and the
        # pointer: half a byte for a key, 4 for a value.
        for side, of_factor, pointer in (
            (storage.keys, layer.k_msb_sparsity, 0.5),
            (storage.values, layer.v_msb_sparsity, 4),
        ):
            assert side.levels == 127
            least = 1 - (24 - 0.25 - pointer) / 32
            assert side.planes == "".join("p" if s > least else "-" for s in of_factor[0])
    other = SimpleNamespace(sha256="0", config=known.config)
    assert kv_options("planes", other)["kv"] == {} == kv_options("planes:2", known)["kv"]


def test_the_split_form_is_dumped_after_each_phase(result, folder):
    files = sorted((folder / "dump").iterdir())
    phases = ["import", "split", "choose", "drain", "offload", "lower"]
    assert [file.stem[3:] for file in files] == phases
    with_ops = [file.stem[3:] for file in files if "sparqle.split_dense" in file.read_text()]
    assert with_ops[0] == "split"


def test_float_layers_are_named_and_not_counted(result):
    assert result.uncounted == ("blk_1_attn_output",)
    assert "blk_1_attn_output" not in {layer.label for layer in result.prefill.layers}


class KnownLogits:
    """An executable whose output layer doubles its input, and whose hidden states are ids."""

    def __init__(self) -> None:
        self.encodings: list[str] = []

    def __getitem__(self, name):
        def call(tensor):
            self.encodings = [name]
            if name == "head":
                return tvm.runtime.tensor(2 * tensor.numpy())
            ids = tensor.numpy()[0]
            return tvm.runtime.tensor(np.eye(4, dtype="float32")[ids][None])

        return call


def test_evaluation_by_hand():
    # Logits are 2 at the token itself, else 0: ln(e^2 + 3) less 2 if the next is the same token.
    found = evaluate(KnownLogits(), [1, 1, 2])
    normaliser = np.log(np.exp(2) + 3)
    assert found.perplexity == pytest.approx(np.exp(((normaliser - 2) + normaliser) / 2))
    assert (found.hidden, found.head) == (["hidden"], ["head"])
    logits = 2 * np.eye(4, dtype="float32")[[1, 1, 2]]
    assert found.digest == hashlib.sha256(logits.tobytes()).hexdigest()
    assert found.digest != evaluate(KnownLogits(), [1, 2, 2]).digest


@pytest.mark.parametrize("engine", ["analytical", "simulator"])
def test_what_sorted_rows_bring(engine):
    nnz = draw_digits(np.random.default_rng(0), 0.3, 96, 320)
    wide = EncodedActivation("a", nnz, "signed", (DenseOp(96, 1536, 320, label="blk_0_attn_q"),))
    encodings = [wide, *encoded_activations([record("c", {"output": 257}, 1, seed=2)])]
    prefill, decode = count_phases(encodings, SHAPE, EDGE, engine, "array")
    gain = count_sorting(prefill, encodings, SHAPE, EDGE, engine, "array")
    in_order, _ = count_phases(encodings, SHAPE, EDGE, engine, "none")
    assert (gain.sorted_encodings, gain.encodings) == (1, 2)
    found, before = prefill.schemes["sparqle"], in_order.schemes["sparqle"]
    assert gain.mma_cycles == found.mma_cycles < gain.mma_cycles_in_order
    assert gain.mma_cycles_in_order == before.mma_cycles
    assert gain.layer_cycles == found.dense_layers.cycles
    assert gain.layer_cycles_in_order == before.dense_layers.cycles
    assert not any(other.block_rows for other in decode.others)
    assert prefill.schemes["dense"] == in_order.schemes["dense"]


def test_another_accelerator_changes_only_the_count():
    encodings = encoded_activations([record("a", {"blk_0_attn_q": 64}, 40, seed=0)])
    small = dataclasses.replace(EDGE, name="small", rows=4)
    (edge, _), (other, _) = (count_phases(encodings, SHAPE, a) for a in (EDGE, small))
    assert other.msb_sparsity == edge.msb_sparsity
    assert other.schemes["dense"].mma_cycles > edge.schemes["dense"].mma_cycles


def test_bad_input(folder, tmp_path):
    model, text = folder / "tiny.gguf", folder / "prose.txt"
    with pytest.raises(InvalidArgumentError, match="at least 2 tokens"):
        run_model(model, text, 1)
    with pytest.raises(InvalidArgumentError, match="'fast' is unknown; known: array, time, none"):
        run_model(model, text, 16, balance="fast")
    with pytest.raises(InvalidArgumentError, match="attention 'half' is unknown; known: float, "):
        run_model(model, text, 16, attention="half")
    with pytest.raises(InvalidArgumentError, match="'int3' is no storage of keys and values"):
        run_model(model, text, 16, kv="int3")
    with pytest.raises(InvalidArgumentError, match="is about attention in int8, not in float"):
        run_model(model, text, 16, attention="float", kv="planes")
    with pytest.raises(TargetError, match="unknown target 'nope'"):
        run_model(model, text, 16, "nope")
    with pytest.raises(TargetError, match=r"digits of 2 bits, so activations of 4; this runs int8"):
        run_model(model, text, 16, dataclasses.replace(EDGE, digit_bits=2))
    with pytest.raises(TextError, match="10000 were asked for"):
        run_model(model, text, 10000, progress=False)
    with pytest.raises(TextError, match="cannot be read"):
        run_model(model, tmp_path / "none.txt", 16, progress=False)
    with pytest.raises(ModelFileError):
        run_model(tmp_path / "none.gguf", text, 16, progress=False)


@pytest.mark.slow
def test_the_builtin_model(tmp_path):
    out = tmp_path / "out.json"
    assert main(["run", "--tokens", "512", "--json", str(out)]) == 0
    data = json.loads(out.read_text())
    assert data["exact"] is True
    perplexity = data["perplexity"]
    assert perplexity["sparqle"] == perplexity["int8"]
    assert perplexity["int8"] == pytest.approx(perplexity["float"], rel=0.05)
    assert 0.65 <= data["msb_sparsity"]["mean"] <= 0.75
    assert len(data["msb_sparsity"]["layers"]) == 30 * 4 + 1
    assert data["uncounted"] == []
    split = data["prefill"]["schemes"]["sparqle"]
    assert split["mma_saved"] > 0.2
    assert split["dense_layers"]["saved"]["cycles"] > 0
