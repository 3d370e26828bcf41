"""Reading GGUF files: what is stored comes out as it is, and what is wrong is named."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_llama import I2_S, TinyLlama, unpack_i2_s

import sparqle_tvm.frontend
from sparqle_tvm.errors import InvalidArgumentError, ModelFileError, UnsupportedModelError
from sparqle_tvm.frontend.gguf import from_gguf, read_config
from sparqle_tvm.frontend.gguf_file import SUPPORTED_KINDS, GGUFFile
from sparqle_tvm.models.decoder import Yarn
from sparqle_tvm.models.quantized import ChannelWeight, FloatWeight, GroupedWeight
from sparqle_tvm.passes._value_range import weight_bits

SMALL = TinyLlama(layers=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


FINE = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS)
"""Types whose scales are a float16 times an integer."""

WIDE = replace(SMALL, embed=256, ffn=512)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (Kind.Q4_0, -8, 7),
        (Kind.Q4_1, 0, 15),
        (Kind.Q5_0, -16, 15),
        (Kind.Q5_1, 0, 31),
        (Kind.Q8_0, -127, 127),
        (Kind.IQ4_NL, -127, 113),
        (Kind.TQ1_0, -1, 1),
        (Kind.TQ2_0, -1, 1),
        (Kind.Q2_K, 0, 3),
        (Kind.Q3_K, -4, 3),
        (Kind.Q4_K, 0, 15),
        (Kind.Q5_K, 0, 31),
        (Kind.Q6_K, -32, 31),
        (Kind.IQ4_XS, -127, 113),
    ],
)
def test_integer_weights_stay_as_stored(path: Path, kind: Kind, low: int, high: int) -> None:
    file = GGUFFile(replace(WIDE, dense_kind=kind).write(path))
    name = "blk.0.ffn_up.weight"
    weight = file.weight(name, 256, 512)
    assert isinstance(weight, GroupedWeight)
    assert (weight.in_features, weight.out_features) == (256, 512)
    assert weight.values.dtype == np.int8
    assert weight.values.min() == low
    assert weight.values.max() == high
    assert weight.scale.dtype == (np.float32 if kind in FINE else np.float16)
    assert weight.values.shape[1] == (16 if kind in (Kind.Q2_K, Kind.Q3_K, Kind.Q6_K) else 32)
    minima = (Kind.Q4_1, Kind.Q5_1, Kind.Q2_K, Kind.Q4_K, Kind.Q5_K)
    assert (weight.minimum is not None) == (kind in minima)
    tensor = file.tensors[name]
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(weight.to_float().values, expected.T)


TABLE = re.compile(r"^\| (\w+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| (\d) \|$", re.MULTILINE)
TABLE_OF_I2_S = re.compile(r"^\| I2_S \| none, one scale \| 2 \| (\d) \| 1 \|$", re.MULTILINE)
DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_table_of_weight_types_is_what_is_imported(path: Path) -> None:
    rows = {row[0]: row[1:] for row in TABLE.findall(DOCUMENT.read_text(encoding="utf-8"))}
    assert {*rows, "I2_S", "F16", "F32", "BF16"} == set(SUPPORTED_KINDS)
    for name, row in rows.items():
        block, nbytes = gguf.GGML_QUANT_SIZES[Kind[name]]
        file = GGUFFile(replace(WIDE, dense_kind=Kind[name]).write(path))
        weight = file.weight("blk.0.ffn_up.weight", 256, 512)
        bits = weight_bits((weight.values.min(), weight.values.max()))
        group = weight.values.shape[1]
        parameters = [weight.scale, *([] if weight.minimum is None else [weight.minimum])]
        loaded = bits + sum(8 * part.itemsize for part in parameters) / group
        expected = group, 8 * nbytes / block, loaded, -(-bits // 4)
        assert tuple(map(float, row)) == expected, name


def test_i2_s_is_what_bitnet_cpp_reads(path: Path) -> None:
    name, content = "blk.0.ffn_up.weight", TABLE_OF_I2_S.search(DOCUMENT.read_text("utf-8"))
    file = GGUFFile(replace(WIDE, dense_kind=I2_S).write(path))
    weight, tensor = file.weight(name, 256, 512), file.tensors[name]
    assert isinstance(weight, ChannelWeight)
    assert set(np.unique(weight.values)) == {-1, 0, 1}
    np.testing.assert_array_equal(
        weight.to_float().values, unpack_i2_s(tensor.data, (512, 256)).T.astype(np.float32)
    )
    # Two bits a value and 32 bytes behind all; a float32 for each output is loaded.
    assert tensor.n_bytes == 512 * 256 * 2 // 8 + 32
    assert content is not None
    assert weight_bits((weight.values.min(), weight.values.max())) == int(content[1]) == 2


def test_i2_s_that_is_not_that_of_bitnet_cpp(path: Path) -> None:
    """Without the 32 bytes behind each tensor, with a fourth value, in rows of 64, NaN scale."""
    name = "blk.0.attn_q.weight"
    whole = replace(WIDE, dense_kind=I2_S).write(path).read_bytes()
    begin = GGUFFile(path).tensors[name].data_offset

    def refused(error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            GGUFFile(path).stored(name, 256, 256)

    end = begin + 256 * 256 // 4
    path.write_bytes(whole[:begin] + b"\xd5" + whole[begin + 1 :])
    refused(UnsupportedModelError, r"attn_q.* has a fourth value")
    path.write_bytes(whole[:end] + np.float32(np.nan).tobytes() + whole[end + 4 :])
    refused(ModelFileError, "holds NaN or Inf")
    content = bytearray(replace(WIDE, kinds={name: Kind.Q8_0}).write(path).read_bytes())
    content[_kind_of(content, name)] = 36
    path.write_bytes(content)
    refused(UnsupportedModelError, "type 36, but no I2_S of bitnet.cpp: rows of 256 values in")
    replace(SMALL, dense_kind=I2_S).write(path)
    with pytest.raises(UnsupportedModelError, match=r"rows of 64 values .* multiples of 128"):
        from_gguf(path, progress=False)


def test_order_of_i2_s_is_said_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from_gguf(replace(WIDE, dense_kind=I2_S, embed_kind=Kind.F16).write(path), progress=False)
    (record,) = caplog.records
    assert "ARM has another order" in record.getMessage()


def test_q6_k_is_what_its_definition_says(path: Path) -> None:
    """As ggml's dequantize_row_q6_K reads a block of 256: element by element."""
    name = "blk.0.ffn_up.weight"
    file = GGUFFile(replace(WIDE, kinds={name: Kind.Q6_K}).write(path))
    found = file.weight(name, 256, 512).to_float().values
    for row in (0, 300, 511):
        block = file.tensors[name].data[row]
        low, high, scales = block[:128], block[128:192], block[192:208].view(np.int8)
        d = float(block[208:210].view(np.float16)[0])
        for element in (0, 5, 31, 32, 63, 64, 100, 127, 128, 200, 255):
            half, within = divmod(element, 128)
            part, i = divmod(within, 32)
            nibble = int(low[64 * half + 32 * (part % 2) + i]) >> (4 * (part // 2)) & 15
            two = int(high[32 * half + i]) >> (2 * part) & 3
            q = (nibble | two << 4) - 32
            scale = int(scales[8 * half + 2 * part + i // 16])
            assert found[element, row] == np.float32(np.float32(d * scale) * q)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.F32])
def test_float_weights(path: Path, kind: Kind) -> None:
    file = GGUFFile(replace(SMALL, dense_kind=kind).write(path))
    weight = file.weight("blk.0.attn_k.weight", 64, 32)
    assert isinstance(weight, FloatWeight)
    assert weight.values.dtype == np.float32
    np.testing.assert_array_equal(weight.values, file.tensors["blk.0.attn_k.weight"].data.T)


def test_bfloat16(path: Path) -> None:
    file = GGUFFile(replace(SMALL, dense_kind=Kind.BF16).write(path))
    found = file.weight("blk.0.attn_k.weight", 64, 32)
    assert isinstance(found, FloatWeight)
    stored = file.tensors["blk.0.attn_k.weight"].data.reshape(32, 64, 2).astype(np.uint32)
    bits = (stored[..., 0] << 16) | (stored[..., 1] << 24)
    np.testing.assert_array_equal(found.values, bits.view(np.float32).T)


def test_a_model_in_several_files(path: Path) -> None:
    SMALL.write(path)
    folder = path.parent / "parts"
    folder.mkdir()
    replace(SMALL, tensors_per_file=4).write(folder / "model.gguf")
    parts = sorted(folder.iterdir())
    assert len(parts) == 3
    whole, joined = GGUFFile(path), GGUFFile(parts[0])
    assert set(joined.tensors) == set(whole.tensors)
    name = "blk.0.ffn_down.weight"
    np.testing.assert_array_equal(
        joined.weight(name, 96, 64).values, whole.weight(name, 96, 64).values
    )
    assert from_gguf(parts[0], progress=False).config == from_gguf(path, progress=False).config
    with pytest.raises(ModelFileError, match="not the first part"):
        GGUFFile(parts[1])
    renamed = parts[0].rename(folder / "first.gguf")
    with pytest.raises(ModelFileError, match="NAME-00001-of-00003"):
        GGUFFile(renamed)
    renamed.rename(parts[0])
    parts[2].unlink()
    with pytest.raises(ModelFileError, match=r"00003-of-00003\.gguf: cannot be read"):
        GGUFFile(parts[0])


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"rope.scaling.factor": 4.0}, 4.0),  # linear, as llama.cpp takes it
        ({"rope.scale_linear": 8.0}, 8.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, 1.0),
        ({"rope.scaling.factor": 2.5, "rope.scaling.type": "linear"}, 2.5),
        ({"rope.scaling.type": "none", "rope.scaling.original_context_length": 64}, 1.0),
    ],
)
def test_scales_of_positions(path: Path, keys: dict[str, Any], scale: float) -> None:
    overrides = {f"llama.{key}": value for key, value in keys.items()}
    file = GGUFFile(replace(SMALL, overrides=overrides).write(path))
    assert read_config(file).rope_scale == scale


