"""What the paper behind the format published (arXiv 2606.00365, abstract).

Figures of its authors, on their own array, baseline and memory, over BitNet b1.58 3B, Llama2 7B and
Llama3 8B. They are quoted beside ours; nothing here reproduces them.
"""

from __future__ import annotations

from dataclasses import dataclass

CITATION = "SPARQLe, arXiv 2606.00365"
MODELS = ("bitnet-3b", "llama2-7b", "llama3-8b")
"""The paper's models by the names of `sparqle_tvm.models.shapes`."""

QUANTITIES = ("latency", "energy")


@dataclass(frozen=True)
class Published:
    """Range of what was saved over the models, as shares from 0 to 1."""

    low: float
    high: float


RANGES = {
    ("prefill", "latency"): Published(0.160, 0.243),
    ("decode", "latency"): Published(0.135, 0.234),
    ("prefill", "energy"): Published(0.170, 0.267),
    ("decode", "energy"): Published(0.065, 0.142),
}
"""Saved share by phase and quantity."""
