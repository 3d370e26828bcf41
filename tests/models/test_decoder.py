"""Imported tiny models against an independent PyTorch implementation, and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from build_helper import all_logits, build, tensor
from gguf import GGMLQuantizationType as Kind
from tiny_llama import TinyLlama
from torch_reference import TorchLlama
from tvm import relax

from sparqle_tvm.frontend.gguf import Activations, ImportedModel, from_gguf
from sparqle_tvm.models.decoder import CACHE_RESERVE_TOKENS, FUNCTIONS
from sparqle_tvm.models.quantized import QMAX

MIXED = {
    "blk.0.attn_q.weight": Kind.Q4_0,
    "blk.0.attn_k.weight": Kind.Q8_0,
    "blk.0.attn_v.weight": Kind.F16,
    "blk.1.ffn_up.weight": Kind.Q4_0,
    "blk.1.ffn_down.weight": Kind.F32,
    "blk.0.attn_output.weight": Kind.Q5_0,
    "blk.0.ffn_up.weight": Kind.Q5_1,
    "blk.0.ffn_gate.weight": Kind.IQ4_NL,
    "blk.0.ffn_down.weight": Kind.TQ1_0,
    "blk.1.attn_q.weight": Kind.TQ2_0,
    "blk.1.attn_k.weight": Kind.BF16,
    "blk.1.attn_v.weight": Kind.Q4_K,
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama().write(tmp_path_factory.mktemp("tiny") / "tied.gguf")


@pytest.fixture(scope="module")
def tied_int8(tied: Path) -> ImportedModel:
    return from_gguf(tied, progress=False)


@pytest.fixture(scope="module")
def tied_functions(tied_int8: ImportedModel) -> relax.VirtualMachine:
    return build(tied_int8.mod)


def random_tokens(count: int, vocab: int = 80, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)


def logits_of(path: Path, activations: Activations, tokens: np.ndarray) -> np.ndarray:
    model = from_gguf(path, activations=activations, progress=False)
    return all_logits(build(model.mod, ["hidden", "head"]), tokens, chunk=7)


def relative_error(logits: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the relative error of each position."""
    return np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)


def test_float_tied_model_equals_torch(tied: Path) -> None:
    tokens = random_tokens(20)
    expected = TorchLlama(tied).logits(tokens)
    assert relative_error(logits_of(tied, "float32", tokens), expected).max() < 1e-5


def test_int8_model_equals_torch(tied: Path, tied_functions: relax.VirtualMachine) -> None:
    tokens = random_tokens(20)
    error = relative_error(
        all_logits(tied_functions, tokens), TorchLlama(tied, QMAX).logits(tokens)
    )
    # A float that lies at a rounding boundary may fall to the other side on another machine.
    assert np.median(error) < 1e-5
    assert error.max() < 0.05


@pytest.mark.parametrize(("activations", "qmax"), [("float32", None), ("int8", QMAX)])
def test_all_weight_types_and_untied_output_equal_torch(
    tmp_path: Path, activations: Activations, qmax: int | None
) -> None:
    tiny = TinyLlama(
        embed=256,
        ffn=256,
        embed_kind=Kind.Q4_0,
        output_kind=Kind.Q6_K,  # as llama.cpp writes Q4_0
        kinds=MIXED,
        seed=3,
    )
    path, tokens = tiny.write(tmp_path / "mixed.gguf"), random_tokens(9)
    expected = TorchLlama(path, qmax).logits(tokens)
    assert np.median(relative_error(logits_of(path, activations, tokens), expected)) < 1e-5


def test_rope_variants_equal_torch(tmp_path: Path) -> None:
    """Part of the head rotated, frequencies with factors, positions scaled; multi-head."""
    tiny = TinyLlama(
        layers=1,
        kv_heads=4,
        embed_kind=Kind.F32,
        dense_kind=Kind.Q8_0,
        overrides={
            "llama.rope.dimension_count": 12,
            "llama.rope.freq_base": 500.0,
            "llama.rope.scaling.type": "linear",
            "llama.rope.scaling.factor": 2.0,
        },
        extra={"rope_freqs.weight": np.array([1, 1, 2, 4, 8, 8], np.float32)},
    )
    path, tokens = tiny.write(tmp_path / "rope.gguf"), random_tokens(30)
    expected = TorchLlama(path).logits(tokens)
    assert relative_error(logits_of(path, "float32", tokens), expected).max() < 1e-5


