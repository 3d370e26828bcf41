"""The built-in model on the built-in text, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from build_helper import all_logits, build, tensor
from torch_reference import TorchLlama

from sparqle_tvm.frontend.gguf import from_gguf
from sparqle_tvm.frontend.text import builtin_text, load_tokens
from sparqle_tvm.models.builtin import fetch_builtin
from sparqle_tvm.models.logits import log_likelihoods

pytestmark = pytest.mark.slow

POSITIONS = 256
DECODED = 4


def perplexity(logits: np.ndarray, tokens: list[int]) -> float:
    return float(np.exp(-log_likelihoods(logits[:-1], tokens[1:]).mean()))


def test_float_model_equals_torch() -> None:
    path = fetch_builtin(progress=False)
    model = from_gguf(path, activations="float32", progress=False)
    tokens = load_tokens(model.tokenizer, builtin_text(), POSITIONS)
    logits = all_logits(build(model.mod, ["hidden", "head"]), tokens)
    expected = TorchLlama(path).logits(np.array(tokens))
    assert np.linalg.norm(logits - expected) < 1e-3 * np.linalg.norm(expected)
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.99
    print(f"perplexity, float activations: {perplexity(logits, tokens):.3f}")
    # A wrong order of the rotated channels would give thousands.
    assert perplexity(logits, tokens) < 40


def test_int8_model_predicts_prose_and_decodes() -> None:
    path = fetch_builtin(progress=False)
    model = from_gguf(path, progress=False)
    tokens = load_tokens(model.tokenizer, builtin_text(), POSITIONS)
    functions = build(model.mod)
    logits = all_logits(functions, tokens)
    print(f"perplexity, int8 activations: {perplexity(logits, tokens):.3f}")
    assert perplexity(logits, tokens) < 40

    split = POSITIONS - DECODED
    last, cache = functions["prefill"](tensor(tokens[:split]), functions["create_cache"]())
    decoded = [last.numpy()[0, 0]]
    for token in tokens[split:]:
        last, cache = functions["decode"](tensor(token), cache)
        decoded.append(last.numpy()[0, 0])
    # Sums in another order may move a value over a rounding boundary, which 30 layers amplify.
    expected = logits[split - 1 :]
    assert (np.argmax(decoded, axis=1) == expected.argmax(axis=1)).mean() >= 0.8
    assert np.linalg.norm(decoded - expected) < 0.2 * np.linalg.norm(expected)
