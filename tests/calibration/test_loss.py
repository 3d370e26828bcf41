"""Paired loss of two forms, counted by hand."""

import math

import numpy as np
import pytest

from sparqle_tvm.calibration.loss import TextLoss, chunks, compare, text_loss
from sparqle_tvm.errors import TextError

# A model whose predictions are a table: after token t comes token j with probability TABLE[t, j].
TABLE = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
OTHER = np.array([[0.4, 0.3, 0.3], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])


def hidden(ids):
    return np.eye(3, dtype=np.float32)[ids]


def head(table):
    return lambda states: (states @ np.log(table) + 3.0).astype(np.float32)


def test_counted_by_hand():
    tokens = [0, 1, 1, 2, 0]  # in chunks of 3: 0>1, 1>1; 2>0
    reference = text_loss(hidden, head(TABLE), tokens, chunk=3)
    expected = -np.log([0.25, 0.8, 0.2])
    np.testing.assert_allclose(reference.nll, expected, rtol=1e-6)
    assert reference.perplexity == pytest.approx(math.exp(expected.mean()))
    found = text_loss(hidden, head(OTHER), tokens, chunk=3, reference=reference)
    # Divergence at the first position of both chunks: tokens 0 and 2.
    first = (TABLE[0] * np.log(TABLE[0] / OTHER[0])).sum()
    np.testing.assert_allclose(found.kl, [first, 0.0], atol=1e-6)
    increase = compare(reference, found)
    difference = np.array([math.log(0.25 / 0.3), 0.0, 0.0])
    assert increase.nats == pytest.approx(difference.mean(), abs=1e-6)
    assert increase.nats_error == pytest.approx(difference.std(ddof=1) / math.sqrt(3), rel=1e-5)
    assert increase.ratio == pytest.approx(math.exp(difference.mean()) - 1, abs=1e-6)
    assert increase.kl == pytest.approx(first / 2, abs=1e-6)
    assert increase.tokens == 3


def test_of_equal_forms_nothing_is_lost():
    reference = text_loss(hidden, head(TABLE), [0, 1, 2, 1])
    increase = compare(reference, text_loss(hidden, head(TABLE), [0, 1, 2, 1], reference=reference))
    assert increase.ratio == increase.ratio_error == increase.kl == 0.0


def test_a_single_token_predicts_nothing():
    assert [len(c) for c in chunks(range(7), 3)] == [3, 3]
    with pytest.raises(TextError, match="at least 2 tokens"):
        text_loss(hidden, head(TABLE), [1])
    assert compare(TextLoss(np.ones(1)), TextLoss(np.ones(1))).nats_error == 0.0
