"""Logits in chunks and perplexity, on functions that are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import tvm
from build_helper import all_logits

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.models.logits import log_likelihoods, logits_chunks, perplexity

VOCAB = 5


def hidden(tokens: tvm.runtime.Tensor) -> tvm.runtime.Tensor:
    """Return one-hot states: (1, T) to (1, T, 5)."""
    return tvm.runtime.tensor(np.eye(VOCAB, dtype=np.float32)[tokens.numpy()])


def head(states: tvm.runtime.Tensor) -> tvm.runtime.Tensor:
    """Double them, so that each token predicts itself with logit 2."""
    return tvm.runtime.tensor(states.numpy() * 2)


FUNCTIONS: dict[str, Callable[..., tvm.runtime.Tensor]] = {"hidden": hidden, "head": head}


@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_all_logits_does_not_depend_on_the_chunk(chunk: int) -> None:
    logits = all_logits(FUNCTIONS, [0, 4, 2], chunk=chunk)
    np.testing.assert_array_equal(logits, 2 * np.eye(VOCAB)[[0, 4, 2]])


def test_chunks_are_no_longer_than_asked_for() -> None:
    lengths = [len(rows) for rows in logits_chunks(FUNCTIONS, np.arange(5), chunk=2)]
    assert lengths == [2, 2, 1]


def test_log_likelihoods_sum_to_one() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 7)).astype(np.float32) * 50
    total = sum(math.exp(log_likelihoods(logits, [target])[0]) for target in range(7))
    assert total == pytest.approx(1)


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_perplexity(chunk: int) -> None:
    # 3 -> 3 has logit 2 against four of 0, 3 -> 1 and 1 -> 0 have 0 against 2 and three of 0.
    normaliser = math.exp(2) + 4
    expected = (normaliser**3 / math.exp(2)) ** (1 / 3)
    assert perplexity(FUNCTIONS, [3, 3, 1, 0], chunk=chunk) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tokens", "chunk", "message"),
    [
        ([], 64, "at least one"),
        ([[1]], 64, "at least one"),
        ([1.5], 64, "at least one"),
        ([1], 0, "chunk=0"),
        ([-1], 64, "negative"),
        ([1], -3, "chunk=-3"),
    ],
)
def test_bad_arguments(tokens: list[int], chunk: int, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        all_logits(FUNCTIONS, tokens, chunk=chunk)


def test_token_that_the_model_does_not_have() -> None:
    clipping = {"hidden": lambda t: hidden(tvm.runtime.tensor(t.numpy() % VOCAB)), "head": head}
    with pytest.raises(InvalidArgumentError, match="7 is out of range: the model has 5"):
        all_logits(clipping, [1, 7])


def test_perplexity_of_one_token() -> None:
    with pytest.raises(InvalidArgumentError, match="at least 2"):
        perplexity(FUNCTIONS, [1])
