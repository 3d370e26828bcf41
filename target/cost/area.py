"""Area of the array under each scheme, and of buffers: what synthesis of `target.rtl` gives.

Areas of a PE are lines in its lanes: multipliers, their share of the adder tree, of registers and
of a row's control, and an accumulator. They are those of a 0.18 um library; only ratios mean
something. How they were made: ``benchmarks/area.py`` and docs/area.md. Memory is an assumption.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.energy_table import Band, read_data

DATA = "area"


def pe_um2(digit_bits: int, scheme: str, lanes: int) -> float:
    """Area of a PE of so many lanes, with its share of its row, in square micrometres.

    ``dense``, ``a4``: multipliers of digits; ``native``: of whole activations; ``sparqle``: of
    digits, with what brings weights to those of the sparse pass.
    """
    line = _areas(digit_bits)[scheme]
    return float(line["lane"]) * lanes + float(line["accumulate"])


def native_lanes(accelerator: Accelerator) -> int:
    """Lanes of 2k x k bits that have the area of the k x k lanes of a PE with two dense passes."""
    k = accelerator.digit_bits
    line = _areas(k)["native"]
    rest = pe_um2(k, "dense", accelerator.lanes) - float(line["accumulate"])
    return max(round(rest / float(line["lane"])), 1)


def array_mm2(accelerator: Accelerator, scheme: str) -> float:
    """Area of an array, in square millimetres; `accelerator` has the lanes of the scheme."""
    pe = pe_um2(accelerator.digit_bits, scheme, accelerator.lanes)
    return accelerator.rows * accelerator.cols * pe / 1e6


def buffers_mm2(accelerator: Accelerator) -> Band:
    """Area of all buffers with an assumed density, in square millimetres."""
    sram = Band(**read_data(DATA)["sram"])
    return sram * (8 * accelerator.onchip_bytes / 1e6)


@lru_cache
def _areas(digit_bits: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_data(DATA)[f"digits{digit_bits}"]
    return found
