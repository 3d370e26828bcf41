"""One dense op: its schemes and its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from sparqle_tvm.errors import InvalidArgumentError

ProgramScheme = Literal["sparqle", "dense"]
"""``sparqle``: LSB plane, bitmap and compressed MSB plane. ``dense``: two dense passes."""

Scheme = Literal["sparqle", "dense", "native", "a4"]
"""Those, and two baselines that exist as formulas only, see `sparqle_tvm.target.cost.baselines`."""

SCHEMES: tuple[ProgramScheme, ...] = ("sparqle", "dense")
"""Schemes that programs exist for."""

ALL_SCHEMES: tuple[Scheme, ...] = ("dense", "native", "a4", "sparqle")
"""Schemes that the formulas know; the baselines first."""


@dataclass(frozen=True)
class DenseShape:
    """One dense op: (m, k) quantized activations times (n, k) integer weights.

    Attributes
    ----------
    m, n, k : int
        Tokens, output channels, input features. All positive.
    weight_bits : int
        Bits of a stored weight: 2, 4 or 8.
    group_size : int
        Weights along K that share a scale; 0 = one scale per output channel.
    has_min : bool
        The groups have a minimum besides the scale (GGUF ``Q4_1``); needs group sums.
    label : str
        Name for reports; ops that differ in nothing else are equal.
    has_offset : bool
        There is a constant per output channel (a bias) that the drain adds.
    """

    m: int
    n: int
    k: int
    weight_bits: int = 4
    group_size: int = 0
    has_min: bool = False
    label: str = field(default="", compare=False)
    has_offset: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be counted."""
        if min(self.m, self.n, self.k) < 1 or self.weight_bits not in (2, 4, 8):
            raise InvalidArgumentError(
                f"dense op {self.label!r}: m, n, k = {self.m}, {self.n}, {self.k} must be positive "
                f"and weight_bits = {self.weight_bits} one of 2, 4, 8"
            )
        if self.group_size < 0 or (self.has_min and not self.group_size):
            raise InvalidArgumentError(
                f"dense op {self.label!r}: group_size = {self.group_size} must not be negative, "
                "and minima need groups"
            )

    @property
    def macs(self) -> int:
        """Multiply-accumulates at full precision."""
        return self.m * self.n * self.k

    def weight_slices(self, digit_bits: int) -> int:
        """Slices of `digit_bits` bits that a weight needs; each is one more pass."""
        return math.ceil(self.weight_bits / digit_bits)
