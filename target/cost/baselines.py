"""What split precision is compared with, on the same buffers, memory and schedules.

``dense``
    The same array takes two dense passes, one per digit; activations are stored at 2k bits.
``native``
    An array of 2k x k multipliers takes one dense pass; activations at 2k bits. It has the area
    of the k x k array. The area of a multiplier is taken to grow with the product of its widths,
    as that of an array multiplier does (one AND gate and one full adder per pair of bits: Weste
    and Harris, CMOS VLSI Design, 4th ed. 2011, section 11.9), so a PE has half as many lanes.
    The rule also explains published energies: 32 x 32 bits take 15.5 times as much as 8 x 8 bits
    (3.1 and 0.2 pJ: Horowitz, ISSCC 2014). Adders, buffers and control are left as they are.
``a4``
    Activations of k bits (4 of 8; reports name it by the real k): one dense pass, half the
    activation bytes. Its results are not those of 2k-bit activations. It is the floor: what would
    remain if no MSB digit were stored and nothing had to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, cast

from sparqle_tvm.target.accelerator import Accelerator

Scheme = Literal["sparqle", "dense", "native", "a4"]
"""How activations are stored and multiplied; programs exist for those of `op.ProgramScheme`."""


@dataclass(frozen=True)
class Baseline:
    """What a baseline does otherwise than ``sparqle``; a new one is an entry of `BASELINES`.

    Attributes
    ----------
    title : str
        What pictures call it. Here and below ``{k}`` is the width of a digit, ``{wide}`` that of an
        activation.
    note : str
        What it is, in a few words.
    name : str
        What tables call it; empty: the name of the scheme.
    passes : int
        Dense passes over all products.
    digits : int
        Digits of an activation in memory, all of them stored.
    lane_divisor : int
        How many times fewer lanes than those of the k x k array have its area.
    wide : bool
        Whether products take whole 2k-bit activations instead of digits.
    """

    title: str
    note: str = ""
    name: str = ""
    passes: int = 1
    digits: int = 2
    lane_divisor: int = 1
    wide: bool = False


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "dense": Baseline("dense", "two passes", passes=2),
        "native": Baseline(
            "native {wide}-bit",
            "one pass of {wide}-bit multipliers on the same area",
            lane_divisor=2,
            wide=True,
        ),
        "a4": Baseline(
            "{k}-bit, not exact",
            "activations of {k} bits, whose results are others",
            name="a{k}",
            digits=1,
        ),
    }
)

ALL_SCHEMES = cast("tuple[Scheme, ...]", (*BASELINES, "sparqle"))
"""Schemes that the formulas know; the baselines first."""

_SPARQLE = Baseline("split")


def baseline(scheme: str) -> Baseline:
    """The declaration of a baseline; of ``sparqle`` what its dense pass has in common with them."""
    return BASELINES.get(scheme, _SPARQLE)


def array_of(accelerator: Accelerator, scheme: Scheme) -> Accelerator:
    """The array that a scheme computes on, with the lanes that iso-area leaves."""
    divisor = baseline(scheme).lane_divisor
    if divisor == 1:
        return accelerator
    return replace(accelerator, lanes=max(accelerator.lanes // divisor, 1))


def scheme_name(accelerator: Accelerator, scheme: str) -> str:
    """What tables call a scheme: its own name, ``a4`` by the real width of a digit (``a8``)."""
    return _filled(baseline(scheme).name, accelerator) or scheme


def scheme_title(accelerator: Accelerator, scheme: str) -> str:
    """What pictures call a scheme, with the widths that it works on."""
    return _filled(baseline(scheme).title, accelerator)


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
