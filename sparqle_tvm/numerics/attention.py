"""Attention in integers: the exact value that pass, kernels and programs match bit for bit.

Queries, keys and values are int8 with a scale per token and head. For each head and query row:

1. ``acc = q . k`` in int32;
2. ``x = rint((float32(acc) * row_factor) * key_scale)``, a float32 that holds a whole number: the
   score, with the factor of the softmax, in units of 2^-15 octaves (``row_factor`` is ``q_scale``
   times that constant), limited to +-2^100;
3. ``t = min(max(x) - x, 25 * 2^15)`` in float32, then as an integer; the maximum is over the keys
   that the row may look at;
4. ``e = 2^(-t / 2^15)`` in integers, units of 2^-24, by a polynomial and a shift: see
   `exponentials`. Hidden keys have 0;
5. ``w = (float32(e) * 2^-24) * value_scale``, ``top = max(w)``, and
   ``p = rint(w * (255 / top))``, unsigned 8 bits. So V's scale is in P, where the index that it
   belongs to is summed over, and the integers of V are multiplied as they are;
6. ``out = float32(p . v) * (top / (float32(sum(e)) * 255))``, p . v in int32.

Every float32 operation rounds on its own: no fused multiply-add (no product is added to anything,
only rounded or limited first, so no compiler can fuse one), and nothing depends on an order of
additions: the sums are sums of integers. Maxima are over whole rows of keys.

A row that may look at no key gives zeros. Functions work on blocks of rows R of one key head; a
block of query tokens and all heads of a group is a valid one, in any order of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics.integers import INT32_MAX, int_matmul
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX, quantize_per_token

AttentionType = Literal["float", "int8"]
"""How a model's attention is computed: in float32, or as here."""

HEAD_LEVELS = 127
"""Largest magnitude of Q, K and V: the whole range of int8, symmetric."""

SCALE_BYTES = 4
"""Of a scale beside the integers of a head in a cache: a float32."""

PROBABILITY_LEVELS = 255
"""Largest p."""

MAX_KEYS = INT32_MAX // (PROBABILITY_LEVELS * HEAD_LEVELS)
"""Keys that a row may have: p . v has to fit int32."""

FRACTION_BITS = 15
"""Scores are in units of 2^-15 octaves (factors of two)."""

EXPONENT_COEFFICIENTS = (-45308, 15105, -2565)
"""2^-f = 1 + c1 f + c2 f^2 + c3 f^3 for f in [0, 1), in units of 2^-16."""

UNIT_BITS = 24
"""e = 1 is 2^24: exact in float32, and below 2^-24 nothing is left."""

SCORE_LIMIT = float(np.float32(2.0**100))
"""Scores are limited to this magnitude, so that their differences are finite."""

_UNIT = np.float32(2.0**-UNIT_BITS)
_LARGEST_SHIFT = UNIT_BITS + 1
SMALLEST_TOP = np.float32(SMALLEST_AMAX / HEAD_LEVELS)


