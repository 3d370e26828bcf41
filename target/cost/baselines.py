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

from dataclasses import replace

from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.op import Scheme


def array_of(accelerator: Accelerator, scheme: Scheme) -> Accelerator:
    """The array that a scheme computes on: for ``native`` with the lanes that iso-area leaves."""
    if scheme != "native":
        return accelerator
    return replace(accelerator, lanes=max(accelerator.lanes // 2, 1))


def dense_passes(scheme: Scheme) -> int:
    """Passes over all products; the second pass of ``sparqle`` is not one of them."""
    return 2 if scheme == "dense" else 1


def scheme_name(accelerator: Accelerator, scheme: str) -> str:
    """What tables call a scheme: its own name, ``a4`` by the real width of a digit (``a8``)."""
    return f"a{accelerator.digit_bits}" if scheme == "a4" else scheme


def scheme_title(accelerator: Accelerator, scheme: str) -> str:
    """What pictures call a scheme, with the widths that it works on."""
    return {
        "dense": "dense",
        "native": f"native {accelerator.activation_bits}-bit",
        "a4": f"{accelerator.digit_bits}-bit, not exact",
        "sparqle": "split",
    }[scheme]


def scheme_notes(accelerator: Accelerator) -> str:
    """What the baselines are, in a sentence, with the widths that they work on."""
    k, bits = accelerator.digit_bits, accelerator.activation_bits
    return (
        f"dense: two passes; native: one pass of {bits}-bit multipliers on the same area; "
        f"{scheme_name(accelerator, 'a4')}: activations of {k} bits, whose results are others. "
        f"The results of the rest are those of {bits}-bit activations."
    )


def stored_bits(accelerator: Accelerator, scheme: Scheme) -> int:
    """Bits of an activation in memory under a baseline, all of them stored."""
    return accelerator.digit_bits if scheme == "a4" else accelerator.activation_bits