def test_decode_after_prefill_equals_a_longer_prefill(
    tied_functions: relax.VirtualMachine,
) -> None:
    """Also across the growth of the cache, and with a second prefill on the same cache."""
    count = CACHE_RESERVE_TOKENS + 8
    tokens = random_tokens(count)
    expected = all_logits(tied_functions, tokens)
    functions, cache = tied_functions, tied_functions["create_cache"]()
    for stop, start in ((100, 0), (CACHE_RESERVE_TOKENS - 4, 100)):
        logits, cache = functions["prefill"](tensor(tokens[start:stop]), cache)
        np.testing.assert_allclose(logits.numpy()[0, 0], expected[stop - 1], rtol=1e-4, atol=1e-5)
    for position in range(CACHE_RESERVE_TOKENS - 4, count):
        logits, cache = functions["decode"](tensor(tokens[position]), cache)
        np.testing.assert_allclose(logits.numpy()[0, 0], expected[position], rtol=1e-4, atol=1e-5)


def test_interleaved_sequences_do_not_disturb_each_other(
    tied_functions: relax.VirtualMachine,
) -> None:
    functions = tied_functions
    sequences = [random_tokens(12, seed=seed) for seed in (5, 6)]
    expected = [all_logits(functions, tokens) for tokens in sequences]
    caches = [functions["create_cache"]() for _ in sequences]
    for i, tokens in enumerate(sequences):
        logits, caches[i] = functions["prefill"](tensor(tokens[: 5 + i]), caches[i])
        np.testing.assert_allclose(logits.numpy()[0, 0], expected[i][4 + i], rtol=1e-4, atol=1e-5)
    for step in range(6):
        for i, tokens in enumerate(sequences):
            position = 5 + i + step
            logits, caches[i] = functions["decode"](tensor(tokens[position]), caches[i])
            np.testing.assert_allclose(
                logits.numpy()[0, 0], expected[i][position], rtol=1e-4, atol=1e-5
            )


def calls(function: relax.Function) -> dict[str, relax.Call]:
    """Return the calls of a function by the name of the variable that they are bound to."""
    return {
        binding.var.name: binding.value
        for block in function.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call)
    }


def op_name(call: relax.Call) -> str:
    return call.op.name if isinstance(call.op, tvm.ir.Op) else ""


def test_every_layer_has_its_name_in_every_function(tied_int8: ImportedModel) -> None:
    block = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    labels = {f"blk_{layer}_{name}" for layer in range(2) for name in block}
    expected = {
        "prefill": labels | {"output"},
        "decode": labels | {"output"},
        "hidden": labels,
        "head": {"output"},
    }
    assert set(expected) == set(FUNCTIONS)
    for name, names in expected.items():
        products = {
            label
            for label, call in calls(tied_int8.mod[name]).items()
            if op_name(call) == "relax.matmul" and call.args[0].ty.dtype == "int8"
        }
        assert products == names


def test_functions_share_the_constants_and_take_no_weights(tied_int8: ImportedModel) -> None:
    mod = tied_int8.mod
    weights = [calls(mod[name])["output"].args[1] for name in ("prefill", "decode", "head")]
    assert all(weight.same_as(weights[0]) for weight in weights)
    lookups = [
        call.args[0] for call in calls(mod["hidden"]).values() if op_name(call) == "relax.take"
    ]
    assert lookups[0].same_as(weights[0])
    assert [len(mod[name].params) for name in FUNCTIONS] == [2, 2, 1, 1]


def test_caches_stay_apart_when_common_subexpressions_are_merged(
    tied_int8: ImportedModel,
) -> None:
    mod = relax.transform.EliminateCommonSubexpr()(tied_int8.mod)
    created = [
        call
        for call in calls(mod["create_cache"]).values()
        if isinstance(call.op, relax.ExternFunc)
    ]
    assert len(created) == 2 * tied_int8.config.layers
    assert not mod["create_cache"].is_pure


def test_types_of_the_functions(tied_int8: ImportedModel) -> None:
    mod = tied_int8.mod
    prefill, decode = mod["prefill"], mod["decode"]
    assert isinstance(prefill.params[0].ty.shape[1], tvm.tirx.Var)
    assert int(decode.params[0].ty.shape[1]) == 1
    assert [int(n) for n in prefill.ret_ty.fields[0].shape] == [1, 1, 80]
    assert int(mod["hidden"].ret_ty.shape[2]) == 64
    assert int(mod["head"].ret_ty.shape[2]) == 80