@dataclass(frozen=True, eq=False)
class Heads:
    """Quantized queries, keys or values.

    Attributes
    ----------
    values : int8 (T, H, D)
        Tokens, heads, channels of a head; in [-levels, levels].
    scale : float32 (T, H)
        The real value is about ``values * scale``.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Attended:
    """Attention of a block of R rows over N keys, D channels.

    Attributes
    ----------
    out : float32 (R, D)
    probabilities : uint8 (R, N)
        p; a key whose column is 0 everywhere adds nothing, and its value need not be loaded.
    """

    out: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.uint8]


def quantize_heads(
    x: npt.NDArray[np.float32], *, levels: int = HEAD_LEVELS, name: str = "heads"
) -> Heads:
    """Quantize queries, keys or values with a scale per token and head, as `quantize_per_token`.

    Parameters
    ----------
    x : float32 (T, H, D)
    levels : int
        Largest magnitude, 1 to 127. Fewer levels are a coarser step: 31 leave the values of a plain
        cache of 6 bits, 15 and 7 those of 5 and 4 bits, and more zero digits in one of two planes.
    name : str
        Of the tensor in error messages.

    Raises
    ------
    InvalidArgumentError
        If `x` is no float32 (T, H, D) with H, D > 0, or `levels` is out of range.
    QuantizationError
        If an element is NaN or infinite.
    """
    if x.ndim != 3 or x.dtype != np.float32 or 0 in x.shape[1:]:
        raise InvalidArgumentError(
            f"{name}: expected float32 (tokens, heads, channels) with heads and channels, got "
            f"{x.dtype} {x.shape}"
        )
    tokens, heads, channels = x.shape
    rows = x.reshape(tokens * heads, channels)
    values, scale = quantize_per_token(rows, qmax=levels, name=name)
    return Heads(values.reshape(x.shape), scale.reshape(tokens, heads))


def score_unit(scale: float) -> np.float32:
    """The constant in `row_factors`: the softmax's factor times log2(e) * 2^15, as float32.

    Raises InvalidArgumentError unless `scale` is positive and finite.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise InvalidArgumentError(f"the scale of scores must be positive and finite, not {scale}")
    return np.float32(scale * math.log2(math.e) * 2**FRACTION_BITS)


def row_factors(q_scale: npt.NDArray[np.float32], scale: float) -> npt.NDArray[np.float32]:
    """What the scores of a query row are multiplied by: ``q_scale * score_unit``, kept finite.

    Parameters
    ----------
    q_scale : float32 (R,)
        Scales of the rows.
    scale : float
        Of the softmax, 1 / sqrt(D) as a rule.
    """
    with np.errstate(over="ignore"):
        factor = q_scale * score_unit(scale)
    return np.asarray(np.minimum(factor, np.finfo(np.float32).max))


