"""One attention op: what distinguishes it, for programs and cost formulas alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.attention import MAX_KEYS
from sparqle_tvm.numerics.kv_cache import CacheName, row_bytes
from sparqle_tvm.numerics.window import WINDOWS, WindowName
from sparqle_tvm.target.op import SCHEMES, ProgramScheme, is_whole

DIGIT_BITS = 4
"""Width of a digit: queries, keys, values and probabilities have 8 bits, which are two of them."""

KEY_SLICES = 2
"""Slices of a key or a value; each is one more pass of the array."""


@dataclass(frozen=True)
class AttentionOp:
    """Grouped-query attention in integers, see `sparqle_tvm.numerics.attention`.

    `rows` new tokens look at themselves and at all tokens before them. The heads of a group share
    keys and values; their queries are the rows of that key head: token by token, within a token
    head by head.

    Attributes
    ----------
    rows : int
        Tokens of a call (M); of a program the most that it can be bound to.
    keys : int
        Tokens that a row may look at, its own among them; of a program the most.
    kv_heads, group, head_dim : int
        Heads of keys and values, query heads for each of them, channels of a head.
    label : str
        Name for listings and reports; ops that differ in nothing else are equal.
    causal : bool
        Whether a token sees no later ones.
    scheme : {"sparqle", "dense"}
        Queries and probabilities in planes, keys without probability left out; or as a baseline
        as integers of two digits, all multiplied.
    window : {"signed", "unsigned"}
        Of the queries; ``dense`` has ``unsigned``. That of probabilities is ``unsigned``.
    key_bits, value_bits : int
        Of plain keys and values in the cache.
    key_planes, value_planes : str
        How the cache holds them, as `numerics.kv_cache.HeadStorage`: ``p`` for planes, ``-`` for
        plain, a letter per key head or one for all; loads expand them.

    Raises
    ------
    InvalidArgumentError
        If a field has the wrong type or value, or fields do not agree.
    """

    rows: int
    keys: int
    kv_heads: int
    group: int
    head_dim: int
    label: str = field(default="", compare=False)
    causal: bool = True
    scheme: ProgramScheme = "sparqle"
    window: WindowName = "signed"
    key_bits: int = 8
    value_bits: int = 8
    key_planes: str = "-"
    value_planes: str = "-"

    def __post_init__(self) -> None:
        """Refuse what does not hold together."""
        problem = self._problem()
        if problem:
            name = f" {self.label!r}" if self.label else ""
            raise InvalidArgumentError(f"attention{name}: {problem}")

    def _problem(self) -> str:
        for name in ("rows", "keys", "kv_heads", "group", "head_dim"):
            if not is_whole(getattr(self, name), 1, 2**24):
                return f"{name} = {getattr(self, name)!r} must be a whole number from 1 to 2^24 - 1"
        label: Any = self.label
        if not isinstance(label, str) or not isinstance(self.causal, bool):
            return "label must be a text, causal true or false"
        for name, known in (("scheme", SCHEMES), ("window", get_args(WindowName))):
            if getattr(self, name) not in known:
                return f"{name} = {getattr(self, name)!r} must be one of {known}"
        if self.scheme == "dense" and WINDOWS[self.window].centred:
            return f"window {self.window!r} needs scheme 'sparqle': dense has no biased digits"
        for name in ("key", "value"):
            bits, planes = getattr(self, f"{name}_bits"), getattr(self, f"{name}_planes")
            if not is_whole(bits, 2, 9):
                return f"{name}_bits = {bits!r} must be a whole number from 2 to 8"
            letters = isinstance(planes, str) and planes and not {*planes} - {"p", "-"}
            if not letters or len(planes) not in (1, self.kv_heads):
                return (
                    f"{name}_planes = {planes!r} must be p or - for each of {self.kv_heads} key "
                    "heads, or for all"
                )
        if self.rows > self.keys:
            return f"{self.rows} rows see themselves: they need as many keys, not {self.keys}"
        if self.keys > MAX_KEYS:
            return f"{self.keys} keys: sums of 32 bits hold {MAX_KEYS} products at most"
        return ""

    def in_planes(self, what: CacheName) -> tuple[bool, ...]:
        """Which key heads have planes of keys, or of values."""
        planes = self.key_planes if what == "key" else self.value_planes
        return tuple(planes[head % len(planes)] == "p" for head in range(self.kv_heads))

    def is_stored(self, what: CacheName) -> bool:
        """Whether the cache holds keys, or values, otherwise than as int8."""
        bits = self.key_bits if what == "key" else self.value_bits
        return bits < 8 or any(self.in_planes(what))

    def row_bytes(self, what: CacheName) -> int:
        """Bytes of a plain key, or value."""
        return row_bytes(self.head_dim, self.key_bits if what == "key" else self.value_bits)

    def plain(self) -> AttentionOp:
        """The same with a plain cache of these bits."""
        return replace(self, key_planes="-", value_planes="-")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def past(self) -> int:
        """Tokens before the rows, if there are as many keys as there may be."""
        return self.keys - self.rows

    @property
    def pairs(self) -> int:
        """Pairs of a query row and a key that it may look at, all heads, with that past."""
        tokens = self.rows * self.keys
        if self.causal:
            tokens -= math.comb(self.rows, 2)
        return tokens * self.heads

    @property
    def macs(self) -> int:
        """Multiply-accumulates at full precision, scores and mixing."""
        return 2 * self.pairs * self.head_dim
