"""Logits of all positions and perplexity, from the functions of an exported llama module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError

Tokens = Sequence[int] | NDArray[np.integer[Any]]


class Functions(Protocol):
    """A built module, as ``relax.VirtualMachine``: functions by name, on TVM tensors."""

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Return a function of the module."""
        ...


def logits_chunks(
    functions: Functions, tokens: Tokens, *, chunk: int = 64
) -> Iterator[NDArray[np.float32]]:
    """Yield the logits of all positions, some rows at a time, so that they need little memory.

    Parameters
    ----------
    functions : a built module that has the functions ``hidden`` and ``head``
    tokens : token ids, T of them
    chunk : positions at a time

    Yields
    ------
    float32 arrays of shape (at most `chunk`, V)

    Raises
    ------
    InvalidArgumentError
        If there are no tokens, or an id is out of range, or `chunk` is less than 1.
    """
    import tvm

    ids = np.asarray(tokens)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise InvalidArgumentError("tokens must be a list of at least one token id")
    if chunk < 1:
        raise InvalidArgumentError(f"chunk={chunk} must be at least 1")
    if ids.min() < 0:
        raise InvalidArgumentError(f"token id {ids.min()} is negative")
    hidden = functions["hidden"](tvm.runtime.tensor(ids.astype(np.int32)[None])).numpy()
    for start in range(0, ids.size, chunk):
        rows = np.ascontiguousarray(hidden[:, start : start + chunk])
        logits = functions["head"](tvm.runtime.tensor(rows)).numpy()[0]
        if ids.max() >= logits.shape[1]:
            raise InvalidArgumentError(
                f"token id {ids.max()} is out of range: the model has {logits.shape[1]} tokens"
            )
        yield logits


def log_likelihoods(logits: NDArray[np.float32], targets: Tokens) -> NDArray[np.float64]:
    """Return the natural logarithm of the probability of each target.

    Parameters
    ----------
    logits : (T, V) float32
    targets : T token ids, those that follow

    Returns
    -------
    (T,) float64
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    picked = wide[np.arange(len(wide)), np.asarray(targets, dtype=np.int64)]
    result: NDArray[np.float64] = picked - np.log(np.exp(wide).sum(axis=1))
    return result


def perplexity(functions: Functions, tokens: Tokens, *, chunk: int = 64) -> float:
    """Return the perplexity of the tokens after the first, each predicted from those before it.

    Takes and raises what `logits_chunks` does, and

    Raises
    ------
    InvalidArgumentError
        If there are fewer than two tokens.
    """
    if len(tokens) < 2:
        raise InvalidArgumentError(f"perplexity needs at least 2 tokens, there are {len(tokens)}")
    total, start = 0.0, 1
    for logits in logits_chunks(functions, tokens, chunk=chunk):
        targets = tokens[start : start + len(logits)]
        total += float(log_likelihoods(logits[: len(targets)], targets).sum())
        start += len(targets)
    return float(np.exp(-total / (len(tokens) - 1)))