def test_the_context_ends_where_a_window_or_long_factors_would_begin(path: Path) -> None:
    window = replace(SMALL, overrides={"llama.attention.sliding_window": 48})
    assert read_config(GGUFFile(window.write(path))).context == 48
    keys = {"type": "longrope", "attn_factor": 1.25, "original_context_length": 32}
    overrides = {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    config = read_config(GGUFFile(replace(SMALL, overrides=overrides).write(path)))
    assert (config.context, config.rope_scale, config.rope_magnitude) == (32, 1.0, 1.25)
    overrides["llama.rope.scaling.attn_factor"] = -1.0
    with pytest.raises(ModelFileError, match="longrope"):
        read_config(GGUFFile(replace(SMALL, overrides=overrides).write(path)))


def test_yarn(path: Path) -> None:
    keys = {"type": "yarn", "factor": 4.0, "attn_factor": 1.5, "yarn_beta_fast": 16.0}
    overrides = {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    config = read_config(GGUFFile(replace(SMALL, overrides=overrides).write(path)))
    assert config.rope_scale == 4
    assert config.yarn == Yarn(128, attention_factor=1.5, beta_fast=16.0)
    assert config.rope_magnitude == pytest.approx(1.5 * (1 + 0.1 * np.log(4)))
    overrides["llama.rope.scaling.yarn_beta_fast"] = 0.5
    with pytest.raises(ModelFileError, match="YaRN"):
        read_config(GGUFFile(replace(SMALL, overrides=overrides).write(path)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.attn_factor", 1.5),
        ("rope.dimension_sections", [8, 8]),
        ("attention.sliding_window_pattern", 6),
        ("attention.scale", 0.5),
        ("attention.causal", False),
    ],
)
def test_keys_that_may_change_the_computation_are_named(path: Path, key: str, value: Any) -> None:
    file = GGUFFile(replace(SMALL, overrides={f"llama.{key}": value}).write(path))
    with pytest.raises(UnsupportedModelError, match=rf"llama\.{key}|not causal"):
        read_config(file)


def test_config(path: Path) -> None:
    tiny = replace(SMALL, output_kind=Kind.Q8_0, overrides={"llama.vocab_size": None})
    config = read_config(GGUFFile(tiny.write(path)))
    assert (config.layers, config.embed, config.ffn, config.vocab) == (1, 64, 96, 80)
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 2, 16)
    assert (config.rope_dim, config.rope_base, config.rope_scale) == (16, 10000.0, 1.0)
    assert config.norm_eps == pytest.approx(1e-5)
    assert config.context == 128
    assert not config.tied_head


def test_defaults_of_the_metadata(path: Path) -> None:
    left_out = ("attention.head_count_kv", "rope.freq_base", "rope.dimension_count")
    tiny = replace(SMALL, kv_heads=4, overrides={f"llama.{key}": None for key in left_out})
    config = read_config(GGUFFile(tiny.write(path)))
    assert (config.kv_heads, config.rope_dim, config.rope_base) == (4, 16, 10000.0)
    assert config.tied_head


def test_imported_model(path: Path) -> None:
    model = from_gguf(
        replace(SMALL, overrides={"general.name": "Tiny"}).write(path), progress=False
    )
    assert isinstance(model, sparqle_tvm.frontend.ImportedModel)
    assert model.name == "Tiny"
    assert model.activations == "int8"
    assert len(model.sha256) == 64
    assert {var.name_hint for var in model.mod.get_global_vars()} == {
        *("prefill", "decode", "hidden", "head", "create_cache", "token_limits")
    }
    with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.model"):
        _ = model.tokenizer


def test_name_of_the_file_if_the_model_has_none(path: Path) -> None:
    model = sparqle_tvm.frontend.from_gguf(str(SMALL.write(path)), progress=False)
    assert model.name == "model"


def test_no_such_frontend() -> None:
    with pytest.raises(AttributeError, match="from_nowhere"):
        _ = sparqle_tvm.frontend.from_nowhere  # type: ignore[attr-defined]


def test_unknown_activations(path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="int4"):
        from_gguf(path, activations="int4")  # type: ignore[arg-type]


def test_missing_file(path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        from_gguf(path)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        from_gguf(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a wheel", b"\0" * 100])
def test_not_a_gguf_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        from_gguf(path)


def test_unknown_version(path: Path) -> None:
    path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + bytes(16))
    with pytest.raises(ModelFileError, match="version 9"):
        from_gguf(path)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(path: Path, share: float) -> None:
    """Cut in the header, in the metadata, in a list of strings, and in the weights."""
    words = {"tokenizer.ggml.tokens": [f"word{i}" for i in range(80)]}
    content = replace(SMALL, tokenizer=words).write(path).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelFileError, match=r"truncated|not a GGUF file"):
        from_gguf(path)


def test_damaged_metadata(path: Path) -> None:
    content = SMALL.write(path).read_bytes()
    path.write_bytes(content.replace(b"llama.block_count\x04", b"llama.block_count\x63"))
    with pytest.raises(ModelFileError, match="damaged"):
        from_gguf(path)


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_missing_metadata(path: Path, key: str) -> None:
    tiny = replace(SMALL, overrides={f"llama.{key}": None})
    with pytest.raises(ModelFileError, match=f"'llama.{key}' is missing"):
        from_gguf(tiny.write(path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", "many", "is str, not int"),
        ("block_count", True, "is bool, not int"),
        ("block_count", 0, "not positive"),
        ("attention.head_count", 0, "not positive"),
        ("attention.head_count_kv", [2, 2], "is list, not int"),
        ("attention.head_count_kv", 3, "cannot share 3"),
        ("rope.dimension_count", 15, "rotated in pairs"),
        ("rope.dimension_count", 18, "rotated in pairs"),
        ("rope.freq_base", -1.0, "out of range"),
        ("embedding_length", 128, "has shape"),
        ("vocab_size", 81, r"'token_embd.weight' has shape \(80, 64\).*\(81, 64\)"),
    ],
)
def test_metadata_that_does_not_fit(path: Path, key: str, value: Any, message: str) -> None:
    tiny = replace(SMALL, overrides={f"llama.{key}": value})
    with pytest.raises(ModelFileError, match=message):
        from_gguf(tiny.write(path), progress=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"llama.expert_count": 8}, "experts"),
        ({"llama.rope.scaling.type": "su"}, "'su'"),
        ({"llama.attention.value_length": 8}, "values of 8"),
    ],
)
def test_unsupported_variant(path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        from_gguf(replace(SMALL, overrides=overrides).write(path))


def test_other_byte_order(path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="byte order"):
        from_gguf(replace(SMALL, byte_order=gguf.GGUFEndian.BIG).write(path))


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("gpt2", ""),
        ("gemma2", r" \(it has norms behind .* capped scores and logits, a window .*\)"),
        ("gemma3", r" \(it has norms behind .* a window and a RoPE base .*\)"),
    ],
)
def test_unsupported_architecture(path: Path, arch: str, reason: str) -> None:
    match = f"{arch!r} is not supported{reason}; supported: llama, "
    with pytest.raises(UnsupportedModelError, match=match):
        from_gguf(replace(SMALL, arch=arch).write(path))


