"""Calibration: what a text tells about a model's activations, and the choices made from it.

``Collector`` collects, ``Calibration`` keeps, ``Search`` chooses factors for a wanted sparsity or
loss.
"""

from __future__ import annotations

from sparqle_tvm.calibration.budget import Budget, choose
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.loss import LossIncrease, MeasuredLoss
from sparqle_tvm.calibration.search import Importance, Search, Selection
from sparqle_tvm.calibration.statistics import FACTORS, DenseStatistics, EncodingStatistics

__all__ = [
    "FACTORS",
    "Budget",
    "Calibration",
    "DenseStatistics",
    "EncodingStatistics",
    "Importance",
    "LossIncrease",
    "MeasuredLoss",
    "Search",
    "Selection",
    "choose",
]
