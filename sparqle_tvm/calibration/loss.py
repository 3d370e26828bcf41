"""Loss of one form of a model against another, on the same tokens: paired, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import TextError

KL_STRIDE = 4
"""The Kullback-Leibler divergence is taken at every fourth token."""

CHUNK_TOKENS = 512
"""Tokens that are run at once, each chunk as a text of its own."""

HEAD_ROWS = 64
"""Positions whose logits are made at once."""

Floats = npt.NDArray[np.float64]
Hidden = Callable[[npt.NDArray[np.int32]], npt.NDArray[np.float32]]
Head = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class TextLoss:
    """What a model says of a text.

    Attributes
    ----------
    nll : float64 (P,)
        Negative log-likelihood in nats of every token but the first of each chunk.
    log_probs : float32 (S, V) or None
        Predictions at every `KL_STRIDE`-th position, if they were kept.
    kl : float64 (S,) or None
        Divergence in nats from a reference's predictions there.
    """

    nll: Floats
    log_probs: npt.NDArray[np.float32] | None = None
    kl: Floats | None = None

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-likelihood."""
        return math.exp(float(self.nll.mean()))


@dataclass(frozen=True)
class LossIncrease:
    """How much worse one form predicts the same tokens than another.

    Attributes
    ----------
    tokens : int
        Tokens that were predicted.
    reference_perplexity, perplexity : float
        Of both forms.
    nats : float
        Mean increase of the negative log-likelihood per token.
    nats_error : float
        Standard error of that mean, of the paired differences.
    kl, kl_error : float
        Mean divergence of the predictions from the reference's, in nats, and its standard error.
    """

    tokens: int
    reference_perplexity: float
    perplexity: float
    nats: float
    nats_error: float
    kl: float
    kl_error: float

    @property
    def ratio(self) -> float:
        """Relative increase of perplexity: 0.01 is 1 %."""
        return math.expm1(self.nats)

    @property
    def ratio_error(self) -> float:
        """Standard error of `ratio`."""
        return math.exp(self.nats) * self.nats_error


@dataclass(frozen=True)
class MeasuredLoss:
    """What a choice did lose on calibration text, beside what the search expected.

    Attributes
    ----------
    importance : str
        Importance that the search went by.
    expected : float
        `Selection.loss`.
    msb_sparsity : float
        `Selection.msb_sparsity`.
    increase : LossIncrease
        As measured against no factors.
    """

    importance: str
    expected: float
    msb_sparsity: float
    increase: LossIncrease


@dataclass(frozen=True)
class MeasuredKv:
    """What a storage of keys and values (`numerics.kv_cache.parse_kv`) lost against int8."""

    storage: str
    increase: LossIncrease


def compare(reference: TextLoss, other: TextLoss) -> LossIncrease:
    """Compare two forms on the same tokens; `other` was measured against the reference."""
    difference = other.nll - reference.nll
    nats, nats_error = _mean(difference)
    kl, kl_error = (0.0, 0.0) if other.kl is None else _mean(other.kl)
    return LossIncrease(
        tokens=len(difference),
        reference_perplexity=reference.perplexity,
        perplexity=other.perplexity,
        nats=nats,
        nats_error=nats_error,
        kl=kl,
        kl_error=kl_error,
    )


def _mean(values: Floats) -> tuple[float, float]:
    """Mean and its standard error; of a single value the error is not known and given as 0."""
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    return float(values.mean()), error


def chunks(
    tokens: Sequence[int] | npt.NDArray[Any], size: int = CHUNK_TOKENS
) -> Iterator[npt.NDArray[np.int32]]:
    """Cut tokens (T,) into pieces of `size`; a last piece of a single token is left out."""
    ids = np.asarray(tokens, np.int32)
    for start in range(0, len(ids), size):
        if len(ids) - start > 1:
            yield ids[start : start + size]


def text_loss(
    hidden: Hidden,
    head: Head,
    tokens: Sequence[int] | npt.NDArray[Any],
    *,
    chunk: int = CHUNK_TOKENS,
    reference: TextLoss | None = None,
    progress: Callable[[int], Any] = lambda tokens: None,
) -> TextLoss:
    """Run a text, in chunks that do not see each other.

    Parameters
    ----------
    hidden : callable
        Token ids (T,) int32 to hidden states (T, E) float32.
    head : callable
        Hidden states (R, E) to logits (R, V) float32.
    tokens : T token ids
        At least two.
    chunk : int
        Tokens at once.
    reference : TextLoss, optional
        Predictions to compare with, of the same tokens. Without it, the predictions are kept: the
        result can be a reference.
    progress : callable
        Called with the number of tokens that were run.

    Raises
    ------
    TextError
        If there are fewer than two tokens.
    """
    nll: list[Floats] = []
    kept: list[npt.NDArray[np.float32]] = []
    kl: list[Floats] = []
    for ids in chunks(tokens, chunk):
        states = hidden(ids)
        for start in range(0, len(ids), HEAD_ROWS):
            log_probs = _log_softmax(head(np.ascontiguousarray(states[start : start + HEAD_ROWS])))
            targets = ids[start + 1 : start + 1 + len(log_probs)]
            nll.append(-log_probs[np.arange(len(targets)), targets].astype(np.float64))
            sampled = log_probs[::KL_STRIDE]
            if reference is not None and reference.log_probs is not None:
                at = sum(map(len, kl))
                kl.append(_divergence(reference.log_probs[at : at + len(sampled)], sampled))
            if reference is None:
                kept.append(sampled.copy())
        progress(len(ids))
    if not nll:
        raise TextError("the loss of a text needs at least 2 tokens")
    return TextLoss(
        np.concatenate(nll),
        np.concatenate(kept) if kept else None,
        np.concatenate(kl) if kl else None,
    )


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64))
    return np.asarray(shifted - total.astype(np.float32))


def _divergence(p: npt.NDArray[np.float32], q: npt.NDArray[np.float32]) -> Floats:
    """Kullback-Leibler divergence of each row of log-probabilities, in nats."""
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1, dtype=np.float64))