@pytest.mark.parametrize("name", ["token_embd", "output_norm", "blk.0.attn_norm", "blk.0.ffn_gate"])
def test_missing_tensor(path: Path, name: str) -> None:
    tiny = replace(SMALL, skip=(f"{name}.weight",))
    with pytest.raises(ModelFileError, match=f"'{name}.weight' is missing"):
        from_gguf(tiny.write(path), progress=False)


def test_missing_embedding_without_a_vocabulary_size(path: Path) -> None:
    tiny = replace(SMALL, skip=("token_embd.weight",), overrides={"llama.vocab_size": None})
    with pytest.raises(ModelFileError, match=r"'token_embd\.weight' is missing"):
        from_gguf(tiny.write(path), progress=False)


def test_unsupported_tensor_type(path: Path) -> None:
    tiny = replace(SMALL, kinds={"blk.0.attn_v.weight": Kind.MXFP4})
    with pytest.raises(UnsupportedModelError, match=r"'blk.0.attn_v.weight' is of type MXFP4"):
        from_gguf(tiny.write(path), progress=False)


def _kind_of(content: bytearray, name: str) -> int:
    """Where the type of a matrix of Q8_0 stands in a file."""
    kind = content.index(name.encode()) + len(name) + 4 + 2 * 8
    assert content[kind] == Kind.Q8_0
    return kind


