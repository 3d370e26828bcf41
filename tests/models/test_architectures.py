"""Decoders besides llama against the classes of transformers, and split form against int8."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from build_helper import all_logits, build, only, tensor
from gguf import GGMLQuantizationType as Kind
from tiny_llama import I2_S, TinyLlama
from tiny_transformers import TinyTransformers

import sparqle_tvm
from sparqle_tvm.frontend.gguf import ARCHITECTURES, from_gguf

ARCH = gguf.MODEL_ARCH
SHORT = [1.0, 1.1, 1.3, 1.7, 2.0, 2.5, 3.0, 4.0]
LONG = [2.0 * factor for factor in SHORT]
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def llama3_factors() -> np.ndarray:
    """What llama.cpp's converter writes: by how much each pair of 16 channels turns slower."""
    frequencies = LLAMA3["rope_theta"] ** -(np.arange(0, 16, 2) / 16)
    turns = LLAMA3["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
    return (1 / ((1 - smooth) / LLAMA3["factor"] + smooth)).astype(np.float32)


MODELS = {
    "llama": TinyTransformers("Llama", "llama", ARCH.LLAMA, permuted=True),
    "llama3 scaling": TinyTransformers(
        *("Llama", "llama", ARCH.LLAMA),
        config={"rope_parameters": LLAMA3},
        tensors={"rope_freqs.weight": llama3_factors()},
        permuted=True,
    ),
    "linear scaling": TinyTransformers(
        *("Llama", "llama", ARCH.LLAMA),
        config={"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        keys={"rope.scale_linear": 4.0},
        permuted=True,
    ),
    "yarn": TinyTransformers(
        *("Llama", "llama", ARCH.LLAMA),
        config={
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 100.0,
                "original_max_position_embeddings": 32,
            }
        },
        keys={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
        permuted=True,
    ),
    "mistral": TinyTransformers(
        *("Mistral", "llama", ARCH.LLAMA),
        config={"sliding_window": 64},
        keys={"attention.sliding_window": 64},
        permuted=True,
    ),
    "qwen2": TinyTransformers("Qwen2", "qwen2", ARCH.QWEN2),
    "qwen3": TinyTransformers(
        *("Qwen3", "qwen3", ARCH.QWEN3),
        config={"head_dim": 32, "attention_bias": True},
        keys={"attention.key_length": 32, "attention.value_length": 32},
    ),
    "gemma": TinyTransformers(
        *("Gemma", "gemma", ARCH.GEMMA),
        config={"head_dim": 32, "tie_word_embeddings": True},
        keys={"attention.key_length": 32, "attention.value_length": 32},
        one_more=True,
    ),
    "phi3": TinyTransformers(
        *("Phi3", "phi3", ARCH.PHI3),
        config={"partial_rotary_factor": 0.5},
        keys={"rope.dimension_count": 8},
    ),
    "phi3 longrope": TinyTransformers(
        *("Phi3", "phi3", ARCH.PHI3),
        config={
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": SHORT,
                "long_factor": LONG,
                "original_max_position_embeddings": 32,
                "factor": 4.0,
            },
        },
        keys={
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(32))),
        },
        tensors={
            "rope_factors_short.weight": np.array(SHORT, np.float32),
            "rope_factors_long.weight": np.array(LONG, np.float32),
        },
    ),
    "bitnet": TinyTransformers(
        "BitNet", "bitnet", ARCH.BITNET, config={"hidden_act": "silu", "tie_word_embeddings": True}
    ),
    "bitnet b1.58": TinyTransformers(
        *("BitNet", "bitnet-b1.58", ARCH.BITNET),
        config={
            "hidden_act": "relu2",
            "tie_word_embeddings": True,
            "hidden_size": 128,
            "intermediate_size": 128,
        },
        # As bitnet.cpp writes it.
        kind=I2_S,
        kinds={"token_embd.weight": Kind.F16},
    ),
}