def scores(
    acc: npt.NDArray[np.int32],
    row_factor: npt.NDArray[np.float32],
    key_scale: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Scores in units of 2^-15 octaves: float32 (R, N) of whole numbers, +-2^100 at most.

    Parameters
    ----------
    acc : int32 (R, N)
        q . k
    row_factor : float32 (R,)
        See `row_factors`.
    key_scale : float32 (N,)
        Scales of the keys.
    """
    with np.errstate(over="ignore"):
        x = (acc.astype(np.float32) * row_factor[:, None]) * key_scale
    return np.asarray(np.clip(np.rint(x), -SCORE_LIMIT, SCORE_LIMIT))


def exponentials(
    x: npt.NDArray[np.float32], visible: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int32]:
    """``2^((x - max) / 2^15)`` of each row, in units of 2^-24; 0 where not visible.

    With ``t = n * 2^15 + f``, f in [0, 2^15), in int32 (``>>`` rounds down)::

        m = c1 + ((c2 + ((c3 * f) >> 15)) * f >> 15)
        m = 2^16 + (m * f >> 15)           # 2^-(f / 2^15) in units of 2^-16
        e = (m << 8) >> n                  # n <= 25

    m is off by at most 1.2e-4 of itself, never rises with t, and is 1 for t = 0.

    Parameters
    ----------
    x : float32 (R, N)
        See `scores`.
    visible : bool (R, N), optional
        What each row may look at; by default everything.

    Returns
    -------
    int32 (R, N)
        0 to 2^24; all zero in a row that may look at nothing.
    """
    seen = x if visible is None else np.where(visible, x, np.float32(-SCORE_LIMIT))
    top = seen.max(axis=1, initial=-SCORE_LIMIT, keepdims=True)
    limit = np.float32(_LARGEST_SHIFT << FRACTION_BITS)
    t = np.minimum(top - seen, limit).astype(np.int32)
    e = _power_of_half(t)
    return e if visible is None else np.where(visible, e, np.int32(0))


def _power_of_half(t: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """``2^(-t / 2^15)`` in units of 2^-24, for t from 0 to 25 * 2^15."""
    c1, c2, c3 = (np.int32(c) for c in EXPONENT_COEFFICIENTS)
    f = t & np.int32((1 << FRACTION_BITS) - 1)
    m = c2 + ((c3 * f) >> FRACTION_BITS)
    m = c1 + ((m * f) >> FRACTION_BITS)
    m = np.int32(1 << 16) + ((m * f) >> FRACTION_BITS)
    return np.asarray((m << np.int32(UNIT_BITS - 16)) >> (t >> FRACTION_BITS))


def probabilities(
    e: npt.NDArray[np.int32], value_scale: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Probabilities times V's scales, quantized per row to 8 unsigned bits.

    Parameters
    ----------
    e : int32 (R, N)
        See `exponentials`.
    value_scale : float32 (N,)
        Scales of the values.

    Returns
    -------
    p : uint8 (R, N)
        At most 255, which the largest of a row is.
    row_scale : float32 (R,)
        What ``p . v`` is multiplied by.
    """
    w = (e.astype(np.float32) * _UNIT) * value_scale
    top = np.maximum(w.max(axis=1, initial=0.0), SMALLEST_TOP)
    levels = np.float32(PROBABILITY_LEVELS)
    p = np.rint(w * (levels / top)[:, None]).astype(np.uint8)
    total = np.maximum(e.sum(axis=1, dtype=np.int64), 1).astype(np.float32) * _UNIT
    return p, np.asarray(top / (total * levels))


def attend_rows(
    q: npt.NDArray[np.int8],
    row_factor: npt.NDArray[np.float32],
    keys: Heads,
    values: Heads,
    head: int,
    visible: npt.NDArray[np.bool_] | None = None,
) -> Attended:
    """Attention of a block of query rows that share a key head.

    Parameters
    ----------
    q : int8 (R, D)
        Query rows: tokens and heads of the group, in any order.
    row_factor : float32 (R,)
        See `row_factors`.
    keys, values : Heads (N, kv_heads, D)
    head : int
        Which of the kv_heads.
    visible : bool (R, N), optional
        What each row may look at; by default everything.

    Raises
    ------
    QuantizationError
        If there are more than `MAX_KEYS` keys: the accumulator has 32 bits.
    """
    count, channels = len(keys.values), values.values.shape[2]
    if count > MAX_KEYS:
        raise QuantizationError(
            f"{count} keys: p . v fits the int32 accumulator up to {MAX_KEYS}; use a shorter cache"
        )
    if count == 0:
        empty = np.zeros((len(q), 0), np.uint8)
        return Attended(np.zeros((len(q), channels), np.float32), empty)
    acc = int_matmul(q, np.ascontiguousarray(keys.values[:, head]))
    x = scores(acc, row_factor, keys.scale[:, head])
    p, row_scale = probabilities(exponentials(x, visible), values.scale[:, head])
    mixed = int_matmul(p, np.ascontiguousarray(values.values[:, head].T))
    return Attended(mixed.astype(np.float32) * row_scale[:, None], p)


def causal_mask(first: int, count: int, past: int, keys: int) -> npt.NDArray[np.bool_]:
    """Which keys the query tokens from `first` on may look at, after `past` ones: (count, keys)."""
    position = past + first + np.arange(count)
    return np.asarray(np.arange(keys) <= position[:, None])


def check_attention(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], v_shape: tuple[int, ...], causal: bool
) -> None:
    """Hold shapes of queries (T, H, D), keys and values (N, kv_heads, D or Dv) to each other.

    Raises InvalidArgumentError if they do not fit, the heads do not divide, or a causal mask has
    more queries than keys.
    """
    if len(q_shape) != 3 or len(k_shape) != 3 or len(v_shape) != 3:
        raise InvalidArgumentError(
            f"attention: expected (tokens, heads, channels), got {q_shape}, {k_shape}, {v_shape}"
        )
    if k_shape[:2] != v_shape[:2] or q_shape[2] != k_shape[2]:
        raise InvalidArgumentError(
            f"attention: queries {q_shape}, keys {k_shape} and values {v_shape} do not fit: keys "
            "and values have the same tokens and heads, queries the channels of keys"
        )
    if not k_shape[1] or q_shape[1] % k_shape[1]:
        raise InvalidArgumentError(
            f"attention: {q_shape[1]} query heads are not a multiple of {k_shape[1]} key heads"
        )
    if causal and q_shape[0] > k_shape[0]:
        raise InvalidArgumentError(
            f"attention: {q_shape[0]} queries look at {k_shape[0]} keys; with a causal mask the "
            "last query belongs to the last key, so there are at least as many keys"
        )