def test_tensor_type_of_a_fork(path: Path) -> None:
    """TL1 is number 38 in bitnet.cpp; the library gguf has no such number."""
    name = "blk.0.attn_v.weight"
    content = bytearray(replace(SMALL, kinds={name: Kind.Q8_0}).write(path).read_bytes())
    content[_kind_of(content, name)] = 38
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=r"type that is not known.*38"):
        GGUFFile(path)


def test_unsupported_type_of_a_norm(path: Path) -> None:
    tiny = replace(SMALL, kinds={"output_norm.weight": Kind.Q8_0})
    with pytest.raises(UnsupportedModelError, match=r"'output_norm.weight' is of type Q8_0"):
        from_gguf(tiny.write(path), progress=False)


def test_tensors_that_a_llama_does_not_have(path: Path) -> None:
    tiny = replace(SMALL, extra={"blk.0.attn_q_norm.weight": np.zeros(16, np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"a llama .*blk\.0\.attn_q_norm\.weight"):
        from_gguf(tiny.write(path), progress=False)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_weights_that_are_not_finite(path: Path, kind: Kind) -> None:
    content = bytearray(replace(SMALL, dense_kind=kind).write(path).read_bytes())
    tensor = GGUFFile(path).tensors["blk.0.ffn_up.weight"]
    # The first four bytes hold a float32, or a float16 scale and two integers.
    content[tensor.data_offset : tensor.data_offset + 4] = b"\x00\x7e\xc0\x7f"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"'blk\.0\.ffn_up\.weight' holds NaN or Inf"):
        from_gguf(path, progress=False)


@pytest.mark.parametrize("depth", [1, 50_000])
def test_arrays_of_arrays_in_the_metadata(path: Path, depth: int) -> None:
    data = SMALL.write(path).read_bytes()
    one = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    end = (4).to_bytes(4, "little") + (0).to_bytes(8, "little")
    entry = (4).to_bytes(8, "little") + b"deep" + (9).to_bytes(4, "little") + one * depth + end
    count = int.from_bytes(data[16:24], "little") + 1
    path.write_bytes(data[:16] + count.to_bytes(8, "little") + entry + data[24:])
    with pytest.raises(ModelFileError, match="an array of arrays in the metadata"):
        GGUFFile(path)
