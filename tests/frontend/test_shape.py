"""Sizes of models out of GGUF files and config.json, held to what transformers and gguf say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_llama import I2_S, TinyLlama

from sparqle_tvm.cli import main
from sparqle_tvm.errors import InvalidArgumentError, ModelFileError, UnsupportedModelError
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.frontend.shape import MODEL_TYPES, model_shape
from sparqle_tvm.models.shapes import MODELS, WeightFormat

# As published with Qwen2.5-7B.
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    content = {name: v for name, v in {**QWEN, **changes}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(content))
    return folder / "config.json"


def test_a_config_is_the_published_model(tmp_path):
    path = write(tmp_path / "Qwen2.5-7B")
    found = model_shape(path)
    assert found == model_shape(path.parent)
    assert found.name == "Qwen2.5-7B"
    assert "int4 in groups of 128" in found.source
    published = MODELS["qwen2.5-7b"]
    assert replace(found, name=published.name, source=published.source) == published


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_every_model_type_as_transformers_writes_it(tmp_path, kind):
    from transformers import AutoConfig

    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, **sizes, **heads)
    config.save_pretrained(tmp_path)
    found = model_shape(tmp_path)
    assert (found.layers, found.embed, found.ffn, found.heads) == (3, 96, 160, 6)
    assert found.vocab == config.vocab_size
    assert found.kv_heads == 2
    assert found.head_dim == (getattr(config, "head_dim", None) or 16)
    assert found.head_norms == (kind == "qwen3")
    assert found.sub_norms == (kind == "bitnet")
    assert found.weights == (WeightFormat(2) if kind == "bitnet" else WeightFormat(4, 128))


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"head_dim": 256}, "head_dim", 256),
        ({"num_key_value_heads": None}, "kv_heads", 28),
        ({"sliding_window": 4096, "use_sliding_window": True}, "max_positions", 4096),
        ({"sliding_window": 4096, "use_sliding_window": None}, "max_positions", 4096),
        ({"sliding_window": None}, "max_positions", 131072),
        ({"max_position_embeddings": None}, "max_positions", 0),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": 64}},
            "weights",
            WeightFormat(8, 64),
        ),
        (
            {"quantization_config": {"bits": 3, "group_size": -1, "zero_point": True}},
            "weights",
            WeightFormat(4, 0, True),
        ),
        ({"quantization_config": {"load_in_8bit": True}}, "weights", WeightFormat(4, 128)),
    ],
)
def test_fields_of_a_config(tmp_path, change, field, value):
    assert getattr(model_shape(write(tmp_path / "m", **change)), field) == value


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "mamba"}, UnsupportedModelError, "model_type 'mamba' is not known; known"),
        ({"model_type": None}, UnsupportedModelError, "model_type None is not known"),
        ({"model_type": ["qwen2"]}, UnsupportedModelError, "is not known"),
        ({"hidden_size": None}, ModelFileError, "hidden_size"),
        ({"hidden_size": 0}, ModelFileError, "hidden_size"),
        ({"num_attention_heads": "many"}, ModelFileError, "num_attention_heads"),
        ({"num_key_value_heads": 5}, ModelFileError, "28 heads .* 5 key/value heads do not fit"),
        ({"num_attention_heads": 5000, "num_key_value_heads": 1}, ModelFileError, "0 channels"),
        ({"quantization_config": {"bits": 0}}, ModelFileError, "quantization_config"),
    ],
)
def test_a_config_that_is_wrong_is_refused_by_field(tmp_path, change, error, message):
    with pytest.raises(error, match=rf"config\.json.*{message}"):
        model_shape(write(tmp_path / "m", **change))


def test_what_is_no_model_says_what_would_be(tmp_path):
    with pytest.raises(
        InvalidArgumentError, match=r"unknown model 'gpt-5'.*GGUF file.*config\.json"
    ):
        model_shape("gpt-5")
    with pytest.raises(ModelFileError, match=r"config\.json cannot be read"):
        model_shape(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match="model_type None"):
        model_shape(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match="is not JSON"):
        model_shape(tmp_path / "config.json")
    with pytest.raises(ModelFileError, match=r"none\.gguf: cannot be read"):
        model_shape(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        (Kind.Q4_0, WeightFormat(4, 32)),
        (Kind.Q4_1, WeightFormat(4, 32, True)),
        (Kind.Q8_0, WeightFormat(8, 32)),
        (Kind.Q4_K, WeightFormat(4, 32, True, 4)),
        (I2_S, WeightFormat(2)),
        (Kind.F16, WeightFormat(4, 128)),
    ],
)
def test_a_gguf_file_is_read_as_it_is_imported(tmp_path, kind, weights):
    model = TinyLlama(embed=256, ffn=512, heads=4, kv_heads=2, dense_kind=kind)
    path = model.write(tmp_path / "tiny.gguf")
    found, config = model_shape(path), from_gguf(path, progress=False).config
    for name in ("layers", "embed", "ffn", "heads", "kv_heads", "head_dim", "vocab"):
        assert getattr(found, name) == getattr(config, name), name
    assert found.max_positions == config.context
    assert found.weights == weights
    name = "I2_S" if kind == I2_S else kind.name
    assert name in found.source or kind == Kind.F16


def test_estimates_and_sweeps_take_files(tmp_path, capsys):
    tiny = TinyLlama().write(tmp_path / "tiny.gguf")
    config = write(
        tmp_path / "small",
        hidden_size=448,
        intermediate_size=512,
        num_hidden_layers=2,
        vocab_size=999,
    )
    out = tmp_path / "out.json"
    for model in (tiny, config, config.parent):
        assert main(["estimate", "--model", str(model), "--seq", "64", "--json", str(out)]) == 0
        assert json.loads(out.read_text())["model"]["layers"] == 2
    table = tmp_path / "sweep.json"
    axis = f"model={tiny},{config}"
    options = ["--fix", "seq=64", "--workers", "1", "--out", str(table)]
    assert main(["sweep", "--axis", axis, *options]) == 0
    rows = json.loads(table.read_text())
    assert [row["model"] for row in rows] == [str(tiny), str(config)]
    assert all(row["dense_whole_model_cycles"] > 0 for row in rows)