def test_the_tables_name_every_architecture() -> None:
    """Docs/models.md names those that can be imported, and what they are compared with here."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "models.md").read_text(encoding="utf-8")
    table = text[text.index("| `general.architecture` |") :].split("\n\n")[0].splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in table]
    named = {name: re.findall(r"`(\w+)`", row[-1]) for row in rows for name in ticked(row[0])}
    assert set(named) == set(ARCHITECTURES) == {model.arch for model in MODELS.values()}
    for name, classes in named.items():
        assert set(classes) >= {f"{m.model}ForCausalLM" for m in MODELS.values() if m.arch == name}
    readme = (root / "README.md").read_text(encoding="utf-8")
    (names,) = re.findall(r"^\| GGUF \((.+)\):", readme, re.MULTILINE)
    assert set(names.split(", ")) <= set(MODELS)


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([\w.-]+)`", cell.split("(")[0])


def tokens_of(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 80, count).astype(np.int32)


@pytest.mark.parametrize("name", MODELS)
def test_float_logits_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tiny.gguf"
    reference, tokens = MODELS[name].write(path), tokens_of(24)
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens[None]).long()).logits[0].numpy()
    model = from_gguf(path, activations="float32", progress=False)
    found = all_logits(build(model.mod, ["hidden", "head"]), tokens, chunk=24)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


# Of qwen2 only the biases are its own; here qwen3 has some, too.
@pytest.mark.parametrize("name", ["qwen3", "gemma", "phi3", "bitnet b1.58"])
def test_split_equals_int8(tmp_path: Path, name: str) -> None:
    path, model = tmp_path / "tiny.gguf", MODELS[name]
    # Layers are alike, and whole models are compared above.
    replace(model, config={**model.config, "num_hidden_layers": 1}).write(path)
    imported, functions = from_gguf(path, progress=False), ["prefill", "decode", "create_cache"]
    # Weights as constants, and as they come from the file.
    found = [
        sparqle_tvm.compile(only(imported.mod, functions), split=False),
        sparqle_tvm.compile(only(imported.template, functions), weights=imported.weights),
    ]
    left = {entry.label for entry in found[1].report.skipped if "matmul" in entry.op}
    assert left == ({"output"} if Kind.F16 in model.kinds.values() else set())
    prompt = tensor(tokens_of(13))
    plain_logits, logits = (e["prefill"](prompt, e["create_cache"]())[0].numpy() for e in found)
    np.testing.assert_array_equal(logits, plain_logits)
    plain_logits, logits = (e["decode"](tensor([7]), e["create_cache"]())[0].numpy() for e in found)
    np.testing.assert_array_equal(logits, plain_logits)


MIXES = {
    "Q4_0": {"dense_kind": Kind.Q4_0, "output_kind": Kind.Q6_K, "embed_kind": Kind.Q4_0},
    "K": {
        "dense_kind": Kind.Q3_K,
        "kinds": {
            "blk.0.attn_q.weight": Kind.Q2_K,
            "blk.0.attn_v.weight": Kind.Q5_K,
            "blk.0.attn_output.weight": I2_S,
            "blk.0.ffn_gate.weight": Kind.Q4_K,
            "blk.0.ffn_down.weight": Kind.Q6_K,
        },
        "embed_kind": Kind.IQ4_XS,
    },
}
"""What llama.cpp's quantizer writes by default as Q4_0; and all that it mixes in files of K-quants.

One layer of these is bitnet.cpp's, without groups.
"""


@pytest.mark.parametrize("name", MIXES)
def test_mixed_files_are_exact_on_host_and_simulator(tmp_path: Path, name: str) -> None:
    tiny = TinyLlama(layers=1, embed=256, ffn=256, **MIXES[name])
    mod = from_gguf(tiny.write(tmp_path / "tiny.gguf"), progress=False).mod
    mod = only(mod, ["prefill", "create_cache"])
    prompt, results = tensor(tokens_of(5)), []
    for options in ({"split": False}, {}, {"engine": "simulator"}):
        executable = sparqle_tvm.compile(mod, **options)
        results.append(executable["prefill"](prompt, executable["create_cache"]())[0].numpy())
        if options != {"split": False}:
            # Seven layers and the head.
            channels = sum(kind == I2_S for kind in tiny.kinds.values())
            rewritten = executable.report.rewritten
            assert rewritten["SplitGroupedDense"] == 8 - channels
            assert rewritten["SplitPrecision"] == channels
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