def attention(
    q: npt.NDArray[np.float32],
    k: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    *,
    scale: float | None = None,
    causal: bool = True,
    mask: npt.NDArray[np.bool_] | None = None,
    key_levels: int = HEAD_LEVELS,
    value_levels: int = HEAD_LEVELS,
    block_tokens: int = 64,
) -> npt.NDArray[np.float32]:
    """Grouped-query attention of float tensors, quantized here; the past is what N exceeds T by.

    Parameters
    ----------
    q : float32 (T, H, D)
        Query head h reads key head ``h // (H / kv_heads)``.
    k : float32 (N, kv_heads, D)
    v : float32 (N, kv_heads, Dv)
    scale : float, optional
        Of the scores; 1 / sqrt(D) by default.
    causal : bool
        Whether query i sees the keys up to N - T + i only.
    mask : bool (T, N), optional
        What each query token may look at besides.
    key_levels, value_levels : int
        See `quantize_heads`.
    block_tokens : int
        Query tokens at a time; the result does not depend on it.

    Returns
    -------
    float32 (T, H, Dv)

    Raises
    ------
    InvalidArgumentError
        If shapes or dtypes do not fit (see `check_attention`), or `scale` or levels are not valid.
    QuantizationError
        If an input is NaN or infinite, or there are too many keys.
    """
    check_attention(q.shape, k.shape, v.shape, causal)
    queries = quantize_heads(q, name="queries")
    keys = quantize_heads(k, levels=key_levels, name="keys")
    values = quantize_heads(v, levels=value_levels, name="values")
    (tokens, heads, channels), (count, kv_heads, _) = q.shape, k.shape
    if mask is not None and (mask.shape != (tokens, count) or mask.dtype != np.bool_):
        raise InvalidArgumentError(
            f"attention: the mask is {mask.dtype} {mask.shape}, bool {(tokens, count)} is needed"
        )
    group = heads // kv_heads
    scale = 1 / math.sqrt(channels) if scale is None else scale
    out = np.empty((tokens, heads, v.shape[2]), np.float32)
    for first in range(0, tokens, block_tokens):
        rows = slice(first, min(first + block_tokens, tokens))
        here = rows.stop - first
        seen = visible_keys(rows, count - tokens, count, causal, mask)
        for head in range(kv_heads):
            of_group = slice(head * group, (head + 1) * group)
            block = attend_rows(
                queries.values[rows, of_group].reshape(here * group, channels),
                row_factors(queries.scale[rows, of_group].reshape(-1), scale),
                *(keys, values, head),
                None if seen is None else np.repeat(seen, group, axis=0),
            )
            out[rows, of_group] = block.out.reshape(here, group, -1)
    return out


def visible_keys(
    tokens: slice, past: int, keys: int, causal: bool, mask: npt.NDArray[Any] | None
) -> npt.NDArray[np.bool_] | None:
    """What a block of query tokens may look at, bool (tokens, N); None: everything."""
    if not causal:
        return None if mask is None else mask[tokens]
    seen = causal_mask(tokens.start, tokens.stop - tokens.start, past, keys)
    return seen if mask is None else seen & mask[tokens]
