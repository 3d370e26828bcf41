"""What split precision is compared with, on the same buffers, memory and schedules.

``dense``
    The same array takes two dense passes, one per digit; activations are stored at 2k bits.
``native``
    An array of 2k x k multipliers takes one dense pass; activations at 2k bits. It has the area
    of the k x k array that takes two: a PE has as many lanes as synthesis leaves it room for
    (`cost.area`; 10 of 16 for 4-bit digits). Buffers and memory are left as they are. The array of
    split precision itself is larger: `cost.area` says by how much, and estimates print it.
``a4``
    Activations of k bits (4 of 8; reports name it by the real k): one dense pass, half the
    activation bytes. Its results are not those of 2k-bit activations. It is the floor: what would
    remain if no MSB digit were stored and nothing had to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.area import native_lanes

Scheme = Literal["sparqle", "dense", "native", "a4"]
"""How activations are stored and multiplied; programs exist for those of `op.ProgramScheme`."""


@dataclass(frozen=True)
class Baseline:
    """What a baseline does otherwise than ``sparqle``; a new one is an entry of `BASELINES`.

    Attributes
    ----------
    note : str
        What it is, in a few words. Here and below ``{k}`` is the width of a digit, ``{wide}`` that
        of an activation.
    name : str
        What readers know it by; empty: the name of the scheme.
    passes : int
        Dense passes over all products.
    digits : int
        Digits of an activation in memory, all of them stored.
    wide : bool
        Whether products take whole 2k-bit activations instead of digits; lanes are then as many as
        have the area of the k x k array.
    """

    note: str
    name: str = ""
    passes: int = 1
    digits: int = 2
    wide: bool = False


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "dense": Baseline("two passes", passes=2),
        "native": Baseline("one pass of {wide}-bit multipliers on the same area", wide=True),
        "a4": Baseline("activations of {k} bits, whose results are others", name="a{k}", digits=1),
    }
)

ALL_SCHEMES: tuple[Scheme, ...] = ("dense", "sparqle", "native", "a4")
"""Schemes that the formulas know, as readers see them: the two that are compared first."""

_SPARQLE = Baseline("two planes", name="split")


def baseline(scheme: str) -> Baseline:
    """The declaration of a baseline; of ``sparqle`` what its dense pass has in common with them."""
    return BASELINES.get(scheme, _SPARQLE)


def array_of(accelerator: Accelerator, scheme: Scheme) -> Accelerator:
    """The array that a scheme computes on, with the lanes that iso-area leaves."""
    return _wide_array(accelerator) if baseline(scheme).wide else accelerator


@lru_cache(maxsize=1024)
def _wide_array(accelerator: Accelerator) -> Accelerator:
    return replace(accelerator, lanes=native_lanes(accelerator))


def scheme_name(accelerator: Accelerator, scheme: str) -> str:
    """What readers know a scheme by: ``split``, ``dense``, ``native``, ``a4`` (``a2``, ``a8``)."""
    return _filled(baseline(scheme).name, accelerator) or scheme


def scheme_notes(accelerator: Accelerator) -> str:
    """What the baselines are, in a sentence, with the widths that they work on."""
    notes = "; ".join(f"{scheme_name(accelerator, s)}: {b.note}" for s, b in BASELINES.items())
    last = ". The results of the rest are those of {wide}-bit activations."
    return _filled(notes + last, accelerator)


def _filled(text: str, accelerator: Accelerator) -> str:
    return text.format(k=accelerator.digit_bits, wide=accelerator.activation_bits)


def stored_bits(accelerator: Accelerator, scheme: Scheme) -> int:
    """Bits of an activation in memory under a baseline."""
    return accelerator.digit_bits * baseline(scheme).digits
