"""Bring a calibration into a compilation: what it chooses, and whether it is this model's."""

from __future__ import annotations

from os import PathLike
from typing import Any

import tvm

from sparqle_tvm import passes
from sparqle_tvm.calibration.budget import Budget, choose
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.search import Importance, Search, Selection
from sparqle_tvm.calibration.sums import encoding_digest


def as_calibration(calibration: Calibration | str | PathLike[str]) -> Calibration:
    """A calibration, or that in a file; CalibrationError if the file is not one."""
    return calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)


def select(
    calibration: Calibration | str | PathLike[str],
    budget: Budget | None = None,
    *,
    importance: Importance = "weights",
) -> Selection:
    """Windows and factors within a budget; by default nothing may be lost: windows only.

    Raises CalibrationError if the file is no calibration, or the budget cannot be met.
    """
    known = as_calibration(calibration)
    return choose(Search(known, importance=importance), budget or Budget(), known.measured)


@tvm.transform.module_pass(opt_level=0, name="CheckCalibration")
class CheckCalibration:
    """Refuse a module that a calibration was not made from; changes nothing.

    Precondition: split-precision form, before `passes.RaiseMsbSparsity`.

    Parameters
    ----------
    calibration : Calibration
        Every encoding of it has to be in some function.

    Raises
    ------
    CalibrationError
        When applied, if an encoding is missing or has other weights.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Compare, and return ``mod`` itself."""
        describe = passes.CollectActivations()
        tvm.transform.Sequential([passes.InlineLayers(), describe])(mod)
        digests: dict[str, str] = {}
        for observations in describe.collected.values():
            for info, _, kind in observations:
                if kind == "input":
                    digests[info.label] = encoding_digest(info)
        self.calibration.check(digests)
        return mod
